"""Make generated music fit to play: loudness -16 LUFS, peaks below -1 dBFS, short fades.

Loudness is the integrated loudness of ITU-R BS.1770-4 as pyloudnorm measures it. -16 LUFS is what
streaming services ask of music; the paper does not speak of loudness.
"""

import warnings

import numpy as np

from vmas.errors import DataError

TARGET_LUFS = -16.0
CEILING = 10 ** (-1 / 20)  # -1 dBFS
KNEE = 0.7 * CEILING  # below it the limiter changes nothing
SILENCE = 1e-4  # peak (three steps of 16 bits) below which a signal counts as silent
FADE_IN_S, FADE_OUT_S = 0.010, 0.250
_BLOCK_S = 0.4  # shortest signal that BS.1770 can measure
_TOLERANCE_LU = 0.1


def loudness(wav: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness in LUFS of float [N] or [C,N]; -inf for silence.

    A signal shorter than the 0.4 s block of BS.1770 is measured repeated.
    """
    import pyloudnorm

    x = np.atleast_2d(wav).T
    if not len(x):
        return -np.inf
    need = int(_BLOCK_S * sample_rate) + 1
    if len(x) < need:
        x = np.tile(x, (-(-need // len(x)), 1))
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        return float(pyloudnorm.Meter(sample_rate).integrated_loudness(x))


def limit(wav: np.ndarray) -> np.ndarray:
    """Bend what exceeds the knee smoothly below -1 dBFS; samples under the knee stay as they are."""
    room = CEILING - KNEE
    over = np.maximum(np.abs(wav) - KNEE, 0.0)
    return np.where(over > 0, np.sign(wav) * (KNEE + room * np.tanh(over / room)), wav)


def fade(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    """Fade in over 10 ms and out over 250 ms (each at most a quarter of the signal), raised cosine."""
    out = wav.copy()
    n = wav.shape[-1]
    for seconds, end in ((FADE_IN_S, False), (FADE_OUT_S, True)):
        k = min(round(seconds * sample_rate), n // 4)
        ramp = (0.5 - 0.5 * np.cos(np.pi * np.arange(k) / max(k, 1))).astype(wav.dtype)
        if k and end:
            out[..., -k:] *= ramp[::-1]
        elif k:
            out[..., :k] *= ramp
    return out


def finish(wav: np.ndarray, sample_rate: int, target: float = TARGET_LUFS) -> np.ndarray:
    """Fade float [N] or [C,N] and bring it to `target` LUFS with peaks below -1 dBFS; float32, same shape.

    Where plain gain would exceed the ceiling, the peaks are limited and the gain is searched again.
    A constant offset is removed. Silence (peak below 1e-4) is returned as zeros: there is nothing
    to raise. Clicks so sparse that no gain makes them loud end below the target.
    Raises DataError for NaN or infinite samples.
    """
    wav = np.asarray(wav, dtype=np.float32)
    if not np.isfinite(wav).all():
        raise DataError("the music holds NaN or infinite samples")
    if not wav.size:
        return wav
    x = fade(wav - wav.mean(axis=-1, keepdims=True), sample_rate)
    peak = float(np.abs(x).max())
    if peak < SILENCE:
        return np.zeros_like(wav)
    x *= CEILING / peak  # so that the gates of BS.1770 do not hide a quiet signal
    measured = loudness(x, sample_rate)
    if measured >= target:
        return (x * 10 ** ((target - measured) / 20)).astype(np.float32)
    low, high = 0.0, 40.0  # dB of gain before the limiter
    y = limit(x * 10 ** (high / 20))
    while high - low > _TOLERANCE_LU:
        gain = (low + high) / 2
        y = limit(x * 10 ** (gain / 20))
        measured = loudness(y, sample_rate)
        if abs(measured - target) < _TOLERANCE_LU:
            break
        low, high = (gain, high) if measured < target else (low, gain)
    return y.astype(np.float32)
