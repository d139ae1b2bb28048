"""Frame similarity of a video (section 3): which frames are looked at, and with which features.

The paper keeps a video whose mean pairwise frame similarity is below 0.7 and names neither features nor rate. Here
one frame a second is taken, at most 64 over the video. From a long video only keyframes are decoded, one seek each;
a short one, or one with too few keyframes, is decoded as it plays. Features are CLIP image embeddings at paper
scale, and offline a cheap embedding of colours, edges and DCT coefficients, whose parts are centred so that
unlike pictures lie near 0 and not near 1. The closed form of the mean is in `vmas.metrics.similarity`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vmas.dataset.fingerprints import MARGINS, PICTURES_S, inner_hashes, picture_hash
from vmas.errors import DataError, MediaError, UsageError, nearest
from vmas.metrics.similarity import frame_similarity

if TYPE_CHECKING:
    import av
    import torch

FPS = 1.0
MOST = 64  # frames of one video
LONG_S = 60.0  # from here on only keyframes are decoded
FEWEST = 8  # keyframes at different times, below which a long video is decoded at the asked times
SIZE = 64  # side of the pictures that the cheap embedding sees
CLIP_SIZE = 224
CLIP, OFFLINE = "clip_vit_b32", "offline use --frames cheap"


class FrameEmbedder(Protocol):
    """Frames uint8 [T,size,size,3] RGB → features float32 [T,D]; equal `key`, equal numbers."""

    key: str
    size: int

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


class CheapEmbedder:
    """Colour, edges and DCT coefficients of a picture, float32 [T,4227].

    Three parts of unit length, weighted so that a cosine is their mean with the weights of `SHARES`: a square-rooted
    HSV histogram (8·4·4 bins) less its mean; gradient magnitude and double-angle orientation on a 32·32 grid, each
    plane less its mean; the lowest 32·32 DCT coefficients of the grey picture times their frequency, without the
    constant. A part that is empty (a picture of one colour has no edges) stands at one fixed place of its own.
    """

    key = "cheap-1"
    size = SIZE
    SHARES = (0.10, 0.45, 0.45)
    GRID = 32

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([self._one(f) for f in frames])

    def _one(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        parts = (self._colour(frame), self._edges(grey), self._dct(grey))
        return np.concatenate([np.sqrt(s) * _unit(p) for s, p in zip(self.SHARES, parts, strict=True)])

    def _colour(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        h = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]).ravel()
        h = np.sqrt(h / h.sum())
        return h - h.mean()

    def _edges(self, grey: np.ndarray) -> np.ndarray:
        import cv2

        x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        m = np.hypot(x, y)
        planes = (m, (x * x - y * y) / (m + 1e-6), 2 * x * y / (m + 1e-6))
        shape = (self.GRID, self.GRID)
        v = np.stack([cv2.resize(p, shape, interpolation=cv2.INTER_AREA) for p in planes])
        return (v - v.mean((1, 2), keepdims=True)).ravel()

    def _dct(self, grey: np.ndarray) -> np.ndarray:
        import cv2

        n = self.GRID
        return (cv2.dct(grey)[:n, :n] * np.hypot(*np.mgrid[:n, :n])).ravel()


def _unit(x: np.ndarray) -> np.ndarray:
    """float32 [D+1] of length 1; the last number is 1 where x is empty."""
    norm = float(np.linalg.norm(x))
    if norm < 1e-3:
        return np.append(np.zeros_like(x, np.float32), np.float32(1))
    return np.append(x / norm, 0).astype(np.float32)


class ClipEmbedder:
    """CLIP image embeddings, float32 [T,D] (Radford et al. 2021), by transformers' CLIPVisionModelWithProjection.

    The weights are a local copy of openai/clip-vit-base-patch32 (MIT), `vmas.weights`; a model may be injected together
    with a `key`. Raises WeightsUnavailable without a copy.
    """

    size = CLIP_SIZE
    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(
        self, model: "torch.nn.Module | None" = None, key: str = "", device: str = "cpu", batch_size: int = 32
    ):
        if model is not None and not key:
            raise UsageError("an injected CLIP model needs a key, since its embeddings are kept under it")
        self.model = (self._load() if model is None else model).eval().to(device)
        self.key, self.device, self.batch_size = key or self.stored_key(), device, batch_size

    @staticmethod
    def stored_key() -> str:
        """The key of the local copy, from its files alone. Raises WeightsUnavailable, CheckpointError."""
        from vmas import weights

        weights.locate(CLIP, OFFLINE)
        return f"clip-vit-base-patch32-{weights.verify(CLIP)[:16]}"

    @staticmethod
    def _load() -> "torch.nn.Module":
        from vmas import weights

        folder = weights.locate(CLIP, OFFLINE)
        from transformers import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch

        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.MEAN, self.STD))
        out = []
        with torch.inference_mode():
            for i in range(0, len(frames), self.batch_size):
                x = torch.from_numpy(frames[i : i + self.batch_size]).permute(0, 3, 1, 2).float() / 255
                got = self.model(pixel_values=((x - mean) / std).to(self.device)).image_embeds
                out.append(got.float().cpu().numpy())
        return np.concatenate(out)


EMBEDDERS: dict[str, type[CheapEmbedder] | type[ClipEmbedder]] = {"cheap": CheapEmbedder, "clip": ClipEmbedder}


def build_embedder(name: str, device: str = "cpu") -> FrameEmbedder:
    """The embedder `cheap` (always on the CPU) or `clip`. Raises UsageError for another name, WeightsUnavailable."""
    if name not in EMBEDDERS:
        raise UsageError(f"unknown frame embedder {name!r}: {nearest(name, EMBEDDERS)}")
    return ClipEmbedder(device=device) if name == "clip" else CheapEmbedder()


def embedder_key(name: str) -> str:
    """What `build_embedder(name).key` is, without loading a model. Raises as it does."""
    if name not in EMBEDDERS:
        raise UsageError(f"unknown frame embedder {name!r}: {nearest(name, EMBEDDERS)}")
    return ClipEmbedder.stored_key() if name == "clip" else CheapEmbedder.key


def similarity(pictures: np.ndarray, embed: FrameEmbedder) -> float:
    """Frame similarity of a video by the pictures uint8 [T,size,size,3] that are looked at; 1 for one picture, which
    has nothing to be compared with and is as still as a video can be."""
    return frame_similarity(embed(pictures)) if len(pictures) > 1 else 1.0


def sample_times(seconds: float, fps: float = FPS, most: int = MOST) -> np.ndarray:
    """Times in s from the start, at `fps`, at least two, spread evenly over the video where that would be over `most`.

    Raises DataError for a video without length.
    """
    if not seconds > 0:
        raise DataError("the video has no length")
    n = int(seconds * fps)
    if n > most:
        return (np.arange(most) + 0.5) * seconds / most
    return np.arange(n) / fps if n >= 2 else np.array([0.0, seconds / 2])


@dataclass(frozen=True, eq=False)
class Seen:
    """`frames` uint8 [T,size,size,3] at `sample_times`; of more pictures on the way, `hashes` uint64 [n] by
    `vmas.dataset.fingerprints`, `inner` uint64 [n,M] less its M margins, and `times` uint32 [n], ms from the start."""

    frames: np.ndarray
    times: np.ndarray
    hashes: np.ndarray
    inner: np.ndarray


def sample_frames(
    path, size: int, start_s: float = 0.0, duration_s: float | None = None, method: str = "auto"
) -> np.ndarray:
    """The frames of `watch` alone."""
    return watch(path, size, start_s, duration_s, method, prints=False).frames


def watch(
    path,
    size: int,
    start_s: float = 0.0,
    duration_s: float | None = None,
    method: str = "auto",
    prints: bool = True,
) -> Seen:
    """One decoding of a video or its part; the picture's shape is not kept.

    `method` "keyframes" takes the keyframe at or before each of `sample_times`, each once; "exact" the picture shown;
    "auto" chooses by the length, see above. With `prints` the pictures get hashes, and so do those between them in a
    short video, where they are decoded anyway: `PICTURES_S` a second. Raises MediaError.
    """
    from vmas import media

    if method not in ("auto", "keyframes", "exact"):
        raise UsageError(f"method must be auto, keyframes or exact, got {method!r}")
    seconds = media.probe(path).duration_s - start_s
    seconds = min(seconds, duration_s) if duration_s else seconds
    if seconds <= 0:
        raise MediaError(path, f"has no second {start_s:g}")
    times = sample_times(seconds)
    if method == "keyframes" or (method == "auto" and seconds >= LONG_S):
        seen = _seen(_keyframes(path, start_s + times), size, start_s, prints)
        if len(seen.frames) >= FEWEST or method == "keyframes":
            return seen
    more = np.arange(0, seconds, 1 / PICTURES_S) if prints and seconds < LONG_S else times
    every = np.union1d(times, more)
    return _seen(_shown(path, start_s + every), size, start_s, prints, wanted=np.isin(every, times))


def _seen(pictures: "Iterator[tuple[float, av.VideoFrame]]", size: int, start_s: float, prints: bool, wanted=None):
    frames, times, hashes, inner = [], [], [], []
    for n, (t, frame) in enumerate(pictures):
        small = _small(frame, SIZE) if prints or size == SIZE else None
        if prints and small is not None:
            times.append(max(0, round(1000 * (t - start_s))))
            hashes.append(picture_hash(small))
            inner.append(inner_hashes(small))
        if wanted is None or wanted[n]:
            frames.append(small if small is not None and size == SIZE else _small(frame, size))
    cut = np.array(inner, np.uint64).reshape(-1, len(MARGINS))
    return Seen(np.stack(frames), np.array(times, np.uint32), np.array(hashes, np.uint64), cut)


def _keyframes(path, times: np.ndarray) -> "Iterator[tuple[float, av.VideoFrame]]":
    """(time, picture) of the keyframe at or before each time, each once."""
    from vmas.media.read import opened, start_seconds, video_stream

    last = None
    with opened(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.skip_frame = "NONKEY"
        stream.codec_context.thread_count = 1  # threads would first be filled with frames that nobody wants
        origin, base = start_seconds(stream), float(stream.time_base)
        for t in times:
            container.seek(int((t + origin) / stream.time_base), stream=stream, backward=True)
            frame = next(container.decode(stream), None)
            if frame is not None and frame.pts != last:
                last = frame.pts
                yield (frame.pts or 0) * base - origin, frame
    if last is None:
        raise MediaError(path, "holds no picture that can be decoded", "it is truncated or damaged")


def _shown(path, times: np.ndarray) -> "Iterator[tuple[float, av.VideoFrame]]":
    """(time, picture on screen) at each time, decoding from the first time to the last."""
    from vmas.media.read import opened, start_seconds, video_stream

    n = 0
    with opened(path) as container:
        stream = video_stream(container, path)
        origin, base = start_seconds(stream), float(stream.time_base)
        if times[0] > 0:
            container.seek(int((times[0] + origin) / stream.time_base), stream=stream, backward=True)
        shown = None
        for frame in container.decode(stream):
            t = (frame.pts or 0) * base - origin
            while shown is not None and n < len(times) and times[n] < t - 1e-3:
                yield float(times[n]), shown
                n += 1
            if n == len(times):
                break
            shown = frame
        if shown is None:
            raise MediaError(path, "holds no picture that can be decoded", "it is truncated or damaged")
        for t in times[n:]:
            yield float(t), shown


def _small(frame, size: int) -> np.ndarray:
    return frame.to_ndarray(format="rgb24", width=size, height=size, interpolation="AREA", threads=1)
