"""What a smoke run must have shown. Its numbers mean nothing, but a line of stages that works gives these at least."""

import math
from typing import Any

from vmas.errors import DataError
from vmas.records import Record


def check(record: Record, real: str, training: dict[str, Any], bins: int) -> None:
    """Raises DataError that names everything amiss in a smoke run of a table.

    Nothing is asked of the generated music (a `Row` refuses values that are not finite). The clips' own music, row
    `real`, follows their pictures better than the pictures of others (MV Align above its chance); training (the
    checkpoint's record by stages) ended with finite losses, and stage 2 with a cross-entropy below ln `bins`, that of
    guessing.
    """
    amiss = []
    for r in record.rows:
        if r.system != real or not r.metric.startswith("MV Align"):
            continue
        if r.value is None or r.chance is None:
            amiss.append(f"{r.metric} of '{real}' ({r.dataset}) has no value or no chance")
        elif not r.value > r.chance:
            amiss.append(f"{r.metric} of '{real}' ({r.dataset}) is {r.value:.3f}, not above its chance {r.chance:.3f}")
    for stage in ("motion", "music", "vmas"):
        losses = {k: v for k, v in training.get(stage, {}).get("val", {}).items() if k != "step"}
        amiss += [f"the last {k} of stage {stage} is {v}" for k, v in losses.items() if not math.isfinite(v)]
    ce = training.get("vmas", {}).get("val", {}).get("ce")
    if ce is None or not ce < math.log(bins):
        amiss.append(f"cross-entropy ended at {ce}, not below ln {bins} = {math.log(bins):.3f}")
    if amiss:
        raise DataError("the smoke run is broken: " + "; ".join(amiss))
