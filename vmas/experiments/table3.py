"""Table 3, comparison with the state of the art: ours computed here, the paper's systems quoted.

Three rows give the scale: real music (what a perfect system would make), real music through the codec (the
ceiling of anything that speaks in its tokens) and the codec's music of another video (the floor of
alignment: perfect music, wrong picture). One procedural test set stands for DISCO-MV, its style shift for
MusicCaps.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.experiments import evaluate, references, smoke
from vmas.records import Record, Row
from vmas.report import paper

TARGET = "table3"
TITLE = "Table 3. Comparison with the state of the art"
DATASETS = {"shifted": "corpus, shifted style (stands for MusicCaps)", "test": "corpus, test (stands for DISCO-MV)"}
OURS, REAL, CODEC, SHUFFLED = "VMAs (ours)", "Real music", "Real music, through the codec", "Music of another video"
STAGES = ("codec", "encoder", "decoder", "sampling", "flow", "fad", "kl", "mv_align", "tagger", "evaluation")
SHUFFLE_SEED = 20_240


def _weights(profile: Profile, seed: int) -> dict[str, str]:
    return checkpoint.shas(paths.checkpoints(profile.name), "codec", "tagger", f"vmas-seed{seed}")


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the table depends on: config, data, weights, stage versions, seed."""
    from vmas.corpus import data_sha256

    # Words under a table change no number, and how the weights were trained is in the weights.
    config = {k: v for k, v in plain(profile).items() if k not in ("note", "train")}
    return sha256(TARGET, config, data_sha256(profile), _weights(profile, seed), seed, versions.of(*STAGES))


def _quiet(_: str) -> None:
    pass


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = _quiet,
    fresh: bool = True,
) -> Record:
    """Generate and evaluate on both test sets; returns the record with the paper's rows quoted beside.

    `seed` names the trained model (`vmas-seed<seed>`) and the first of `eval.sampling_seeds` sampling seeds.
    `fresh` analyses the real music again too, instead of reading it from the cache.
    Raises WeightsUnavailable in profile paper.
    """
    from tqdm.auto import tqdm

    from vmas.corpus import data_sha256
    from vmas.embedders.tagger import load_tagger
    from vmas.generate import pick_device
    from vmas.metrics.mv_align import derangements
    from vmas.model import VMAs

    start = time.monotonic()
    device = pick_device(device)
    root = pipeline.ensure(profile, seed, device, progress, say=say)
    if profile.name == "paper":
        raise DataError("table3 at paper scale needs the real test sets; this version reads the procedural corpus only")
    say("generating and evaluating")
    model = VMAs.from_pretrained(root / f"vmas-seed{seed}", device)
    tagger, rate = load_tagger(root / "tagger"), profile.clip.sample_rate
    seeds = [seed + i for i in range(profile.eval.sampling_seeds)]
    table: list[Row] = []
    extra: dict[str, Any] = {"note": profile.note, "fad_floor": {}, "datasets": DATASETS, "sampling_seeds": seeds}
    with evaluate.Evaluator(tagger, rate) as judge:
        for name, dataset in DATASETS.items():
            total = (profile.eval.clips or getattr(profile.corpus, name)) * (2 * len(seeds) + 2)
            with tqdm(total=total, desc=f"{TARGET} {name}", unit="clip", disable=None if progress else True) as bar:
                bar.set_postfix_str("the clips' own music")
                found = references.load(profile, name, dataset, model.codec, judge, progress, fresh, bar.update)
                draws = [references.generated(model, found, s, judge, bar) for s in seeds]
            ref, coded = found.reference, found.coded
            # Not the seed of MV Align's own shuffles: one of them would undo this one and pair clips rightly again.
            shuffled = coded.take(derangements(found.n, 1, SHUFFLE_SEED)[0])
            floor = evaluate.fad_floor(coded)
            extra["fad_floor"][dataset] = {"value": floor, "n": found.n // 2}
            for system, got, note in (
                (OURS, draws, ""),
                (REAL, [ref.real], ""),
                (CODEC, [coded], f"Random halves of it (N = {found.n // 2}) lie FAD {floor:.2f} apart."),
                (SHUFFLED, [shuffled], "The codec's music, every clip's own replaced by another clip's."),
            ):
                table += evaluate.rows(system, dataset, got, ref, profile, note)
    table += paper.quoted_rows(TARGET)
    prov = records.provenance(
        f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}",
        time.monotonic() - start,
        sha256(profile),
        data_sha256(profile),
        _weights(profile, seed)[f"vmas-seed{seed}"],
        device,
    )
    record = Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(table), prov, extra)
    if profile.name == "smoke":
        training = checkpoint.read_manifest(root / f"vmas-seed{seed}")["training"]
        smoke.check(record, REAL, training, profile.codec.bins)
    return record


def placement(record: Record) -> list[dict[str, Any]]:
    """How far our row is from its chance (0) to the codec's music (1), and whether its interval clears chance.

    One dict per data set and metric: dataset, metric, share, verdict ("better than chance", "worse than
    chance", "cannot tell": the interval contains it). FAD has no chance: music of other videos is the same set.
    """
    out = []
    for dataset in DATASETS.values():
        for metric in dict.fromkeys(r.metric for r in record.rows if r.dataset == dataset and r.system == OURS):
            ours, top = record.row(OURS, dataset, metric), record.row(CODEC, dataset, metric)
            if ours.value is None or ours.chance is None or top.value is None or top.chance is None:
                continue
            lo, hi = (x - ours.chance for x in ours.ci95) if ours.ci95 else (-math.inf, math.inf)
            if ours.direction == "down":
                lo, hi = -hi, -lo
            verdict = "better than chance" if lo > 0 else "worse than chance" if hi < 0 else "cannot tell"
            share = (ours.value - ours.chance) / (top.value - top.chance)
            out.append({"dataset": dataset, "metric": metric, "share": share, "verdict": verdict})
    return out
