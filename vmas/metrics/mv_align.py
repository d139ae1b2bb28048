"""MV Align, the AV-Align score of TempoTokens [56] (section 5.2): do audio onsets meet peaks of motion?

IoU = I / (A + V - I) of A audio peaks and V video peaks, of which I match; a match is strictly closer
than one video frame. Higher is better. Reference: av_align.py of TempoTokens, in its two published
versions: "2023", current when the paper was written (one video peak may match many audio peaks, so
the score can pass 1), and "2025" (one-to-one, peaks of at least 0.1 px per frame).

Random peaks already score .18 at 9.6 fps and .07 at 30, and more peaks score higher. So a score means
nothing alone: `score` gives it with the version, the frame rate, the number of peaks, and the same
audio against the videos of other clips (chance).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmas import compiled
from vmas.errors import DataError, UsageError, nearest

VERSIONS = ("2023", "2025")
SAMPLE_RATE = 22050  # librosa.load's default, which the reference uses
MIN_FLOW = {"2023": 0.0, "2025": 0.1}  # pixels per frame

Peaks = Sequence[float] | np.ndarray  # times in seconds


def audio_peaks(wav: np.ndarray, sr: int) -> np.ndarray:
    """Onset times in seconds, float64 [A], rising: librosa at 22050 Hz with all its defaults.

    `wav` is float [N] or [C,N] (channels are averaged) at `sr` Hz. Raises DataError for an empty or
    non-finite waveform. Silence has none.
    """
    import warnings

    librosa = compiled.librosa()

    y = np.asarray(wav, np.float32)
    y = y.mean(axis=0) if y.ndim == 2 else y
    if y.ndim != 1 or y.size == 0:
        raise DataError(f"MV Align needs a waveform [N] or [C,N], got {list(np.shape(wav))}")
    if not np.isfinite(y).all():
        raise DataError("MV Align got a waveform with NaN or infinite samples")
    if sr != SAMPLE_RATE:
        y = librosa.resample(y, orig_sr=sr, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_fft=.* is too large")
        strength = librosa.onset.onset_strength(y=y, sr=SAMPLE_RATE)
    frames = librosa.onset.onset_detect(onset_envelope=strength, sr=SAMPLE_RATE)
    return librosa.frames_to_time(frames, sr=SAMPLE_RATE)


def local_maxima(trajectory: np.ndarray, fps: float, min_value: float = 0.0) -> np.ndarray:
    """Times i/fps of strict three-point maxima of `trajectory` [T] that reach `min_value`, ends excluded."""
    x = np.asarray(trajectory, np.float64)
    inner = x[1:-1]
    return (np.flatnonzero((inner > x[:-2]) & (inner > x[2:]) & (inner >= min_value)) + 1) / fps


def video_peaks(flow: np.ndarray, fps: float, version: str = "2025") -> np.ndarray:
    """Peak times in seconds, float64 [V], of flow magnitudes [T-1] (pixels per frame) of T frames at `fps`.

    The first value is put twice, so that value i belongs to frame i, as in the reference.
    """
    _check(version)
    flow = np.asarray(flow, np.float64)
    if flow.ndim != 1 or not np.isfinite(flow).all():
        raise DataError(f"MV Align needs finite flow magnitudes [T-1], got shape {list(flow.shape)}")
    if flow.size == 0:
        return np.zeros(0)
    return local_maxima(np.concatenate([flow[:1], flow]), fps, MIN_FLOW[version])


def iou(audio_times: Peaks, video_times: Peaks, fps: float, version: str = "2025") -> float:
    """Score of one clip. NaN when neither side has a peak (the reference divides by zero there)."""
    _check(version)
    audio, video = np.sort(np.asarray(audio_times, float)), np.sort(np.asarray(video_times, float))
    if audio.size + video.size == 0:
        return float("nan")
    matches = _match_many(audio, video, fps) if version == "2023" else _match_one_to_one(audio, video, fps)
    return matches / (audio.size + video.size - matches)


def mv_align(pairs: Sequence[tuple[Peaks, Peaks]], fps: float, version: str = "2025") -> tuple[np.ndarray, int]:
    """Score of each (audio peaks, video peaks), float64 [N], and how many are NaN because both lists are empty."""
    scores = np.array([iou(a, v, fps, version) for a, v in pairs])
    return scores, int(np.isnan(scores).sum())


def derangements(n: int, count: int, seed: int = 0) -> np.ndarray:
    """`count` permutations int64 [count,n] that leave no element in place (one cycle each, Sattolo's algorithm)."""
    if n < 2:
        raise DataError(f"shuffled chance needs at least 2 clips, got {n}")
    rng = np.random.default_rng(seed)
    out = np.tile(np.arange(n), (count, 1))
    for row in out:
        for i in range(n - 1, 0, -1):
            j = rng.integers(i)
            row[i], row[j] = row[j], row[i]
    return out


def chance(
    audio: Sequence[Peaks], video: Sequence[Peaks], fps: float, version: str = "2025", shuffles: int = 10, seed: int = 0
) -> np.ndarray:
    """Score of each clip's audio against the videos of other clips, float64 [N], mean over `shuffles` derangements.

    Deterministic by `seed`. NaN where every draw had two empty lists.
    """
    if len(audio) != len(video):
        raise DataError(f"{len(audio)} audio and {len(video)} video peak lists do not pair up")
    orders = derangements(len(audio), shuffles, seed)
    scores = np.array([[iou(a, video[j], fps, version) for a, j in zip(audio, row, strict=True)] for row in orders])
    valid = ~np.isnan(scores)
    count = valid.sum(axis=0)
    total = np.where(valid, scores, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class MVAlign:
    """MV Align with all that it must be read beside. `lift` = mean - chance; peaks are means per clip."""

    version: str
    fps: float
    per_clip: np.ndarray
    chance_per_clip: np.ndarray
    mean: float
    chance: float
    n: int
    both_empty: int
    audio_peaks: float
    video_peaks: float

    @property
    def lift(self) -> float:
        return self.mean - self.chance

    @property
    def name(self) -> str:
        """The metric's name with what makes it comparable."""
        return f"MV Align ({self.version}, {self.fps:g} fps)"


def score(
    audio: Sequence[Peaks], video: Sequence[Peaks], fps: float, version: str = "2025", shuffles: int = 10, seed: int = 0
) -> MVAlign:
    """MV Align of N clips from their peak times (each taken once per clip), with chance and lift.

    Clips with no peak at all are left out of the mean and counted in `both_empty`.
    Raises DataError for fewer than 2 clips or unpaired lists.
    """
    by_chance = chance(audio, video, fps, version, shuffles, seed)
    per_clip, both_empty = mv_align(list(zip(audio, video, strict=True)), fps, version)
    return MVAlign(
        version=version,
        fps=float(fps),
        per_clip=per_clip,
        chance_per_clip=by_chance,
        mean=_nanmean(per_clip),
        chance=_nanmean(by_chance),
        n=len(per_clip) - both_empty,
        both_empty=both_empty,
        audio_peaks=float(np.mean([len(a) for a in audio])),
        video_peaks=float(np.mean([len(v) for v in video])),
    )


def _match_many(audio: np.ndarray, video: np.ndarray, fps: float) -> int:
    """Audio peaks with any video peak within one frame."""
    near = (video - 1 / fps < audio[:, None]) & (audio[:, None] < video + 1 / fps)
    return int(near.any(axis=1).sum())


def _match_one_to_one(audio: np.ndarray, video: np.ndarray, fps: float) -> int:
    """Audio peaks in time order, each taking the first free video peak within one frame.

    On rising times one sweep does what the reference's nested loop does, and no matching is larger.
    """
    lows, highs = (video - 1 / fps).tolist(), (video + 1 / fps).tolist()
    matches, j, end = 0, 0, len(lows)
    for a in audio.tolist():
        while j < end and highs[j] <= a:
            j += 1
        if j == end:
            break
        if lows[j] < a:
            matches += 1
            j += 1
    return matches


def _nanmean(x: np.ndarray) -> float:
    kept = x[~np.isnan(x)]
    return float(kept.mean()) if kept.size else float("nan")


def _check(version: str) -> None:
    if version not in VERSIONS:
        raise UsageError(f"unknown MV Align version {version!r}: {nearest(version, VERSIONS)}")
