"""What the benchmarks measured, as JSON with hardware and versions: `--json FILE`."""

import json
import sys
from importlib import metadata
from pathlib import Path

from vmas import records

PACKAGES = ("numpy", "torch", "av", "opencv-python-headless", "librosa", "webdataset", "pyarrow")


def write(path, figures: dict) -> None:
    """One file of a benchmark's figures; parts that an earlier run measured and this one did not stay."""
    path = Path(path)
    before = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    about = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": records.hardware(),
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), **{n: metadata.version(n) for n in PACKAGES}},
    }
    figures = {k: {**v, **about} if isinstance(v, dict) else v for k, v in figures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": before | figures}, indent=1) + "\n", encoding="utf-8")
