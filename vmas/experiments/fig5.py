"""Figure 5, genres: what the builder's genre stage says of the dirty corpus after the filters, beside the truth.

The paper takes CLAP's nearest prompt of ten (appendix D) and prints no values. Without CLAP's weights the mini
tagger stands in, which was trained on other clips of the same generator; it hears what vocal removal left, as the
builder's genre stage does, and once the untouched soundtrack.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import records
from vmas.config import Profile, sha256
from vmas.corpus import GENRES
from vmas.experiments import dirty, filters, table1
from vmas.records import Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "fig5"
TITLE = "Figure 5. Genres"
DATASET = "dirty corpus, after the filters"
TRUTH, FOUND, UNTOUCHED = "Truth", "Mini tagger, vocals removed", "Mini tagger, untouched sound"
WHY = "Figure 5 is a drawing without printed values; nothing was read off its pixels."
PAPER = ("DISCO-MV (paper)", "DISCO-MV")


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the figure depends on."""
    return sha256(TARGET, filters.key(profile), profile.eval.bootstrap, seed)


plan = table1.plan


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    checkpoints: str | None = None,
    workers: int | None = None,
) -> Record:
    """Genres of the clips that the builder kept. Arguments and errors as `table1.compute`."""
    start = time.monotonic()
    table1.ready(profile, progress, say, checkpoints)
    files = filters.run(profile, checkpoints, workers, progress, say).files
    kept = files[files["stage"] == filters.KEPT]
    true = kept["genre"].to_numpy(str)
    answers = {TRUTH: true, FOUND: kept["genre_found"].to_numpy(str), UNTOUCHED: kept["genre_mix"].to_numpy(str)}
    boot = {"seed": seed, "n": profile.eval.bootstrap}
    table = rows(answers, profile, boot)
    voice = kept["vocal"].to_numpy(bool)
    for system in (FOUND, UNTOUCHED):
        for metric, among in (("accuracy with a voice", voice), ("accuracy without a voice", ~voice)):
            got = filters.recall(answers[system] == true, among, **boot)
            table.append(table1.row(system, DATASET, metric, "up", got, profile))
    why = [Row(*PAPER, f"share of {g}", "none", status="unavailable", note=WHY) for g in GENRES]
    extra: dict[str, Any] = {
        "note": f"{profile.note} {WHY}",
        "genres": list(GENRES),
        "counts": {s: [int((a == g).sum()) for g in GENRES] for s, a in answers.items()},
        "confusion": confusion(true, answers[FOUND]).tolist(),
        "confusion_untouched": confusion(true, answers[UNTOUCHED]).tolist(),
    }
    prov = records.provenance(
        f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}",
        time.monotonic() - start,
        sha256(profile),
        dirty.key(profile),
        filters.tagger_sha256(profile, checkpoints),
    )
    return Record(TARGET, profile.name, TITLE, key(profile, seed), (*table, *why), prov, extra)


def rows(answers: dict[str, np.ndarray], profile: Profile, boot: dict) -> list[Row]:
    """Shares of the genres by each of `answers` (system → genre [N], the truth first), and how often they are right.

    Chance of the accuracy: the same answers dealt out to the clips at random.
    """
    out, true = [], answers[TRUTH]
    every = np.ones(len(true), bool)
    for system, said in answers.items():
        for g in GENRES:
            # the truth of these clips is exact; what the tagger says of them is a sample of its answers
            got = float((said == g).mean()) if system == TRUTH else filters.recall(said == g, every, **boot)
            out.append(table1.row(system, DATASET, f"share of {g}", "none", got, profile))
        if system != TRUTH:
            out.append(accuracy(system, DATASET, said, true, "genre accuracy", profile, boot))
    return out


def accuracy(
    system: str, dataset: str, said: np.ndarray, true: np.ndarray, metric: str, profile: Profile, boot: dict
) -> Row:
    """How often the genres `said` [N] are right; chance: the same answers dealt out to the clips at random."""
    chance = float(sum((said == g).mean() * (true == g).mean() for g in np.unique(true)))
    got = filters.recall(said == true, np.ones(len(true), bool), **boot)
    note = "chance: the same answers in random order"
    return table1.row(system, dataset, metric, "up", got, profile, note, chance)


def confusion(true: np.ndarray, said: np.ndarray) -> np.ndarray:
    """int [10,10]: clips of genre i (rows) that were called j."""
    return np.array([[int(((true == a) & (said == b)).sum()) for b in GENRES] for a in GENRES])


def figure(record: Record) -> "Figure":
    """Shares by genre with intervals, truth beside the tagger, and the confusion of the tagger."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(10.5, 3.9), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=(1.3, 1))
        for k, (system, colour) in enumerate(((TRUTH, "#000000"), (FOUND, "#D55E00"), (UNTOUCHED, "#0072B2"))):
            for y, g in enumerate(GENRES):
                r, at = record.row(system, DATASET, f"share of {g}"), y + 0.24 * (k - 1)
                if r.ci95:
                    left.plot(r.ci95, [at, at], color=colour, lw=2, alpha=0.45, solid_capstyle="butt")
                left.plot(r.value, at, "s" if system == TRUTH else "o", color=colour, ms=4.5, mec="white",
                          label=None if y else system)  # fmt: skip
        left.set_yticks(range(len(GENRES)), GENRES)
        left.set_ylim(len(GENRES) - 0.5, -0.5)
        left.set_xlim(left=0)
        left.set_xlabel("share of clips")
        left.legend(fontsize=7, loc="lower right")
        table = np.array(record.extra["confusion"])
        sns.heatmap(table, ax=right, annot=True, fmt="d", cmap="Blues", cbar=False, square=True,
                    xticklabels=GENRES, yticklabels=GENRES, annot_kws={"fontsize": 7})  # fmt: skip
        right.set_xlabel("said by the tagger, vocals removed")
        right.set_ylabel("truth")
        right.tick_params(labelsize=7)
        sns.despine(ax=left, left=True)
    r = record.row(FOUND, DATASET, "genre accuracy")
    head = f"{record.title} ({r.status}, N = {r.n} clips)    bar: 95% interval"
    fig.suptitle(head, fontsize=9, x=0.01, ha="left")
    return fig
