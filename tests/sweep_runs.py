"""Records of runs made up for tests of the sweeps."""

import numpy as np

from vmas.records import Record, Row

DATA = "corpus"
METRIC = "MV Align (2025, 9.6 fps)"


def made(seed: int, per_clip, fad: float = 1.0, name: str = "x") -> Record:
    values = np.asarray(per_clip, float)
    same = {"n": len(values), "seeds": 1, "status": "smoke"}
    rows = (
        Row(name, DATA, "FAD (codec)", "down", fad, (fad - 0.1, fad + 0.1), **same),
        Row(name, DATA, METRIC, "up", float(np.nanmean(values)), chance=0.2, **same),
    )
    kept = {DATA: {METRIC: [None if np.isnan(x) else float(x) for x in values]}}
    extra = {"seed": seed, "per_clip": kept, "curve": []}
    prov = {"wall_s": 60.0, "data_sha256": "d", "checkpoint_sha256": f"c{seed}"}
    return Record(f"t-{name}", "smoke", name, f"{name}{seed}", rows, prov, extra)
