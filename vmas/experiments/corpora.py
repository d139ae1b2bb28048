"""On which corpora do beat weights help? Table 5's contrast and its weights, trained where the picture shows more, or
fewer, of the beats.

The paper's videos are edited to their music, more or less strictly, and nobody knows how strictly. Here it is a knob.
The weights are those of Table 5's `alpha-.25`, over Σw: read literally they weigh L_g so little that nothing else can
be seen. All rows share stage 1 and are evaluated on the profile's own test clips, so that they differ by the clips of
stage 2 alone; the rows of the profile's own corpus are Table 5's.
"""

import dataclasses
from typing import TYPE_CHECKING

from vmas.config import Profile
from vmas.experiments import corpora_data, sweep, table5
from vmas.experiments.sweep import Condition
from vmas.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "corpora"
TITLE = "Beat weights on other corpora"
OWN = "own"  # the profile's own corpus, whose runs are Table 5's
ORDER = ("clean", OWN, "loose")  # from the most beats shown to the fewest
BARE, WEIGHTED = "contrastive", "alpha-.25"
REFERENCE = f"{OWN}-{BARE}"


def _pair(name: str) -> tuple[Condition, Condition]:
    """Without and with beat weights on one corpus."""
    rows = {c.name: c for c in table5.CONDITIONS}
    if name == OWN:
        where, about = "own corpus", "Table 5's row"
    else:
        k = corpora_data.get(name)
        where = f"{name} corpus"
        about = f"{k.beat_share:.0%} of the beats shown, {k.spurious_per_s:g} movements a second without one"

    def condition(row: str, against: str) -> Condition:
        first = rows[row]
        data, run = ("", f"{table5.TARGET}-{row}") if name == OWN else (name, "")
        return Condition(
            f"{name}-{row}",
            f"{first.label}, {where}",
            first.overrides,
            about=about,
            data=data,
            run=run,
            against=against,
        )

    return condition(BARE, ""), condition(WEIGHTED, f"{name}-{BARE}")


CONDITIONS: tuple[Condition, ...] = tuple(c for name in ORDER for c in _pair(name))
PAPER: tuple[str, ...] = ()
TOLD = tuple(c.name for c in CONDITIONS if c.against)
EVERY_SEED: tuple[str, ...] = ()
VARIANT_SEEDS = 3


def finish(record: Record, profile: Profile, file: str | None = None) -> Record:
    """The record with what the other corpora are like, as their runs found it (`corpora_data.composition`)."""
    found = sweep.recorded(TARGET, CONDITIONS, file or profile.name)
    sets = {c.data: found[c.name][0].extra["set"] for c in CONDITIONS if c.data and found.get(c.name)}
    return dataclasses.replace(record, extra={**record.extra, "sets": sets})


def figure(record: Record) -> "Figure":
    """MV Align and FAD with and without weights by corpus, and what the weights change."""
    from vmas.report import corpora

    return corpora.figure(record)
