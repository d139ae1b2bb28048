"""Loudness: -16 LUFS and peaks below -1 dBFS for ordinary and odd signals, fades, silence and NaN."""

import numpy as np
import pytest

from vmas import loudness
from vmas.errors import DataError

RATE = 32000
T = np.arange(3 * RATE) / RATE
RNG = np.random.default_rng(0)
SIGNALS = {
    "noise": RNG.normal(0, 0.1, T.size),
    "far too loud": RNG.normal(0, 50, T.size),
    "far too quiet": RNG.normal(0, 5e-4, T.size),
    "bursts": np.where(T % 1 < 0.02, np.sin(2 * np.pi * 440 * T), 0),
    "deep": np.sin(2 * np.pi * 30 * T),
    "high": 0.01 * np.sin(2 * np.pi * 12000 * T),
    "square": np.sign(np.sin(2 * np.pi * 100 * T)),
    "offset": 0.5 + RNG.normal(0, 0.01, T.size),
    "half silent": np.where(T < 1.5, 0, RNG.normal(0, 0.1, T.size)),
    "short": RNG.normal(0, 0.1, RATE // 10),
    "stereo": RNG.normal(0, 0.1, (2, T.size)),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_loudness_target_and_ceiling(name):
    wav = SIGNALS[name]
    out = loudness.finish(wav, RATE)
    assert out.shape == wav.shape
    assert out.dtype == np.float32
    assert loudness.loudness(out, RATE) == pytest.approx(-16, abs=0.3)
    assert np.abs(out).max() <= loudness.CEILING + 1e-6
    assert np.abs(out[..., 0]).max() < 1e-3
    assert np.abs(out[..., -1]).max() < 1e-3


def test_loudness_leaves_tame_music_linear():
    wav = SIGNALS["noise"]
    out = loudness.finish(wav, RATE)
    middle = slice(RATE, 2 * RATE)
    gain = out[middle] @ wav[middle] / (wav[middle] @ wav[middle])
    assert np.allclose(out[middle], gain * (wav[middle] - wav.mean()), atol=1e-5)


def test_loudness_of_silence_and_nan():
    assert not loudness.finish(np.zeros(RATE), RATE).any()
    assert not loudness.finish(np.full(RATE, 0.4), RATE).any()  # a constant is silence
    assert loudness.finish(np.zeros((1, 0)), RATE).shape == (1, 0)
    with pytest.raises(DataError, match="NaN"):
        loudness.finish(np.array([0.0, np.nan]), RATE)


def test_fades():
    out = loudness.fade(np.ones(RATE, np.float32), RATE)
    assert out[0] == out[-1] == 0
    assert out[round(0.01 * RATE) : -round(0.25 * RATE)].min() == 1
    assert np.all(np.diff(out[-8000:]) <= 0)
