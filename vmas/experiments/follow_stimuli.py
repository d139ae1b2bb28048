"""What the tests of `follow` show the model: other videos, cut, slowed and frozen ones, and peaks at a wrong time."""

from functools import partial
from pathlib import Path

import numpy as np

from vmas.config import Profile
from vmas.errors import DataError, UsageError
from vmas.metrics import mv_align

PRIOR_BPM, PRIOR_OCTAVES = 60.0, 4.0  # between a clip's tempo and half of it, and wide


def other_video(genres: np.ndarray, same: bool, seed: int = 0) -> np.ndarray:
    """For every clip another clip of its genre (`same`) or of another genre: int64 [N], -1 where there is none.

    `genres` int [N]. Drawn evenly, with replacement, deterministic by `seed`.
    """
    genres = np.asarray(genres)
    rng = np.random.default_rng(seed)
    out = np.full(len(genres), -1)
    for i, genre in enumerate(genres):
        found = np.flatnonzero((genres == genre) == same)
        found = found[found != i]
        if found.size:
            out[i] = rng.choice(found)
    return out


def cut(first: np.ndarray, second: np.ndarray, at: int) -> np.ndarray:
    """Frames [n,T,H,W,3] of `first` before frame `at` and of `second` from there on. Raises UsageError."""
    if first.shape != second.shape or not 0 < at < first.shape[1]:
        raise UsageError(f"cannot cut {list(first.shape)} to {list(second.shape)} at frame {at}")
    return np.concatenate([first[:, :at], second[:, at:]], axis=1)


def freeze(frames: np.ndarray) -> np.ndarray:
    """The first picture of every clip for the whole clip: [n,T,H,W,3] → the same shape."""
    return np.repeat(frames[:, :1], frames.shape[1], axis=1)


def slowed(file: Path, profile: Profile, speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [T,H,W,3] of a file played at `speed` (1/2 = half as fast), and its motion peaks in seconds.

    Sampled again from the file's own pictures: its first speed · clip.seconds seconds fill the clip. Repeating or
    blending the stored frames would make peaks of motion that the video has not. Raises MediaError, and
    UsageError for a speed at which pictures would repeat.
    """
    from vmas import media
    from vmas.flow import flow_magnitude

    clip = profile.clip
    rate = clip.fps / speed
    if not clip.fps <= rate <= profile.corpus.fps:
        raise UsageError(f"speed {speed:g} needs {rate:g} pictures a second, the files have {profile.corpus.fps:g}")
    seconds = clip.num_frames / rate
    frames = media.read_frames(file, rate, clip.img_size, duration_s=seconds)
    small = frames
    if clip.flow_size != clip.img_size:
        small = media.read_frames(file, rate, clip.flow_size, duration_s=seconds)
    flow = flow_magnitude(small, clip.flow_method, cache=False)
    return frames, mv_align.video_peaks(flow, clip.fps, profile.eval.mv_align_version)


def slow(files: list[Path], profile: Profile, speed: float, pool=None) -> tuple[np.ndarray, list[np.ndarray]]:
    """`slowed` of many files, over the processes of `pool` where there is one: frames [N,T,H,W,3] and peaks."""
    work = partial(slowed, profile=profile, speed=speed)
    found = list(pool.map(work, files, chunksize=8) if pool else map(work, files))
    if not found:
        raise DataError("no files to slow down")
    return np.stack([f for f, _ in found]), [p for _, p in found]


def shifted(peaks: np.ndarray, frames: int, fps: float, total: int) -> np.ndarray:
    """Peak times `frames` frames later, rising; what leaves the clip of `total` frames comes in at its other end.

    Circular, not cropped: cropping would take peaks away and so change the score for another reason.
    """
    return np.sort((np.asarray(peaks, float) + frames / fps) % (total / fps))


def shift_scores(
    onsets: list[np.ndarray], peaks: list[np.ndarray], shifts: range, fps: float, total: int, version: str
) -> np.ndarray:
    """MV Align of every clip against its video's peaks moved by every shift (frames): float64 [shifts,N]."""
    return np.array(
        [
            [
                mv_align.iou(a, shifted(v, k, fps, total) if k else v, fps, version)
                for a, v in zip(onsets, peaks, strict=True)
            ]
            for k in shifts
        ]
    )


def tempo(wav: np.ndarray, sample_rate: int) -> float:
    """Tempo in BPM of float or int16 [N]: librosa's estimate by autocorrelation of the onset envelope.

    Its prior is nearly flat (`PRIOR_BPM`, `PRIOR_OCTAVES`). librosa's own prefers 120 BPM, so that real music of 80
    BPM played at half its speed is mostly heard at 80 again: a player who follows wholly could not be told from one who
    does not (validation clips, real music: .2 of the slow-down is seen with librosa's prior, .9 with this). An octave
    may still be missed. NaN without any onset.
    """
    from vmas import compiled

    librosa = compiled.librosa("feature.rhythm")
    y = np.asarray(wav, np.float32) / (32767.0 if wav.dtype == np.int16 else 1.0)
    y = librosa.resample(y, orig_sr=sample_rate, target_sr=mv_align.SAMPLE_RATE, res_type="soxr_hq")
    strength = librosa.onset.onset_strength(y=y, sr=mv_align.SAMPLE_RATE)
    if not strength.any():
        return float("nan")
    prior = {"start_bpm": PRIOR_BPM, "std_bpm": PRIOR_OCTAVES}
    return float(librosa.feature.tempo(onset_envelope=strength, sr=mv_align.SAMPLE_RATE, **prior)[0])


def stretched(waves: np.ndarray, speed: float, sample_rate: int) -> np.ndarray:
    """Waveforms int16 [N,samples] played at `speed`, as long as before: the music of one who follows wholly.

    Resampled, so that the pitch falls with it. Raises UsageError for a speed outside (0, 1].
    """
    from vmas import compiled

    if not 0 < speed <= 1:
        raise UsageError(f"speed must lie in (0, 1], got {speed:g}")
    n = waves.shape[-1]
    part = waves[..., : round(n * speed)].astype(np.float32)
    rates = {"orig_sr": sample_rate * speed, "target_sr": sample_rate}
    slower = compiled.librosa().resample(part, **rates, res_type="soxr_hq", axis=-1)[..., :n]
    out = np.zeros(waves.shape, np.int16)
    out[..., : slower.shape[-1]] = np.round(np.clip(slower, -32767, 32767))
    return out


def tempi(waves: np.ndarray, sample_rate: int, pool=None) -> np.ndarray:
    """`tempo` of waveforms [N,samples], float64 [N]."""
    work = partial(tempo, sample_rate=sample_rate)
    return np.array(list(pool.map(work, waves, chunksize=8) if pool else map(work, waves)))
