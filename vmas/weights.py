"""Public weights that the paper profile uses: what they are, where they come from, under which licence.

`VMAS_WEIGHTS` names a folder of local copies (files named as in `REGISTRY`). Without it `fetch`
downloads into the cache, and only when asked. Where the publisher puts a hash in the file's name it
is checked; otherwise the sha256 of the first download is written to `weights.lock.json` beside the
files, and every later use is checked against it. Nothing is ever replaced by a smaller model.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vmas import paths
from vmas.checkpoint import file_sha256
from vmas.errors import CheckpointError, UsageError, WeightsUnavailable, nearest


@dataclass(frozen=True)
class Weights:
    """One published file. `hash_prefix` are the leading digits of its sha256 where the publisher gives them."""

    name: str
    file: str
    source: str
    licence: str
    used_for: str
    hash_prefix: str = ""


_HIERA = "https://dl.fbaipublicfiles.com/hiera/"
REGISTRY = {
    w.name: w
    for w in (
        Weights(
            "hiera_base_16x224",
            "hiera_base_16x224.pth",
            _HIERA + "hiera_base_16x224.pth",
            "CC-BY-NC 4.0",
            "video encoder (section 4.2)",
        ),
        Weights(
            "hiera_base_224",
            "hiera_base_224.pth",
            _HIERA + "hiera_base_224.pth",
            "CC-BY-NC 4.0",
            "video encoder from image weights",
        ),
        Weights(
            "musicgen_medium",
            "musicgen-medium-state_dict.bin",
            "https://huggingface.co/facebook/musicgen-medium/resolve/main/state_dict.bin",
            "CC-BY-NC 4.0",
            "music decoder (appendix B)",
        ),
        Weights(
            "encodec_32khz",
            "encodec-32khz-state_dict.bin",
            "https://huggingface.co/facebook/musicgen-medium/resolve/main/compression_state_dict.bin",
            "CC-BY-NC 4.0",
            "audio codec (appendix B)",
        ),
        Weights(
            "raft_large",
            "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
            "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
            "BSD-3-Clause",
            "optical flow (section 4.4)",
            "ff5fadd5",
        ),
        Weights(
            "vggish",
            "vggish-10086976.pth",
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
            "Apache-2.0",
            "FAD (section 5.2)",
            "10086976",
        ),
        Weights(
            "music_tagger_teacher",
            "teacher.ckpt",
            "https://github.com/minzwon/semi-supervised-music-tagging-transformer/raw/master/data/teacher.ckpt",
            "MIT",
            "KL (section 5.2)",
        ),
    )
}


def folder() -> Path:
    """`VMAS_WEIGHTS`, else `weights/` in the cache."""
    return Path(os.environ.get("VMAS_WEIGHTS") or paths.cache() / "weights")


def get(name: str) -> Weights:
    """The entry `name`. Raises UsageError with the nearest names."""
    if name not in REGISTRY:
        raise UsageError(f"unknown weights {name!r}: {nearest(name, REGISTRY)}")
    return REGISTRY[name]


def _lock() -> dict[str, str]:
    path = folder() / "weights.lock.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def status(name: str) -> str:
    """`present` or `absent`; does not read the file."""
    return "present" if (folder() / get(name).file).is_file() else "absent"


def locate(name: str) -> Path:
    """Path of a local copy, checked. Raises WeightsUnavailable (which file, where from, which licence)."""
    w = get(name)
    path = folder() / w.file
    if not path.is_file():
        raise WeightsUnavailable(
            f"{w.file} is not in {folder()}: run 'vmas weights fetch {name}', or put a copy there"
            f" (from {w.source}, licence {w.licence}), or name the folder in VMAS_WEIGHTS"
        )
    verify(name)
    return path


def verify(name: str) -> str:
    """sha256 of the local copy after checking it. Raises CheckpointError when it differs from what is known."""
    w = get(name)
    path = folder() / w.file
    if not path.is_file():
        raise WeightsUnavailable(f"{w.file} is not in {folder()}: run 'vmas weights fetch {name}'")
    sha = file_sha256(path)
    known = _lock().get(name, "")
    if not sha.startswith(w.hash_prefix) or (known and sha != known):
        raise CheckpointError(path, "its sha256 is not the known one", "remove the file and fetch it again")
    return sha


def fetch(name: str, progress: bool = True) -> Path:
    """Download a file into `folder()` and note its sha256. Raises WeightsUnavailable when the network refuses."""
    from torch.hub import download_url_to_file

    w = get(name)
    path = folder() / w.file
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # torch writes aside and renames, so an interrupted download leaves nothing under the final name
        download_url_to_file(w.source, str(path), w.hash_prefix or None, progress=progress)
    except (OSError, RuntimeError) as e:
        raise WeightsUnavailable(f"{w.file} could not be downloaded from {w.source}: {e}") from e
    lock = {**_lock(), name: file_sha256(path)}
    aside = path.with_name(".weights.lock.json")
    aside.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(aside, path.with_name("weights.lock.json"))
    return path
