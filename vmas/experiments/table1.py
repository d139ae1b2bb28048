"""Table 1, datasets: the paper's four quoted, beside the mini corpus and the dirty corpus before and after the filters.

The dirty corpus has the faults that section 3 filters out, with the truth known, so that the table can say what the
paper's cannot: how often each filter is right and how much it finds.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vmas import paths, records, weights
from vmas.config import Profile, sha256
from vmas.dataset import frames, vocals
from vmas.errors import DataError
from vmas.experiments import dirty, filters, reuploads
from vmas.metrics import intervals
from vmas.records import Record, Row
from vmas.report import paper

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from vmas.dataset.calibration import Calibration

TARGET = "table1"
TITLE = "Table 1. Video-music datasets"
CLEAN, BEFORE, AFTER = "Mini corpus", "Dirty corpus, before the filters", "Dirty corpus, after the filters"
CORPORA, MARKS, VOICES = "our corpora", "filters against the truth", "vocal removal, on the stems"
VOICELESS, REUPLOADS, OTHERS = "vocal removal, no voice there", "the same clip cut elsewhere", "other content"
STATIC, DUPLICATES, SHIFTED = "Frame similarity", "Duplicates", "Duplicates, shifted in time"
MIX, REMOVED, DEMUCS = "Untouched mix", "After vocal removal", "After Demucs"
CLIP = "Cheap features against CLIP"
SPLIT = "test"  # of the mini corpus, whose similarity is measured
NO_CLIP = (
    "CLIP's weights are not in this repository: with a copy in VMAS_WEIGHTS ('vmas weights list' says which), 'vmas"
    " reproduce table1 --force' fills this row, and 'vmas dataset build --frames clip' takes them."
)
NO_DEMUCS = (
    "Demucs's weights are not in this repository: with a copy in VMAS_WEIGHTS ('vmas weights list' says which), 'vmas"
    " reproduce table1 --force' fills these rows, and 'vmas dataset build --vocals demucs' takes them."
)
WILSON = "Where every case agrees the interval is Wilson's, since a bootstrap would claim certainty."
NO_FILTER = "Nothing in section 3 or here removes mismatched pairs; the score of the held-out videos only ranks them."


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the table depends on."""
    from vmas.corpus import data_sha256

    size = getattr(profile.corpus, SPLIT)
    return sha256(TARGET, data_sha256(profile), size, profile.clip, profile.eval.bootstrap, filters.key(profile), seed)


def plan(profile: Profile, seed: int = 0) -> list[tuple[str, Path, bool]]:
    """(what, where, already there) for what the target makes first."""
    tagger, split = paths.checkpoints(profile.name) / "tagger", paths.corpus(profile.name) / f"{SPLIT}.parquet"
    where, built = dirty.where(profile), filters.folder(profile)
    return [
        ("tagger weights", tagger, filters.tagger_sha256(profile) != "absent"),
        (f"corpus, split {SPLIT}", split.parent, split.is_file()),
        ("dirty corpus", where, (where / dirty.TRUTH).is_file()),
        ("data set of the dirty corpus", built, (built / "dataset.json").is_file()),
    ]


def _quiet(_: str) -> None:
    pass


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = _quiet,
    checkpoints: str | None = None,
    workers: int | None = None,
) -> Record:
    """Run the builder on the dirty corpus and mark its filters. `seed` is the bootstrap's.

    `checkpoints`: folder of the tagger, default the profile's own, trained first where it is missing. Raises
    DataError in profile paper.
    """
    start = time.monotonic()
    ready(profile, progress, say, checkpoints)
    found = filters.run(profile, checkpoints, workers, progress, say)
    say("frame similarity of the mini corpus")
    clean = _clean(profile, workers, progress)
    boot = {"seed": seed, "n": profile.eval.bootstrap}
    table = [*_corpora(found, clean, profile, boot), *_marks(found, profile, boot)]
    table += [*_reuploads(found, profile, boot), *_confused(found, profile, boot)]
    table += [*_voices(found, profile, boot), *_demucs(profile, boot, say, checkpoints, workers)]
    table += _calibration(profile, say)
    say("what every stage costs")
    costs = filters.costs(dirty.make(profile, workers, False), profile, checkpoints)
    extra: dict[str, Any] = {
        "note": f"{profile.note} {WILSON}",
        "costs": costs,
        "columns": {CORPORA: {"licence": dict.fromkeys((CLEAN, BEFORE, AFTER), dirty.LICENCE)}},
        "threshold": filters.THRESHOLD,
        "similarity": {
            "id": found.files["id"].tolist(),
            "kind": _kinds(found.files),
            "value": found.files["similarity"].tolist(),
            "clean": clean,
        },
        "duplicates": _by_kind(found.files),
        "funnel": filters.funnel(found.files).round(6).to_dict("records"),
        "voices": found.voices.round(4).to_dict("records"),
        "harm": found.harm.round(4).to_dict("records"),
        "held_out": _held_out(found.files),
        "true_leaks": filters.true_leaks(found.files).to_dict("records"),
    }
    prov = records.provenance(
        f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}",
        time.monotonic() - start,
        sha256(profile),
        dirty.key(profile),
        filters.tagger_sha256(profile, checkpoints),
    )
    return Record(TARGET, profile.name, TITLE, key(profile, seed), (*table, *quoted()), prov, extra)


def ready(profile: Profile, progress: bool, say: Callable[[str], None], checkpoints: str | None) -> None:
    """Train the tagger where it is missing; raises DataError in profile paper."""
    if profile.name == "paper":
        raise DataError(
            "table1 and fig5 at paper scale need the videos of DISCO-10M: build them with 'vmas dataset build --profile"
            " paper --frames clip --vocals demucs --genre clap'; its dataset_card.md has these figures"
        )
    if checkpoints is None and filters.tagger_sha256(profile) == "absent":
        from vmas import pipeline

        pipeline.parts(profile, 0, progress, say=say)


def _clean(profile: Profile, workers: int | None, progress: bool) -> list[float]:
    """Frame similarity of the mini corpus's test split."""
    from vmas import corpus

    folder = paths.corpus(profile.name)
    corpus.make(folder, profile, (SPLIT,), workers, progress=progress)
    df = corpus.load_manifest(folder)
    embed = frames.build_embedder("cheap")
    files = [folder / p for p in df[df.split == SPLIT].path]
    return [round(frames.similarity(frames.sample_frames(f, embed.size), embed), 6) for f in files]


def _kinds(files: "pd.DataFrame") -> list[str]:
    return [
        "static" if s else "nearly static" if n else "moving"
        for s, n in zip(files["static"], files["near_static"], strict=True)
    ]


def row(
    system: str,
    dataset: str,
    metric: str,
    direction: str,
    got,
    profile: Profile,
    note: str = "",
    chance: float | None = None,
) -> Row:
    """A row of a `Share`, a `MeanCI` or a plain number."""
    if isinstance(got, int | float):
        value, lo, hi, n = got, np.nan, np.nan, None
    else:
        value, lo, hi, n = getattr(got, "value", getattr(got, "mean", np.nan)), got.lo, got.hi, got.n
    ci = (lo, hi) if np.isfinite([lo, hi]).all() else None
    if not np.isfinite(value):
        return Row(system, dataset, metric, direction, status="unavailable", note="no case of it in this corpus")
    return Row(system, dataset, metric, direction, float(value), ci, n or None, 1, chance, None, profile.status, note)


def _corpora(found: filters.Found, clean: list[float], profile: Profile, boot: dict) -> list[Row]:
    files, out = found.files, []
    after = files[files["stage"] == filters.KEPT]
    free = np.asarray(found.voices["after_db"] <= filters.FREE_DB, bool)
    c = profile.corpus
    total = c.train + c.val + c.test + c.shifted
    for system, n, similarity in (
        (CLEAN, total, np.asarray(clean)),
        (BEFORE, len(files), files["similarity"].to_numpy(float)),
        (AFTER, len(after), after["similarity"].to_numpy(float)),
    ):
        out.append(row(system, CORPORA, "videos", "up", n, profile))
        got = intervals.summarise(similarity, **boot)
        out.append(row(system, CORPORA, "frame similarity", "down", got, profile))
    every = np.ones(len(free), bool)
    out.append(row(AFTER, CORPORA, "voices removed", "up", filters.recall(free, every, **boot), profile, _free_note()))
    shares = {"static or nearly": filters.still, "repeats": filters.repeats}
    shares |= {"mismatched": lambda f: f["mismatched"].to_numpy(bool)}
    for system, part in ((BEFORE, files), (AFTER, after)):
        for metric, true in shares.items():
            got = filters.recall(true(part), np.ones(len(part), bool), **boot)
            out.append(row(system, CORPORA, metric, "down", got, profile, NO_FILTER if metric == "mismatched" else ""))
    return out


def _free_note() -> str:
    return f"A voice counts as removed when what is left of it lies {-filters.FREE_DB:g} dB under the music or lower."


def _marks(found: filters.Found, profile: Profile, boot: dict) -> list[Row]:
    files, out = found.files, []
    passed = files[files["stage"] != "similarity"]
    cases = (
        (STATIC, files, "similarity", filters.still(files), "static or nearly static pictures are to be left out"),
        (DUPLICATES, passed, "duplicates", filters.repeats(passed), "a file that shows and plays an earlier one's"),
    )
    for system, part, stage, true, note in cases:
        flagged = (part["stage"] == stage).to_numpy(bool)
        for metric, measure in (("precision", filters.precision), ("recall", filters.recall)):
            out.append(row(system, MARKS, metric, "up", measure(flagged, true, **boot), profile, note))
    moved = filters.repeats(passed) & passed["how"].isin(dirty.SHIFTED).to_numpy(bool)
    got = filters.recall((passed["stage"] == "duplicates").to_numpy(bool), moved, **boot)
    note = f"copies that begin {dirty.shift_s(profile):g} s later or earlier: trimmed, or with an intro"
    return [*out, row(SHIFTED, MARKS, "recall", "up", got, profile, note)]


def _reuploads(found: filters.Found, profile: Profile, boot: dict) -> list[Row]:
    out, seconds = [], reuploads.size(profile)[1]
    for at, part in found.reuploads.groupby("offset"):
        for kind in ("sound", "picture"):
            got = filters.recall(part[kind].to_numpy(bool), np.ones(len(part), bool), **boot)
            note = f"excerpts of {seconds:g} s, the later one encoded harder"
            out.append(row(f"{at:g} s later", REUPLOADS, f"recognised by {kind}", "up", got, profile, note))
    return out


def _confused(found: filters.Found, profile: Profile, boot: dict) -> list[Row]:
    passed = found.files[found.files["stage"] != "similarity"]
    place = {name: i for i, name in enumerate(passed["id"])}
    out = []
    for kind in ("sound", "picture"):
        taken = found.mistaken[found.mistaken["kind"] == kind]
        equal = np.array([taken[c].map(place).to_numpy(int) for c in ("first", "second")], int).T
        got = filters.mistaken(passed[kind].to_numpy(), equal, **boot)
        note = (
            "share of the pairs of files with other content that fingerprints call equal; the interval draws what files"
            " show or play, of which a pair has two"
        )
        out.append(row("Fingerprints", OTHERS, f"called equal by {kind}", "down", got, profile, note))
    return out


def _voices(found: filters.Found, profile: Profile, boot: dict) -> list[Row]:
    mix = _voice_rows(MIX, found.voices, profile, boot, "before")
    return [*mix, *_voice_rows(REMOVED, found.voices, profile, boot), *_harm_rows(REMOVED, found.harm, profile, boot)]


def _voice_rows(system: str, v: "pd.DataFrame", profile: Profile, boot: dict, when: str = "after") -> list[Row]:
    level, every = v[f"{when}_db"].to_numpy(float), np.ones(len(v), bool)
    left = np.ones(len(v)) if when == "before" else v["left"].to_numpy(float)
    harmed = intervals.summarise(v[f"si_sdr_{when}"].to_numpy(float), **boot)
    free = filters.recall(level <= filters.FREE_DB, every, **boot)
    return [
        row(system, VOICES, "SI-SDR, dB", "up", harmed, profile),
        row(system, VOICES, "voice left", "down", intervals.summarise(left, **boot), profile),
        row(system, VOICES, "voice to music, dB", "down", intervals.summarise(level, **boot), profile),
        row(system, VOICES, "free of vocals", "up", free, profile, _free_note()),
    ]


def _harm_rows(system: str, h: "pd.DataFrame", profile: Profile, boot: dict) -> list[Row]:
    note = "of clips that have no voice, where nothing should change"
    got = {m: intervals.summarise(h[c].to_numpy(float), **boot) for m, c in
           (("SI-SDR, dB", "si_sdr"), ("energy removed", "removed"))}  # fmt: skip
    return [
        row(system, VOICELESS, "SI-SDR, dB", "up", got["SI-SDR, dB"], profile, note),
        row(system, VOICELESS, "energy removed", "down", got["energy removed"], profile, note),
    ]


def _demucs(profile: Profile, boot: dict, say: Callable[[str], None], checkpoints, workers: int | None) -> list[Row]:
    """The rows of vocal removal with Demucs where its weights are at hand, else why they are missing."""
    if weights.status(vocals.DEMUCS) == "absent":
        return [Row(DEMUCS, VOICES, "free of vocals", "up", status="unavailable", note=NO_DEMUCS)]
    say("vocal removal with Demucs")
    o, truth = filters.options(profile, checkpoints, "demucs"), dirty.make(profile, workers, False).truth
    found = [measure(truth, profile, o, workers or 1) for measure in (filters.voices, filters.harm)]
    return [*_voice_rows(DEMUCS, found[0], profile, boot), *_harm_rows(DEMUCS, found[1], profile, boot)]


def _calibration(profile: Profile, say: Callable[[str], None]) -> list[Row]:
    """The cheap features against CLIP where its weights are at hand, else why the row is missing."""
    if weights.status(frames.CLIP) == "absent":
        return [Row(CLIP, "calibration", "frame similarity", "none", status="unavailable", note=NO_CLIP)]
    from vmas.dataset.calibration import calibrate

    say("cheap frame features against CLIP")
    embedders = (frames.build_embedder("clip"), frames.build_embedder("cheap"))
    return calibration_rows(calibrate([v.path for v in dirty.make(profile, 1, False).videos], *embedders), profile)


def calibration_rows(c: "Calibration", profile: Profile) -> list[Row]:
    """Rows of `calibrate(videos, CLIP, cheap)`."""
    n = len(c.first)
    note = f"threshold of the cheap features that keeps as many files as {c.threshold:g} of CLIP's"
    alike = filters.Share(c.agreement, *intervals.wilson(round(c.agreement * n), n), n)
    return [
        row(CLIP, "calibration", "rank correlation", "up", c.rank, profile),
        row(CLIP, "calibration", "matched threshold", "none", c.matched, profile, note),
        row(CLIP, "calibration", "same decision", "up", alike, profile, note),
        row(CLIP, "calibration", "same decision at one threshold", "up", c.unmatched, profile),
    ]


def _by_kind(files: "pd.DataFrame") -> list[dict[str, Any]]:
    """How many of each kind of copy the builder found, among those that the similarity filter let pass."""
    passed = files[files["stage"] != "similarity"]
    true = passed[filters.repeats(passed)]
    groups = true.assign(how=true["how"].replace("", "kept its original out"))["how"]
    return [
        {"how": how, "files": len(part), "found": int((part["stage"] == "duplicates").sum())}
        for how, part in true.groupby(groups)
    ]


def _held_out(files: "pd.DataFrame") -> dict[str, Any]:
    """What the score of correspondence does to the held-out videos, beside choosing by similarity.

    `auc`: how often a matched clip scores above a mismatched one, ties half, among files that pass the filters.
    """
    here = files[files["stage"].isin([filters.KEPT, "splits"])]
    bad = here["mismatched"].to_numpy(bool)
    held = here["split"].isin(["val", "test"]).to_numpy(bool)
    scores = {
        "correspondence": here["correspondence"].to_numpy(float),
        "similarity": -here["similarity"].to_numpy(float),
    }
    out: dict[str, Any] = {"held": int(held.sum()), "mismatched": {"all": float(bad.mean())}, "auc": {}}
    out["mismatched"]["held out"] = float(bad[held].mean()) if held.any() else None
    for name, x in scores.items():
        gap = x[~bad][:, None] - x[bad][None]
        out["auc"][name] = float(((gap > 0) + 0.5 * (gap == 0)).mean()) if gap.size else None
        best = np.argsort(-x, kind="stable")[: held.sum()]
        out["mismatched"][f"best by {name}"] = float(bad[best].mean()) if held.any() else None
    return out


def quoted() -> list[Row]:
    """The paper's table: a system for every dataset; and the share of soundtracks freed of vocals (section 3)."""
    at = "as published"
    rows = [
        Row(f"{r.dataset} (paper)", at, str(r.metric), str(r.direction), paper=str(r.verbatim), status="quoted")
        for r in cast(Iterable[Any], paper.load(TARGET).itertuples())
    ]
    share = paper.value("data", "vocal removal", "soundtracks without vocals")
    note = 'The paper says "approximately" and does not say how it judged.'
    freed = Row("DISCO-MV (paper)", at, "voices removed", "up", paper=share, status="quoted", note=note)
    return [*rows, freed]


# ---------------------------------------------------------------- figure


def figure(record: Record) -> "Figure":
    """Frame similarity file by file and corpus by corpus, and the marks of the filters."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(10.5, 3.6), layout="constrained")
        left, middle, right = fig.subplots(1, 3, width_ratios=(1.25, 1.35, 1))
        _draw_files(left, record)
        _draw_corpora(middle, record)
        _draw_marks(right, record)
        for ax in (left, middle, right):
            sns.despine(ax=ax, left=True)
    n = len(record.extra["similarity"]["value"])
    status = next(r.status for r in record.rows if r.value is not None)
    fig.suptitle(f"{record.title} ({status}, N = {n} files)    bar: 95% interval", fontsize=9, x=0.01, ha="left")
    return fig


KINDS = {"moving": "#0072B2", "nearly static": "#E69F00", "static": "#D55E00"}


def _draw_files(ax, record: Record) -> None:
    known = record.extra["similarity"]
    kind, value = np.array(known["kind"]), np.array(known["value"])
    bins = np.linspace(0, 1, 21)
    ax.hist([value[kind == k] for k in KINDS], bins, stacked=True, color=list(KINDS.values()), label=list(KINDS))
    ax.axvline(record.extra["threshold"], color="black", lw=1.2, ls="--")
    high = ax.get_ylim()[1]
    for x, side, word in ((-0.02, "right", "kept"), (0.02, "left", "left out")):
        ax.text(record.extra["threshold"] + x, 0.6 * high, word, ha=side, va="top", fontsize=8)
    ax.set_xlabel("frame similarity\nmean cosine of pairs of frames")
    ax.set_ylabel("files of the dirty corpus")
    ax.legend(fontsize=7, loc="upper left", frameon=False)


def _draw_corpora(ax, record: Record) -> None:
    ours = [record.row(s, CORPORA, "frame similarity") for s in (CLEAN, BEFORE, AFTER)]
    theirs = [r for r in record.rows if r.metric == "frame similarity" and r.status == "quoted"]
    for y, r in enumerate(ours):
        if r.ci95:
            ax.plot(r.ci95, [y, y], color="#0072B2", lw=2.5, alpha=0.6, solid_capstyle="butt")
        ax.plot(r.value, y, "o", color="#0072B2", ms=6, mec="white", label="computed here" if not y else None)
    for y, r in enumerate(theirs, len(ours)):
        first = y == len(ours)
        ax.plot(float(r.paper or "nan"), y, "D", color="white", mec="#666666", ms=5, label="quoted" if first else None)
    ax.axvline(record.extra["threshold"], color="black", lw=1.2, ls="--")
    names = [r.system for r in ours] + [r.system for r in theirs]
    ax.set_yticks(range(len(names)), [n.replace(", ", ",\n") for n in names], fontsize=7)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("mean frame similarity ↓\nour features and the paper's differ")
    ax.legend(fontsize=7, loc="lower left", frameon=True)


def _draw_marks(ax, record: Record) -> None:
    wanted = [(s, MARKS, m) for s in (STATIC, DUPLICATES) for m in ("precision", "recall")]
    wanted += [(SHIFTED, MARKS, "recall"), (REMOVED, VOICES, "free of vocals")]
    known = {(r.system, r.dataset, r.metric): r for r in record.rows if r.value is not None}
    for y, name in enumerate(wanted):
        r = known.get(name)
        if r is None:
            continue
        colour = "#009E73" if name[1] == MARKS else "#CC79A7"
        if r.ci95:
            ax.plot(r.ci95, [y, y], color=colour, lw=2.5, alpha=0.6, solid_capstyle="butt")
        ax.plot(r.value, y, "o", color=colour, ms=6, mec="white")
    ax.set_yticks(range(len(wanted)), [f"{s},\n{m}" for s, _, m in wanted], fontsize=7)
    ax.set_ylim(len(wanted) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("share\n")
