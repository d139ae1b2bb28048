"""Does this environment hold what requirements.lock pins? Run as a script; needs no project package.

    python vmas/pins.py requirements.lock      # exit 0 when every pin is met, 1 with the differences

A local build tag does not count as a difference (torch 2.11.0+cpu satisfies torch==2.11.0).
"""

import re
import sys
from importlib import metadata
from pathlib import Path

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)\s*(?:;\s*(.*?))?\s*\\?$")


def read_pins(lock) -> list[tuple[str, str, str]]:
    """(name, version, marker) of every pin in a requirements file; the marker may be empty."""
    rows = (_PIN.match(line) for line in Path(lock).read_text(encoding="utf-8").splitlines())
    return [(m[1], m[2], m[3] or "") for m in rows if m]


def applicable(pins) -> dict[str, str]:
    """name → version of the pins whose environment marker holds on this machine."""
    from packaging.markers import Marker

    return {name: version for name, version, marker in pins if not marker or Marker(marker).evaluate()}


def differences(lock) -> list[str]:
    """One line per pin that this environment does not meet."""
    out = []
    for name, version in applicable(read_pins(lock)).items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        if found is None or found.split("+")[0] != version.split("+")[0]:
            out.append(f"{name}: pinned {version}, found {found or 'nothing'}")
    return out


if __name__ == "__main__":
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        sys.exit(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}")
    try:
        lines = differences(sys.argv[1])
    except ImportError:
        lines = ["packaging: found nothing"]
    if lines:
        sys.exit("\n".join(lines[:20]))
