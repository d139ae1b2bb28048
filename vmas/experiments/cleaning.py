"""Section 6.2, data cleaning: train on dirty videos and on what the filters leave of them.

The paper compares all of DISCO-10M with what its filter leaves, 15.3M videos with 2.2M. Here the faults are known, so
two controls stand beside: as many dirty clips as the filter leaves (quality apart from number) and the still pictures
left out by the truth (the filter's mistakes). All rows have the same number of updates and the same stage 1.
"""

import dataclasses

from vmas.config import Profile
from vmas.experiments import sweep
from vmas.experiments.sweep import Condition
from vmas.records import Record

TARGET = "cleaning"
TITLE = "Section 6.2. Data cleaning"
QUOTED = ("cleaning",)
REFERENCE = "dirty"
CONDITIONS: tuple[Condition, ...] = (
    Condition("dirty", "Unfiltered", paper="full DISCO-10M", data="dirty", about="all dirty clips"),
    Condition(
        "similarity",
        "Frame similarity < 0.7",
        paper="filtered DISCO-MV",
        data="similarity",
        about="the filter of section 3",
    ),
    Condition(
        "dirty-same",
        "Unfiltered, as few clips",
        data="dirty-same",
        about="as many dirty clips as the filter leaves, drawn by the seed",
    ),
    Condition(
        "moving", "Moving by the truth", data="moving", about="still pictures left out by what the corpus knows of them"
    ),
    Condition("filtered", "All filters", data="filtered", about="duplicates left out and vocals removed besides"),
)
PAPER = tuple(c.name for c in CONDITIONS if c.paper)
TOLD = tuple(c.name for c in CONDITIONS if c.name != REFERENCE)
PAIRS = (
    ("similarity", "dirty-same"),  # what the filter changes beside the number of clips
    ("similarity", "moving"),  # what its mistakes cost
    ("filtered", "similarity"),
)
EVERY_SEED = PAPER
VARIANT_SEEDS = 3


def finish(record: Record, profile: Profile, file: str | None = None) -> Record:
    """The record with what every row was trained on, as its first seed's run found it (`cleaning_data.composition`)."""
    found = sweep.recorded(TARGET, CONDITIONS, file or profile.name)
    sets = {c.label: found[c.name][0].extra["set"] for c in CONDITIONS if found.get(c.name)}
    return dataclasses.replace(record, extra={**record.extra, "sets": sets})
