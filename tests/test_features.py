"""Music alone for the decoder's first stage: rendered in parts, resumed, kept per codec."""

import json

import numpy as np
import pytest
import torch

from vmas import config, corpus, features, paths
from vmas.codec import load_codec
from vmas.errors import UsageError
from vmas.training.tasks import music_data


def profile(music: int = 5) -> config.Profile:
    return config.load("mini", {"clip": {"seconds": 1.25}, "corpus": {"music": music}})


@pytest.fixture
def codec(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    monkeypatch.setattr(features, "CHUNK", 2)
    return load_codec(paths.checkpoints("mini") / "codec")


def test_music_is_what_the_codec_says_of_the_rendered_clips(codec):
    p = profile()
    got = features.load_music(p, codec, workers=1, progress=False)
    assert got.shape == (5, p.codec.n_q, p.num_tokens)
    assert got.dtype == np.int16
    from vmas.corpus.sound import render_audio

    wav = render_audio(corpus.sample_spec("music", 3, p.corpus, p.clip.seconds), p.clip.sample_rate)
    with torch.inference_mode():
        alone = codec.encode(torch.from_numpy(wav[None, None, : p.clip.num_samples]))[0, :, : p.num_tokens]
    assert (got[3] == alone.numpy()).mean() > 0.99, "batches may round another way"
    assert len({got[i].tobytes() for i in range(5)}) == 5


def test_interrupted_music_goes_on_with_the_same_tokens(codec, monkeypatch):
    p, calls, real = profile(), [], type(codec).encode
    whole = features.load_music(p, codec, workers=1, progress=False).copy()
    for f in (paths.features(p.name) / "music").iterdir():
        f.unlink()

    def stops(self, wav):
        calls.append(len(wav))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, wav)

    monkeypatch.setattr(type(codec), "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        features.load_music(p, codec, workers=1, progress=False)
    (state,) = (paths.features(p.name) / "music").glob("*.json")
    assert json.loads(state.read_text())["done"] == 2
    again = features.load_music(p, codec, workers=1, progress=False)
    assert calls == [2, 2, 2, 1], "what was done is kept"
    np.testing.assert_array_equal(again, whole)


def test_the_draws_of_music_alone_are_no_split(tmp_path):
    p = profile()
    assert corpus.sample_spec("music", 0, p.corpus, 1.25).notes != corpus.sample_spec("train", 0, p.corpus, 1.25).notes
    assert corpus.data_sha256(profile(5)) == corpus.data_sha256(profile(9)), "the mp4 files do not depend on it"
    with pytest.raises(UsageError, match="unknown split 'music'"):
        corpus.make(tmp_path, p, splits=["music"])


def test_music_comes_after_the_clips_of_the_split():
    class Split:
        tokens = np.arange(24, dtype=np.int16).reshape(2, 4, 3)

    more = np.full((3, 4, 3), 7, np.int16)
    data = music_data(Split(), more)
    assert len(data) == 5
    assert len(music_data(Split())) == 2
    assert (data.__getitems__([4])["codes"] == 7).all()
