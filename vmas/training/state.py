"""Everything that a training run needs to go on, as safetensors and JSON: no pickles.

Nested dicts and lists of tensors and plain values (as `optimizer.state_dict()` gives them) are split
into a flat table of tensors and a JSON skeleton that points into it, so that a restored run continues
bit for bit.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vmas.errors import CheckpointError


def _pack(value: Any, where: str, tensors: dict) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        tensors[where] = value.detach().cpu().contiguous().clone()
        return {"tensor": where}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, f"{where}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(v, f"{where}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    raise TypeError(f"training state holds a {type(value).__name__} at {where}, which cannot be stored")


def _unpack(node: dict, tensors: dict) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in value}
    if kind in ("list", "tuple"):
        items = [_unpack(v, tensors) for v in value]
        return tuple(items) if kind == "tuple" else items
    return value


def _to_disk(path) -> None:
    """Wait until a file or folder has reached the disk: a rename may otherwise outlive what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_state(folder, state: dict) -> None:
    """Write `state` to `folder`; the folder appears whole or the old one stays."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict = {}
    skeleton = _pack(state, "", tensors)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(tensors, str(aside / "state.safetensors"))
        (aside / "state.json").write_text(json.dumps(skeleton), encoding="utf-8")
        for path in (*aside.iterdir(), aside):
            _to_disk(path)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(aside, folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder) -> None:
    """Remove from `folder` what a kill in the middle of `save_state` left: unfinished states, and old ones replaced.

    Only the run that owns the folder may call it.
    """
    for path in Path(folder).glob(".*.*"):
        name = path.name.removeprefix(".").rpartition(".")[0]
        only = path.name.endswith(".old") and not path.with_name(name).exists()  # its successor never came
        if path.is_dir() and not only and (name == "best" or name.startswith("step-")):
            shutil.rmtree(path, ignore_errors=True)


def load_state(folder) -> dict | None:
    """The state in `folder`, or None when there is none. Raises CheckpointError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not folder.is_dir():
        # A run killed between the two renames of `save_state` left the previous state aside.
        folder = folder.with_name(f".{folder.name}.old")
        if not folder.is_dir():
            return None
    try:
        tensors = load_file(str(folder / "state.safetensors"))
        return _unpack(json.loads((folder / "state.json").read_text(encoding="utf-8")), tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise CheckpointError(folder, "the training state is damaged", "remove the folder to start afresh") from e


class Checkpoints:
    """The states of one run in `folder`: `step-00000100`, ...; the last `keep` are kept.

    A state appears whole or not at all, so a run killed at any moment finds the one before.
    """

    def __init__(self, folder, keep: int = 2):
        self.folder, self.keep = Path(folder), max(1, keep)
        self.damaged: list[Path] = []

    def steps(self) -> list[int]:
        """The steps whose states are here, ascending."""
        found = (p.name.removeprefix("step-") for p in self.folder.glob("step-*") if p.is_dir())
        return sorted(int(n) for n in found if n.isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, state: dict) -> None:
        save_state(self.path(step), state)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)

    def load(self) -> dict | None:
        """The newest state that can be read, or None where there is none; those passed over are in `damaged`.

        Raises CheckpointError when all are damaged.
        """
        self.damaged, problem = [], None
        for step in reversed(self.steps()):
            try:
                return load_state(self.path(step))
            except CheckpointError as e:
                self.damaged.append(self.path(step))
                problem = problem or e
        if problem:
            raise problem
        return None
