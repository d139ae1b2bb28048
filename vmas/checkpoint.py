"""Checkpoint folders: `model.safetensors` beside a `manifest.json` that says what it is.

The manifest holds the kind of model, the sha256 of the weights, the config that builds it, the
seed and the record of its training. Weights are checked against the sha256 before any is used;
nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vmas.errors import CheckpointError

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"


def file_sha256(path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save(folder, state: dict, kind: str, config: dict, seed: int = 0, training: dict | None = None, half=False) -> Path:
    """Write `state` (name → tensor) and its manifest; the folder appears whole or not at all.

    `half=True` stores floating tensors in float16, which halves what is committed.
    """
    import torch
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def stored(t):
        t = t.detach().cpu().contiguous()
        return t.to(torch.float16) if half and t.is_floating_point() else t.clone()

    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file({k: stored(v) for k, v in state.items()}, str(aside / WEIGHTS))
        manifest = {
            "kind": kind,
            "sha256": file_sha256(aside / WEIGHTS),
            "config": config,
            "seed": seed,
            "training": training or {},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _put(aside: Path, folder: Path) -> None:
    """Let the finished folder `aside` take the place of `folder`."""
    os.chmod(aside, 0o755)
    if folder.exists():
        old = aside.with_name(aside.name + ".old")
        os.replace(folder, old)
        os.replace(aside, folder)
        shutil.rmtree(old)
    else:
        os.replace(aside, folder)


def copy(source, folder) -> Path:
    """A checkpoint's two files at another place, whole or not at all. Raises CheckpointError where there is none."""
    source, folder = Path(source), Path(folder)
    read_manifest(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name in (WEIGHTS, MANIFEST):
            shutil.copyfile(source / name, aside / name)
        _put(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def read_manifest(folder, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint folder. Raises CheckpointError when missing or of another kind."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(folder, "no checkpoint here", f"a checkpoint folder holds {WEIGHTS} and {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sha256, found = manifest["sha256"], manifest["kind"]
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(path, "the manifest is damaged", "restore it or train again") from e
    if kind is not None and found != kind:
        raise CheckpointError(folder, f"this is a checkpoint of kind {found!r}, not {kind!r}")
    if not isinstance(sha256, str):
        raise CheckpointError(path, "the manifest is damaged", "restore it or train again")
    return manifest


def shas(root, *names: str) -> dict[str, str]:
    """sha256 of the checkpoints of these names under `root`; "absent" where a run will make one first."""
    root = Path(root)
    there = {name: (root / name / MANIFEST).is_file() for name in names}
    return {name: read_manifest(root / name)["sha256"] if there[name] else "absent" for name in names}


def state_sha256(state: dict) -> str:
    """sha256 of a state dict's names, dtypes, shapes and bits, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        x = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def verify(folder, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint whose weights have the sha256 that it names. Raises CheckpointError."""
    manifest = read_manifest(folder, kind)
    weights = Path(folder) / WEIGHTS
    if file_sha256(weights) != manifest["sha256"]:
        raise CheckpointError(
            weights, "the weights differ from the manifest's sha256", "restore the file or train again"
        )
    return manifest


def load(folder, kind: str | None = None) -> tuple[dict, dict]:
    """(state in float32, manifest) after checking the sha256. Raises CheckpointError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = verify(folder, kind)
    weights = Path(folder) / WEIGHTS
    try:
        state = load_file(str(weights))
    except SafetensorError as e:
        raise CheckpointError(weights, f"not a safetensors file: {e}") from e
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, manifest


def load_into(module, state: dict, folder) -> None:
    """Load `state` strictly into `module`. Raises CheckpointError naming the first tensor that does not fit."""
    own = module.state_dict()
    for name in sorted(set(own) | set(state)):
        if name not in state:
            raise CheckpointError(folder, f"tensor {name} is missing: the checkpoint is of another architecture")
        if name not in own:
            raise CheckpointError(folder, f"tensor {name} is unknown: the checkpoint is of another architecture")
        if own[name].shape != state[name].shape:
            raise CheckpointError(
                folder,
                f"tensor {name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}:"
                " the checkpoint is of another architecture",
            )
    module.load_state_dict(state)
