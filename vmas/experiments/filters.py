"""The builder's filters on the dirty corpus, beside what is true by construction.

Everything is decided by `vmas.dataset.build`, as a user would run it; this module only joins its ledger and its index
with the truth and counts. Vocal removal is measured on the synthesiser's stems, where the voice is known alone.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, paths, versions
from vmas.config import Profile, sha256
from vmas.dataset import shards, stages
from vmas.dataset.fingerprints import Prints
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Options, Tools
from vmas.dataset.vocals import separator_key
from vmas.errors import DataError
from vmas.experiments import dirty, reuploads
from vmas.metrics.intervals import resamples, wilson
from vmas.metrics.similarity import THRESHOLD
from vmas.pools import cores

if TYPE_CHECKING:
    import pandas as pd

FREE_DB = -20.0  # a soundtrack counts as free of vocals when what is left of the voice lies so far under the music
HELD_OUT = {"smoke": 2, "mini": 10}  # videos for validation, and as many for testing
VOICELESS = 40  # clips without a voice on which the harm of its removal is measured
COSTED = 40  # clips on which the stages' costs are measured
LEFT_OUT = ("tokens", "beats")  # stages of the builder that decide nothing
KEPT = ""
QUALITY = "correspondence"


@dataclass(frozen=True)
class Found:
    """What the builder did with every file, and the voice before and after its removal.

    `files`: the truth of `dirty.Dirty` with `similarity`, `correspondence` (`splits.correspondence`), `genre_mix` (the
    genre stage's answer for the untouched soundtrack), `stage` that left the file out ("" for none), `split`, and for
    the files in a split `genre_found` and `removed`, the share of energy that went with the vocals.
    `voices`: one row for every clip with a voice that is not a copy; see `measure_voice`. `harm`: of up to `VOICELESS`
    clips without one, what the removal takes from them; see `measure_harm`. `reuploads`: see `reuploads.found`.
    `mistaken`: kind, first, second: ids of files of other content that fingerprints take for the same, see
    `reuploads.confused`.
    """

    files: "pd.DataFrame"
    voices: "pd.DataFrame"
    harm: "pd.DataFrame"
    reuploads: "pd.DataFrame"
    mistaken: "pd.DataFrame"


@dataclass(frozen=True)
class Share:
    """`value` = hits / n with a 95% interval; NaN for n = 0."""

    value: float
    lo: float
    hi: float
    n: int


def options(profile: Profile, checkpoints: str | None = None, separator: str = "classic") -> Options:
    """The builder's options here: everything that decides, and some videos held out; `separator` of
    `vocals.SEPARATORS`."""
    held = HELD_OUT.get(profile.name, HELD_OUT["mini"])
    return Options(
        profile,
        LEFT_OUT,
        THRESHOLD,
        vocals=separator,
        val=held,
        test=held,
        quality=QUALITY,
        checkpoints=checkpoints,
    )


def key(profile: Profile, checkpoints: str | None = None, separator: str = "classic") -> str:
    """Hash of everything that the findings depend on."""
    o = options(profile, checkpoints, separator)
    known = {s: v for s, v in stages.VERSIONS.items() if o.runs(s)}
    held = (o.threshold, o.val, o.test, o.quality, FREE_DB, stages.SPLITS_VERSION)
    tagger = tagger_sha256(profile, checkpoints)
    other = (separator_key(separator), VOICELESS, reuploads.VERSION, reuploads.size(profile), reuploads.OFFSETS)
    return sha256(dirty.key(profile), profile.clip, known, held, tagger, versions.of("filters"), other)


def folder(profile: Profile, checkpoints: str | None = None, separator: str = "classic") -> Path:
    """Where the dataset that the builder makes of the dirty corpus lies."""
    return paths.cache() / "dirty" / f"{profile.name}-{key(profile, checkpoints, separator)[:12]}"


def tagger_sha256(profile: Profile, checkpoints: str | None = None) -> str:
    """Hash of the genre tagger's weights; "absent" where a run makes them first."""
    folder = Path(checkpoints) if checkpoints else paths.checkpoints(profile.name)
    return checkpoint.shas(folder, "tagger")["tagger"]


def run(
    profile: Profile,
    checkpoints: str | None = None,
    workers: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    separator: str = "classic",
) -> Found:
    """Make the dirty corpus, build a dataset of it, and compare. What the cache has under the same key is kept.

    Raises DataError, CheckpointError without the tagger's weights, WeightsUnavailable without the separator's.
    """

    import pandas as pd

    from vmas.dataset.build import build

    say("dirty corpus")
    made = dirty.make(profile, workers, progress)
    o, workers = options(profile, checkpoints, separator), workers or cores()
    out = folder(profile, checkpoints, separator)
    build(made.videos, out, o, workers, progress=progress, say=say, update=True)  # the folder is this build's own
    names = [f.name for f in dataclasses.fields(Found)]
    kept = [out.with_name(f"{out.name}-{name}.parquet") for name in names]
    if not all(f.is_file() for f in kept):
        say("scores of every file, the voice before and after, re-uploads")
        files, values = decisions(made.truth, out), scores(made.videos, o, workers)
        prints = [Prints.unpack(row) for row in values.pop("prints")]
        for name, column in values.items():
            files[name] = column
        passed = np.flatnonzero(files["stage"] != "similarity")
        equal, ids = reuploads.confused(files.iloc[passed], [prints[i] for i in passed]), files["id"].to_numpy()[passed]
        pairs = [(kind, ids[i], ids[j]) for kind, found in equal.items() for i, j in found]
        plain = dataclasses.replace(o, threshold=math.inf, val=0, test=0)
        tables = (
            files,
            voices(made.truth, profile, o, workers),
            harm(made.truth, profile, o, workers),
            reuploads.found(profile, plain, workers),
            pd.DataFrame(pairs, columns=["kind", "first", "second"]),
        )
        for table, file in zip(tables, kept, strict=True):
            shards.write_parquet(table, file)
    return Found(*(pd.read_parquet(f) for f in kept))


def costs(made: dirty.Dirty, profile: Profile, checkpoints: str | None = None) -> dict[str, Any]:
    """What every stage of the builder takes on the first `COSTED` clips, in one process: the `timings.json` of that
    build, whose rates (`build.Result.rates`) are also its `throughput`."""
    import json
    import tempfile

    from vmas.dataset.build import TIMINGS, build

    first = set(made.truth[made.truth.kind == "clip"]["id"].head(COSTED))
    videos = [v for v in made.videos if v.id in first]
    with tempfile.TemporaryDirectory() as out:
        build(videos, out, Options(profile, checkpoints=checkpoints), 1, progress=False)
        timings = json.loads((Path(out) / TIMINGS).read_text(encoding="utf-8"))
    return timings | {"throughput": timings["video_hours_per_core_hour"]}


def scores(videos: list[Video], o: Options, workers: int) -> dict[str, list]:
    """What `score` says of every video, name → values."""
    from vmas.dataset import pool

    every = dataclasses.replace(o, threshold=math.inf, skip=LEFT_OUT)
    rows = [row for _, row in sorted(pool.run(score, videos, Tools(every), workers), key=lambda r: r[0])]
    return {name: [row[name] for row in rows] for name in rows[0]}


def decisions(truth: "pd.DataFrame", out) -> "pd.DataFrame":
    """`truth` with what the ledger and the index of the dataset in `out` say of each file."""
    import pandas as pd

    from vmas.dataset.build import FAILED, LEDGER, SPLITS

    out = Path(out)
    ledger = pd.read_parquet(out / LEDGER)
    failed = ledger[ledger.kind == FAILED]
    if len(failed):
        raise DataError(f"{out}: {len(failed)} files failed, the first: {failed.iloc[0].reason}")
    samples = [shards.read_index(out / s)[0].assign(split=s) for s in SPLITS if (out / s).is_dir()]
    index = pd.concat(samples, ignore_index=True).drop_duplicates("video").set_index("video")
    stage = dict(zip(ledger["id"].str.replace(r"-\d{8}$", "", regex=True), ledger["stage"], strict=True))
    files = truth.copy()
    files["stage"] = [stage.get(i, KEPT) for i in truth["id"]]
    for ours, theirs in (("split", "split"), ("genre_found", "genre"), ("removed", "removed")):
        files[ours] = index[theirs].reindex(truth["id"]).to_numpy()
    return files


def score(video: Video, tools: Tools) -> dict[str, Any]:
    """Work of the pool: similarity, correspondence, genre_mix and packed prints of one video, whether or not a filter
    takes it."""
    from vmas import media

    rate = tools.options.profile.clip.sample_rate
    known = stages.screen(video, tools)
    best = int(tools.tagger(media.read_audio(video.path, rate)[0], rate).argmax())
    return {
        "similarity": known["similarity"],
        "correspondence": known["quality"],
        "genre_mix": tools.tagger.labels[best],
        "prints": {k: known[k] for k in ("pictures", "inner", "sound")},
    }


def voices(truth: "pd.DataFrame", profile: Profile, o: Options, workers: int) -> "pd.DataFrame":
    """`measure_voice` of every clip with a voice that no other file copies."""
    return _measured(measure_voice, truth[(truth.kind == "clip") & truth.vocal], profile, o, workers)


def harm(truth: "pd.DataFrame", profile: Profile, o: Options, workers: int) -> "pd.DataFrame":
    """`measure_harm` of the first `VOICELESS` clips without a voice."""
    return _measured(measure_harm, truth[(truth.kind == "clip") & ~truth.vocal].head(VOICELESS), profile, o, workers)


def _measured(work, clips: "pd.DataFrame", profile: Profile, o: Options, workers: int) -> "pd.DataFrame":
    import pandas as pd

    from vmas.dataset import pool

    tasks = [(name, dirty.profile_of(profile)) for name in clips["id"]]
    rows = pool.run(work, tasks, Tools(o), workers)
    return pd.DataFrame([row for _, row in sorted(rows, key=lambda r: r[0])])


def measure_voice(task: tuple[str, Profile], tools: Tools) -> dict[str, Any]:
    """Work of the pool: one clip's voice before and after its removal.

    id; `before_db` and `after_db`, the voice against the music; `left`, the share of the voice's energy that is left
    (`vocals.voice_left`); `si_sdr_before` and `si_sdr_after`, dB, of the mix and of the result against the music.
    """
    from vmas.corpus import parse_id, sample_spec
    from vmas.corpus.sound import render_audio
    from vmas.dataset import vocals

    name, p = task
    spec, rate = sample_spec(*parse_id(name), p.corpus, p.clip.seconds), p.clip.sample_rate
    mix, voice = render_audio(spec, rate), render_audio(spec, rate, only_voice=True)
    music = mix - voice
    out = tools.separator(mix[None], rate)[0]
    left = vocals.voice_left(out, music, voice)
    before = 10 * np.log10(float(voice @ voice) / float(music @ music))
    return {
        "id": name,
        "before_db": before,
        "after_db": before + 10 * np.log10(max(left, 1e-9)),
        "left": left,
        "si_sdr_before": vocals.si_sdr(mix, music),
        "si_sdr_after": vocals.si_sdr(out, music),
    }


def measure_harm(task: tuple[str, Profile], tools: Tools) -> dict[str, Any]:
    """Work of the pool: what vocal removal does to a clip that has no voice.

    id; `removed`, the share of the music's energy that is gone (negative where some was added); `si_sdr`, dB, of the
    result against the music, which a perfect separator leaves as it is.
    """
    from vmas.corpus import parse_id, sample_spec
    from vmas.corpus.sound import render_audio
    from vmas.dataset import vocals

    name, p = task
    rate = p.clip.sample_rate
    music = render_audio(sample_spec(*parse_id(name), p.corpus, p.clip.seconds), rate)
    out = tools.separator(music[None], rate)[0]
    left = float(np.sum(out.astype(np.float64) ** 2) / np.sum(music.astype(np.float64) ** 2))
    return {"id": name, "removed": 1 - left, "si_sdr": vocals.si_sdr(out, music)}


# ---------------------------------------------------------------- counting


def still(files: "pd.DataFrame") -> np.ndarray:
    """bool [N]: pictures that stand still or nearly, what section 3 wants removed."""
    return (files["static"] | files["near_static"]).to_numpy(bool)


def repeats(files: "pd.DataFrame") -> np.ndarray:
    """bool [N]: files whose picture and sound an earlier file of `files` has."""
    return files.duplicated(["picture", "sound"]).to_numpy(bool)


def precision(flagged: np.ndarray, true: np.ndarray, seed: int = 0, n: int = 2000) -> Share:
    """Share of the flagged (bool [N]) that are true."""
    return _share(true, flagged, seed, n)


def recall(flagged: np.ndarray, true: np.ndarray, seed: int = 0, n: int = 2000) -> Share:
    """Share of the true that are flagged."""
    return _share(flagged, true, seed, n)


def _share(hits: np.ndarray, among: np.ndarray, seed: int, n: int) -> Share:
    """Bootstrap over all N files, so that the denominator varies too; Wilson's interval where every case agrees, for
    which no resample differs and a bootstrap would claim certainty."""
    hits, among = np.asarray(hits, bool), np.asarray(among, bool)
    both, total = int((hits & among).sum()), int(among.sum())
    if total == 0:
        return Share(float("nan"), float("nan"), float("nan"), 0)
    if both in (0, total):
        return Share(both / total, *wilson(both, total), total)
    times = resamples(len(hits), n, seed)
    top, bottom = times @ (hits & among), times @ among
    lo, hi = np.quantile((top / np.maximum(bottom, 1))[bottom > 0], [0.025, 0.975])
    return Share(both / total, float(lo), float(hi), total)


def mistaken(content: np.ndarray, equal: np.ndarray, seed: int = 0, n: int = 2000) -> Share:
    """Share of the pairs of files with other content that are taken for the same; its `n` counts the contents.

    `content` [N] is what each file shows or plays, `equal` int [P,2] the places of the pairs that are taken. A file is
    in many pairs and its copies are in the same ones, so that it is contents that are drawn, with all their files.
    Where every case agrees the interval is Wilson's of so many pairs as have no content in common.
    """
    _, of, files = np.unique(np.asarray(content), return_inverse=True, return_counts=True)
    a, b = of[np.asarray(equal, int).reshape(-1, 2)].T

    def pairs(times: np.ndarray) -> np.ndarray:
        """Pairs with other content among the files of contents that are drawn so often, [...,C]."""
        drawn = times * files
        return (drawn.sum(-1) ** 2 - (drawn**2).sum(-1)) / 2

    hits, total = len(a), float(pairs(np.ones(len(files))))
    if not total:
        return Share(float("nan"), float("nan"), float("nan"), 0)
    if hits in (0, total):
        apart = len(files) // 2
        return Share(hits / total, *wilson(apart if hits else 0, apart), len(files))
    times = resamples(len(files), n, seed)
    top, bottom = (times[:, a] * times[:, b]).sum(1), pairs(times)
    lo, hi = np.quantile((top / np.maximum(bottom, 1))[bottom > 0], [0.025, 0.975])
    return Share(hits / total, float(lo), float(hi), len(files))


def sweep(similarity: np.ndarray, true: np.ndarray, thresholds: np.ndarray) -> "pd.DataFrame":
    """Precision and recall of leaving out what is not below each threshold, and the share that is kept."""
    import pandas as pd

    rows = []
    for t in thresholds:
        out = ~(np.asarray(similarity) < t)
        found = {"precision": precision(out, true, n=1).value, "recall": recall(out, true, n=1).value}
        rows.append({"threshold": float(t), **found, "kept": float((~out).mean())})
    return pd.DataFrame(rows)


def funnel(files: "pd.DataFrame") -> "pd.DataFrame":
    """Files and the share of each fault before the first filter and after each one, in the builder's order."""
    import pandas as pd

    rows, here = [], files
    for name, stage in (("all", None), ("frame similarity", "similarity"), ("duplicates", "duplicates"),
                        ("relatives of held-out videos", "splits")):  # fmt: skip
        here = here if stage is None else here[here["stage"] != stage]
        shares = {"static or nearly": float(still(here).mean()), "mismatched": float(here["mismatched"].mean())}
        shares |= {"repeats another": float(repeats(here).mean()), "with a voice": float(here["vocal"].mean())}
        rows.append({"after": name, "files": len(here), "frame similarity": float(here["similarity"].mean()), **shares})
    return pd.DataFrame(rows)


def true_leaks(files: "pd.DataFrame") -> "pd.DataFrame":
    """Pairs of files in different splits that share picture, music, address or track by the truth: columns held, other,
    by. What fingerprints missed would show here."""
    import pandas as pd

    from vmas.dataset.dedupe import track_key

    here = files[files["split"].notna()]
    names = here.assign(track=[track_key(a, t) for a, t in zip(here["artist"], here["track"], strict=True)])
    rows = []
    for held in names[names["split"] != "train"].itertuples():
        others = names[names["split"] != held.split]
        for by in ("picture", "sound", "url", "track"):
            same = others[(others[by] == getattr(held, by)) & (others[by] != "")]
            rows += [{"held": held.id, "other": i, "by": by} for i in same["id"]]
    return pd.DataFrame(rows, columns=["held", "other", "by"])
