"""Optical-flow magnitude per frame pair behind one interface: Farneback, DIS and RAFT (section 4.4).

The paper uses RAFT [49]; MV Align [56] uses Farneback, whose parameters stand here. Magnitudes are in
pixels per frame at the size that the flow is computed at. Results are kept on disk, since a clip's
flow is asked for by training, by eq. 3 and by MV Align.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as cached
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vmas import paths
from vmas.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    import torch

CACHE_VERSION = 1
RAFT_MIN_SIZE = 128  # smallest side that torchvision's correlation pyramid takes
RAFT_STRIDE = 8
DIS_MIN_SIZE = 12  # OpenCV refuses frames with both sides below, and is not to be trusted near it

# TempoTokens av_align.py: pyr_scale, levels, winsize, iterations, poly_n, poly_sigma, flags.
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)


class FlowEstimator(Protocol):
    """Maps frames uint8 [T,H,W,3] (RGB, T ≥ 2) to the mean flow magnitude of each pair, float32 [T-1].

    `key` names method, parameters and version: two estimators with one key give the same numbers.
    """

    key: str

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


class FarnebackFlow:
    """Farneback's polynomial expansion on grey frames, with the parameters of MV Align's reference."""

    key = "farneback-1"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return _dense_flow(frames, _farneback)


class DISFlow:
    """Dense inverse search on grey frames, OpenCV's medium preset."""

    key = "dis-1"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import cv2

        if min(frames.shape[1:3]) < DIS_MIN_SIZE:
            raise DataError(f"DIS flow needs sides of at least {DIS_MIN_SIZE} pixels, got {frames.shape[1:3]}")
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return _dense_flow(frames, dis.calc)


class RAFTFlow:
    """RAFT, torchvision's raft_large with the weights C_T_SKHT_V2 (BSD-3-Clause), as in the paper.

    `model` injects another torchvision RAFT (tests use one with random weights; give it its own `key`).
    Frames are resized to sides that are multiples of 8 and at least 128; the flow is scaled back to
    pixels of the given frames. Raises WeightsUnavailable when the weights are not on this machine.
    """

    def __init__(
        self,
        model: "torch.nn.Module | None" = None,
        key: str | None = None,
        device: str = "cpu",
        batch_size: int = 4,
        updates: int = 12,
    ):
        if model is not None and key is None:
            raise UsageError("an injected RAFT model needs a key, since its flow is cached under it")
        self.model = (raft_large() if model is None else model).eval().to(device)
        self.key = f"{key or 'raft-C_T_SKHT_V2-1'}-{updates}"
        self.device, self.batch_size, self.updates = device, batch_size, updates

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        H, W = frames.shape[1:3]
        h, w = (max(RAFT_MIN_SIZE, -(-side // RAFT_STRIDE) * RAFT_STRIDE) for side in (H, W))
        scale = torch.tensor([W / w, H / h], device=self.device).view(1, 2, 1, 1)
        out = np.empty(len(frames) - 1, np.float32)
        with torch.inference_mode():
            for i in range(0, len(out), self.batch_size):
                part = torch.from_numpy(frames[i : i + self.batch_size + 1]).to(self.device)
                x = part.permute(0, 3, 1, 2).float() / 127.5 - 1
                if (h, w) != (H, W):
                    x = F.interpolate(x, (h, w), mode="bilinear", align_corners=False, antialias=True)
                flow = self.model(x[:-1], x[1:], num_flow_updates=self.updates)[-1] * scale
                out[i : i + self.batch_size] = flow.norm(dim=1).mean(dim=(1, 2)).cpu().numpy()
        return out


def raft_large() -> "torch.nn.Module":
    """torchvision's raft_large with the paper-scale weights from `VMAS_WEIGHTS`.

    Raises WeightsUnavailable (which file, where from, which licence) or CheckpointError.
    """
    import torch
    from torchvision.models.optical_flow import raft_large as build

    from vmas import weights

    state = torch.load(weights.locate("raft_large"), map_location="cpu", weights_only=True)
    model = build(weights=None)
    model.load_state_dict(state)
    return model


ESTIMATORS: dict[str, Callable[[], FlowEstimator]] = {"farneback": FarnebackFlow, "dis": DISFlow, "raft": RAFTFlow}


@cached
def build_estimator(method: str) -> FlowEstimator:
    """The estimator `farneback`, `dis` or `raft`, built once. Raises UsageError for another name."""
    if method not in ESTIMATORS:
        raise UsageError(f"unknown flow method {method!r}: {nearest(method, ESTIMATORS)}")
    return ESTIMATORS[method]()


def flow_magnitude(
    frames: np.ndarray, method: str | FlowEstimator = "farneback", size: int | None = None, cache: bool = True
) -> np.ndarray:
    """Mean optical-flow magnitude of consecutive frames, float32 [T-1], pixels per frame.

    `frames` uint8 [T,H,W,3] RGB; `method` a name or an estimator; `size` scales the shorter side
    first (None = as they are), and the magnitude is then in pixels of that size. `cache` keeps the
    result under the cache folder. One frame gives an empty array.
    Raises DataError for frames of another kind, UsageError for an unknown method or size.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise DataError(f"optical flow needs frames uint8 [T,H,W,3], got {frames.dtype} {list(frames.shape)}")
    if size is not None and size < 1:
        raise UsageError(f"flow size must be a positive number of pixels, got {size}")
    if len(frames) == 1:
        return np.zeros(0, np.float32)
    estimator = build_estimator(method) if isinstance(method, str) else method
    kept = cache_path(frames, estimator.key, size) if cache else None
    if kept is not None and (found := _read(kept, len(frames) - 1)) is not None:
        return found
    flow = estimator(frames if size is None else _resize(frames, size))
    if kept is not None:
        _write(kept, flow)
    return flow


def cache_path(frames: np.ndarray, key: str, size: int | None) -> Path:
    """File of a result: sha256 of the frames' bytes and shape, the estimator's key, the size and the version."""
    h = hashlib.sha256(f"{CACHE_VERSION}|{key}|{size}|{frames.shape}".encode())
    h.update(np.ascontiguousarray(frames).data)
    name = h.hexdigest()
    return paths.cache() / "flow" / name[:2] / f"{name}.npy"


def repeatable(frames: np.ndarray) -> np.ndarray:
    """`FarnebackFlow`, the same to the last bit in every process.

    cv2.magnitude is not: it takes other instructions where numpy happened to put an array at another address, and
    the last bit of the mean follows. What cv2 returns as flow does not depend on that.
    """
    return _dense_flow(frames, _farneback, lambda flow: np.sqrt(np.square(flow).sum(-1)).mean(dtype=np.float64))


def _farneback(before: np.ndarray, after: np.ndarray, start: Any) -> np.ndarray:
    import cv2

    return cv2.calcOpticalFlowFarneback(before, after, start, *FARNEBACK)


def _mean(flow: np.ndarray) -> float:
    import cv2

    return cv2.mean(cv2.magnitude(flow[..., 0], flow[..., 1]))[0]


def _dense_flow(frames: np.ndarray, pair_flow: Callable, mean: Callable[[np.ndarray], float] = _mean) -> np.ndarray:
    import cv2

    out = np.empty(len(frames) - 1, np.float32)
    with _one_thread():
        before = cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)
        for i, frame in enumerate(frames[1:]):
            after = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            flow = pair_flow(before, after, None)  # DIS would start from a given flow; every pair stands alone
            out[i] = mean(flow)
            before = after
    return out


def _resize(frames: np.ndarray, size: int) -> np.ndarray:
    import cv2

    H, W = frames.shape[1:3]
    scale = size / min(H, W)
    shape = (max(1, round(W * scale)), max(1, round(H * scale)))
    if shape == (W, H):
        return frames
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    with _one_thread():
        return np.stack([cv2.resize(f, shape, interpolation=how) for f in frames])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Clips are shared out over processes; OpenCV's own threads would only get in their way."""
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _read(path: Path, pairs: int) -> np.ndarray | None:
    try:
        flow = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # absent or damaged: computed again
    return flow if flow.shape == (pairs,) and flow.dtype == np.float32 else None


def _write(path: Path, flow: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    np.save(aside, flow)
    os.replace(aside, path)
