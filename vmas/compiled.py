"""Machine code that numba keeps on disk, filled by one process at a time.

numba's file cache gives no protection against two processes that fill it at once: one may load the machine code of
another function than it asked for, and crash. So whoever may be the first to compile holds a lock between processes:
around the import of librosa's compiled parts, and around the first step of the decoding engine.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmas import paths

if TYPE_CHECKING:
    from types import ModuleType

_filled: set[Hashable] = set()
LIBROSA = ("util", "filters", "onset", "feature", "core.audio", "core.spectrum", "core.pitch")  # of onset detection


def librosa_is_made() -> bool:
    """Whether librosa's compiled functions are on disk beside it, so that loading them takes seconds."""
    found = find_spec("librosa")
    folders = (found.submodule_search_locations if found else None) or []
    return any(next(Path(f).glob("util/__pycache__/*.nbi"), None) for f in folders)


def lock() -> Any:
    """A lock between processes on `VMAS_CACHE`/numba; none where that folder cannot be written."""
    from filelock import FileLock

    folder = paths.cache() / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError:
        return nullcontext()
    return FileLock(folder / "lock")


@contextmanager
def filling(key: Hashable) -> Iterator[None]:
    """Hold the lock when this process comes here with `key` for the first time; do nothing later."""
    if key in _filled:
        yield
        return
    with lock():
        yield
    _filled.add(key)


def librosa(*more: str) -> "ModuleType":
    """The librosa package, its compiled functions made (half a minute, once per environment) or loaded.

    Those of onset detection, and of the modules named in `more`: `beat`, for one, compiles anew in every process.
    """
    key = "librosa", *more
    with filling(key):
        package = import_module("librosa")
        if key not in _filled:
            for part in (*LIBROSA, *more):
                import_module(f"librosa.{part}")
    return package
