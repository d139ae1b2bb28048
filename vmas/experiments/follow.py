"""Does the music follow the video? Five tests that a musician would ask for, on a checkpoint and a split.

    swap    the clip's own music is likelier under its own video than under another one, or under none
    shift   the music meets the picture's peaks at the right time, and not some frames earlier or later
    cut     where the video changes to another genre, the music does
    slow    a video that is played slower gets slower music
    still   without motion nothing is left of the alignment

The paper measures alignment by MV Align alone (section 5.2), which has a high chance level and does not tell what
the music follows. These tests change one thing of the video and look at the same clip before and after.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.experiments import data_size, follow_tests, references, sweep
from vmas.experiments.evaluate import Evaluator
from vmas.experiments.follow_tests import Bench, Found
from vmas.metrics import intervals, verdict
from vmas.records import Record

TARGET = "follow"
TITLE = "Does the music follow the video?"
SPLIT, CLIPS = "test", 200  # what the target is computed on: so many clips keep it under four minutes on two cores
STAGES = ("codec", "encoder", "decoder", "sampling", "flow", "mv_align", "tagger", "evaluation", "follow")
PASSES = 17  # times that every clip goes through the decoder, for the progress bar


def key(profile: Profile, seed: int = 0, split: str | None = None, clips: int | None = None) -> str:
    """Hash of everything the numbers depend on: config, data, weights, stage versions, seed, split."""
    return _key(profile, seed, _weights(profile, seed), split, clips)


def _key(profile: Profile, seed: int, weights: dict[str, str], split: str | None = None, clips: int | None = None):
    from vmas.corpus import data_sha256

    split, clips = _chosen(split, clips)
    about = {k: v for k, v in plain(profile).items() if k not in ("note", "train")}
    return sha256(TARGET, about, data_sha256(profile), weights, seed, versions.of(*STAGES), split, clips)


def _chosen(split: str | None, clips: int | None) -> tuple[str, int]:
    return SPLIT if split is None else split, CLIPS if clips is None else clips


def _weights(profile: Profile, seed: int) -> dict[str, str]:
    """sha256 of the weights that are asked: those that are there, else those of the seed's recorded training."""
    found = checkpoint.shas(paths.checkpoints(profile.name), "codec", "tagger", f"vmas-seed{seed}")
    return _recorded_weights(profile, seed) or found if found[f"vmas-seed{seed}"] == "absent" else found


def _recorded_weights(profile: Profile, seed: int) -> dict[str, str]:
    """The same, of the point of figures 6 and 7 with all clips, whose record names them; {} without one.

    Only one seed's weights go with the repository, and what was asked of the others must hold all the same.
    """
    if not sweep.ready(profile):
        return {}
    every = next(c for c in data_size.CONDITIONS if c.name == data_size.REFERENCE)
    training = sweep.Run(data_size.TARGET, every, profile, seed).record()
    parts = checkpoint.shas(paths.checkpoints(profile.name), "codec", "tagger")
    return {**parts, f"vmas-seed{seed}": training.provenance["checkpoint_sha256"]} if training else {}


def recorded(profile: Profile) -> list[Record]:
    """The records that hold, one a training, in the order of their seeds: of the recorded training's weights, or of
    those that were trained here."""
    out = []
    for s in records.seeds(TARGET, profile.name):
        weights = (w for w in (_recorded_weights(profile, s), _weights(profile, s)) if w)
        keys = [_key(profile, s, w) for w in weights]
        places = [place(TARGET, profile.name, s) for place in (records.committed, records.local)]
        out += [r for key in keys for place in places if (r := records.find(place, key))][:1]
    return out


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    split: str | None = None,
    clips: int | None = None,
) -> Record:
    """All five tests of the checkpoint `vmas-seed<seed>` on the first `clips` clips of a split of the corpus.

    `split` and `clips` are the target's own (`SPLIT`, `CLIPS`) unless given; choices are made on "val".
    Raises WeightsUnavailable in profile paper.
    """
    from tqdm.auto import tqdm

    from vmas.corpus import data_sha256
    from vmas.embedders.tagger import load_tagger
    from vmas.generate import pick_device
    from vmas.model import VMAs

    start = time.monotonic()
    name, wanted = _chosen(split, clips)
    device = pick_device(device)
    root = pipeline.ensure(profile, seed, device, progress, say=say)
    if profile.name == "paper":
        raise DataError(
            "follow at paper scale needs the real test clips; this version reads the procedural corpus only"
        )
    say("showing other, shifted, cut, slowed and frozen videos")
    model = VMAs.from_pretrained(root / f"vmas-seed{seed}", device)
    with Evaluator(load_tagger(root / "tagger"), profile.clip.sample_rate) as judge:
        bench = open_bench(model, profile, judge, name, wanted or profile.eval.clips, seed, progress)
        hide = None if progress else True
        with tqdm(total=PASSES * len(bench), desc=f"{TARGET} {name}", unit="clip", disable=hide) as bar:
            found = run(dataclasses.replace(bench, done=bar.update))
    prov = records.provenance(
        f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}",
        time.monotonic() - start,
        sha256(profile),
        data_sha256(profile),
        _weights(profile, seed)[f"vmas-seed{seed}"],
        device,
    )
    extra: dict[str, Any] = {"note": profile.note, "split": name, "clips": len(bench), "seed": seed}
    extra["remarks"] = [f"One trained model (seed {seed}): another training's answers are not in the intervals."]
    extra |= {test: f.extra for test, f in found.items()}
    rows = tuple(r for f in found.values() for r in f.rows)
    return Record(TARGET, profile.name, TITLE, key(profile, seed, split, clips), rows, prov, extra)


def open_bench(
    model, profile: Profile, judge: Evaluator, split: str = "val", clips: int = 0, seed: int = 0, progress: bool = True
) -> Bench:
    """A model and the first `clips` clips (0 = all) of a split, with what the metrics compare them with."""
    limited = dataclasses.replace(profile, eval=dataclasses.replace(profile.eval, clips=clips))
    found = references.load(limited, split, split, model.codec, judge, progress)
    n, s = found.n, found.split
    assert s.tokens is not None  # the codec was given
    folder = paths.corpus(profile.name)
    return Bench(
        model,
        profile,
        judge,
        split,
        s.frames[:n],
        s.tokens[:n],
        s.genres[:n],
        s.waveforms[:n],
        [folder / p for p in s.manifest["path"][:n]],
        found.reference,
        found.coded,
        seed,
    )


def run(bench: Bench) -> dict[str, Found]:
    """The five tests by name. Raises DataError for fewer than two clips or a single genre."""
    X_v = follow_tests.encoded(bench)
    swapped, own_nats = follow_tests.swap(bench, X_v)
    music = bench.music(lambda i: bench.frames[i])
    onsets = bench.judge.analyse(music).onsets
    return {
        "swap": swapped,
        "shift": follow_tests.shift(bench, X_v, own_nats, onsets),
        "cut": follow_tests.cut(bench, music),
        "slow": follow_tests.slow(bench, music, onsets),
        "still": follow_tests.still(bench, onsets),
    }


# One line a question: (test, question, system, part of the tests, metric).
def _questions(metric: str) -> list[tuple[str, str, str, str, str]]:
    t = follow_tests
    return [
        ("swap", "its own video rather than one of another genre?", t.OTHER, t.SWAP, f"{t.EXTRA}, whole clip"),
        ("swap", "its own video rather than another of its genre?", t.SAME, t.SWAP, f"{t.EXTRA}, whole clip"),
        ("swap", "its own video rather than none?", t.NONE, t.SWAP, f"{t.EXTRA}, whole clip"),
        ("shift", "the picture's peaks at the right time?", t.OURS, t.SHIFT, f"{metric} {t.LOST}"),
        ("shift", "X_v at the right time (two to four rows off)?", t.OURS, t.SHIFT,
         f"{t.EXTRA}, X_v two to four rows off"),
        ("cut", "the genre of the picture after a cut?", t.JOINED, t.CUT, f"{t.MOVED}, {t.MORE}"),
        ("slow", "half the speed, by its onsets?", f"{t.OURS}, {t.at_speed(0.5)}", t.SLOW, f"{t.FOLLOWED}, onsets"),
        ("slow", "half the speed, by its tempo?", f"{t.OURS}, {t.at_speed(0.5)}", t.SLOW, f"{t.FOLLOWED}, tempo"),
        ("still", "the motion (MV Align lost without it)?", t.OWN, t.STILL, f"{metric} {t.BY_FREEZING}"),
    ]  # fmt: skip


def answer(ci95: tuple[float, float] | None) -> str:
    """What an interval says of a number that is 0 for music that does not follow the video, positive for one that does.

    "yes" when the whole interval lies above 0, "the opposite" when it lies below, else "not seen".
    """
    said = verdict.side(*(ci95 or (None, None)), "up")
    return {verdict.BETTER: "yes", verdict.WORSE: "the opposite"}.get(said, "not seen")


def answers(record: Record) -> list[dict[str, Any]]:
    """One dict a question: test, question ("does the music follow ..."), unit, value, lo, hi, n, answer; computed."""
    metric = next(
        (r.metric.removesuffix(f" {follow_tests.AT}") for r in record.rows if r.metric.endswith(follow_tests.AT)), ""
    )
    out = []
    for test, question, system, part, name in _questions(metric):
        dataset = f"{record.extra['split']}: {part}"
        row = next((r for r in record.rows if (r.system, r.dataset, r.metric) == (system, dataset, name)), None)
        if row is None or row.value is None:
            continue
        unit = "nats" if "NLL" in name or "odds" in name else "share" if follow_tests.FOLLOWED in name else "IoU"
        lo, hi = row.ci95 or (float("nan"), float("nan"))
        out.append(
            {"test": test, "question": question, "unit": unit, "value": row.value, "lo": lo, "hi": hi, "n": row.n,
             "answer": answer(row.ci95)}
        )  # fmt: skip
    return out


def over_trainings(found: Sequence[Record]) -> list[dict[str, Any]]:
    """`answers` of several trainings at once: the mean over them, and the interval over trainings and clips.

    A question that one of them has no answer to is left out. Every dict also has `seeds`, how many trainings, and
    `each`, their values. Raises DataError where the records are not of the same clips.
    """
    if len({(r.profile, r.extra["split"], r.extra["clips"]) for r in found}) > 1:
        raise DataError(f"{TARGET}: the trainings were asked on different clips")
    asked = [{(a["test"], a["question"]): a for a in answers(r)} for r in found]
    out = []
    for question, first in asked[0].items() if asked else ():
        same = [a[question] for a in asked if question in a]
        if len(same) < len(asked):
            continue
        values = np.array([a["value"] for a in same])
        lo, hi = intervals.seeds_and_clips(values, np.array([(a["lo"], a["hi"]) for a in same]))
        about = {"value": float(values.mean()), "lo": lo, "hi": hi, "answer": answer((lo, hi))}
        out.append({**first, **about, "seeds": len(same), "each": values.tolist()})
    return out


def told(*found: Record) -> str:
    """The answers in words, one line each, and a line that counts them; several trainings answer together."""
    from vmas.report.table import number

    said = over_trainings(found)
    lines = [
        f"{a['answer']:12} {a['question']} {number(a['value'])} {a['unit']} [{number(a['lo'])}, {number(a['hi'])}]"
        + (f"; each {', '.join(number(v) for v in a['each'])}" if len(found) > 1 else "")
        for a in said
    ]
    yes, first = sum(a["answer"] == "yes" for a in said), found[0]
    where = f"{first.extra['split']} split, {first.extra['clips']} clips"
    where += f", {len(found)} trainings" if len(found) > 1 else ""
    status = first.rows[0].status
    lines.append(f"{yes} of {len(said)} questions answered yes by their interval ({where}, status {status})")
    return "\n".join(lines)


def figure(record: Record):
    """The figure of the target (`vmas.report.follow`)."""
    from vmas.report import follow as report

    return report.figure(record)
