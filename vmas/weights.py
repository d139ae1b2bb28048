"""Public weights that the paper profile uses: what they are, where they come from, under which licence.

`VMAS_WEIGHTS` names a folder of local copies (files named as in `REGISTRY`). Without it `fetch`
downloads into the cache, and only when asked. Where the publisher puts a hash in the file's name it
is checked; otherwise the sha256 of the first download is written to `weights.lock.json` beside the
files, and every later use is checked against it. Nothing is ever replaced by a smaller model.
Models of several files are pinned to a commit of their repository; a copy may hold `model.safetensors`
in place of `pytorch_model.bin`.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vmas import paths
from vmas.checkpoint import file_sha256
from vmas.errors import CheckpointError, UsageError, WeightsUnavailable, nearest


@dataclass(frozen=True)
class Weights:
    """One published file, or the `files` of a folder `file`, of which `source` is the address above them. `hash_prefix`
    are the leading digits of a file's sha256 where the publisher gives them."""

    name: str
    file: str
    source: str
    licence: str
    used_for: str
    hash_prefix: str = ""
    files: tuple[str, ...] = ()

    def parts(self) -> list[tuple[str, str]]:
        """(path in `folder()`, address) of every file."""
        return [(f"{self.file}/{f}", self.source + f) for f in self.files] or [(self.file, self.source)]


PICKLED, SAFE = "pytorch_model.bin", "model.safetensors"
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
        Weights(
            "clip_vit_b32",
            "clip",
            "https://huggingface.co/openai/clip-vit-base-patch32/resolve/3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268/",
            "MIT",
            "frame similarity (section 3)",
            files=("config.json", PICKLED),
        ),
        Weights(
            "htdemucs",
            "demucs/955717e8-8726e21a.th",
            "https://dl.fbaipublicfiles.com/demucs/hybrid_transformer/955717e8-8726e21a.th",
            "MIT",
            "vocal removal (section 3)",
            "8726e21a",
        ),
        Weights(
            "clap_htsat_unfused",
            "clap",
            "https://huggingface.co/laion/clap-htsat-unfused/resolve/8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a/",
            "Apache-2.0",
            "genres (appendix D)",
            files=(
                "config.json",
                "merges.txt",
                "preprocessor_config.json",
                PICKLED,
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.json",
            ),
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


def _missing(w: Weights) -> list[str]:
    return [f for f, _ in w.parts() if not _local(f).is_file()]


def _local(file: str) -> Path:
    path = folder() / file
    safe = path.with_name(SAFE)
    return safe if path.name == PICKLED and safe.is_file() else path


def status(name: str) -> str:
    """`present` or `absent`; does not read the files."""
    return "absent" if _missing(get(name)) else "present"


def locate(name: str, otherwise: str = "") -> Path:
    """Path of a local copy, checked. Raises WeightsUnavailable (which file, where from, which licence, and what to do
    `otherwise`)."""
    w = get(name)
    if missing := _missing(w):
        what = f"{w.file} lacks {', '.join(missing)}" if w.files and len(missing) < len(w.files) else w.file
        raise WeightsUnavailable(
            f"{what} {'in' if what != w.file else 'is not in'} {folder()}: run 'vmas weights fetch {name}', or put a"
            f" copy there (from {w.source}, licence {w.licence}), or name the folder in VMAS_WEIGHTS"
            + (f"; {otherwise}" if otherwise else "")
        )
    verify(name)
    return folder() / w.file


def verify(name: str) -> str:
    """sha256 of the local copy (of a folder: of its files' names and hashes) after checking it; the files are read, no
    model is made. Raises WeightsUnavailable, CheckpointError when it differs from what is known."""
    w = get(name)
    if missing := _missing(w):
        raise WeightsUnavailable(f"{missing[0]} is not in {folder()}: run 'vmas weights fetch {name}'")
    sha, known = _sha256(w), _lock().get(name, "")
    if not sha.startswith(w.hash_prefix) or (known and sha != known):
        raise CheckpointError(folder() / w.file, "its sha256 is not the known one", "remove it and fetch it again")
    return sha


def _sha256(w: Weights) -> str:
    paths = [_local(f) for f, _ in w.parts()]
    hashes = [_file_sha256(p, p.stat().st_mtime_ns, p.stat().st_size) for p in paths]
    if not w.files:
        return hashes[0]
    return hashlib.sha256("".join(f"{p.name} {h}\n" for p, h in zip(paths, hashes, strict=True)).encode()).hexdigest()


@lru_cache
def _file_sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)


def fetch(name: str, progress: bool = True) -> Path:
    """Download into `folder()` (of several files what is missing), note the sha256. Raises WeightsUnavailable when the
    network refuses."""
    from torch.hub import download_url_to_file

    w = get(name)
    path = folder() / w.file
    for file, address in w.parts() if not w.files else [p for p in w.parts() if p[0] in _missing(w)]:
        (folder() / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            # torch writes aside and renames, so an interrupted download leaves nothing under the final name
            download_url_to_file(address, str(folder() / file), w.hash_prefix or None, progress=progress)
        except (OSError, RuntimeError) as e:
            raise WeightsUnavailable(f"{file} could not be downloaded from {address}: {e}") from e
    lock = {**_lock(), name: _sha256(w)}
    aside = folder() / ".weights.lock.json"
    aside.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(aside, folder() / "weights.lock.json")
    return path
