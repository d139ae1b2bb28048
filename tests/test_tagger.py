"""The mini tagger: interface, checkpoints, robustness to the codec, and FAD that grows with damage."""

import json

import numpy as np
import pytest
import torch

from vmas import checkpoint, codec, config, paths
from vmas.embedders import tagger as tg
from vmas.embedders import tagger_train
from vmas.errors import CheckpointError, DataError

RATE = 32000
LABELS = tuple("abcdefghij")


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return tg.MiniTagger(tg.TaggerConfig(RATE, 32, 1024, 640, 4, LABELS)).eval()


@pytest.fixture(scope="module")
def mini():
    folder = paths.ROOT / "results" / "checkpoints" / "mini"
    if not all((folder / n / checkpoint.MANIFEST).is_file() for n in ("codec", "tagger")):
        pytest.skip("the mini tagger is not trained")
    return tg.load_tagger(folder / "tagger"), codec.load_codec(folder / "codec")


def noise(B: int, N: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(B, N, generator=torch.Generator().manual_seed(seed))


# --- interface


@pytest.mark.parametrize("samples", [640, 1000, 32000, 160000])
def test_shapes(tiny, samples):
    wav = noise(3, samples)
    assert tiny.embed(wav).shape == (3, 128)
    assert tiny.logits(wav).shape == (3, 10)
    assert tiny.embed(wav[0]).shape == (1, 128)
    assert tiny.embed(wav.numpy()).dtype == torch.float32


def test_deterministic_and_independent_of_the_batch(tiny):
    wav = noise(5, 16000)
    assert torch.equal(tiny.embed(wav), tiny.embed(wav))
    assert torch.allclose(tiny.embed(wav, batch_size=2), tiny.embed(wav), atol=1e-5)


def test_logits_follow_from_the_embedding(tiny):
    """The embedding is taken before its activation, so it has negative entries."""
    wav = noise(4, 16000)
    embedding = tiny.embed(wav)
    assert (embedding < 0).any()
    assert torch.allclose(tiny.head(embedding.relu()), tiny.logits(wav), atol=1e-6)


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.full((2, 6400), float("nan")), "NaN"),
        (torch.zeros(2, 639), "N >= 640"),
        (torch.zeros(2, 1, 6400), r"\[B,N\]"),
        (torch.zeros(0, 6400), r"\[B,N\]"),
    ],
)
def test_bad_waveforms(tiny, wav, message):
    with pytest.raises(DataError, match=message):
        tiny.embed(wav)


def test_silence_is_finite(tiny):
    assert torch.isfinite(tiny.embed(torch.zeros(1, 32000))).all()


# --- checkpoints


def test_saved_loaded_and_altered(tiny, tmp_path):
    folder = tg.save_tagger(tmp_path / "t", tiny, half=False)
    again = tg.load_tagger(folder)
    wav = noise(2, 16000)
    assert torch.equal(again.embed(wav), tiny.embed(wav))
    assert again.labels == LABELS
    assert not any(p.requires_grad for p in again.parameters())

    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "config": {**manifest["config"], "width": 8}}))
    with pytest.raises(CheckpointError, match="another architecture"):
        tg.load_tagger(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "config": {}}))
    with pytest.raises(CheckpointError, match="no tagger of this version"):
        tg.load_tagger(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "kind": "codec"}))
    with pytest.raises(CheckpointError, match="not 'tagger'"):
        tg.load_tagger(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    weights = folder / checkpoint.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256"):
        tg.load_tagger(folder)


# --- training


def test_degrading_is_seeded_finite_and_changes_every_example():
    x = torch.randn(8, 32, 40, generator=torch.Generator().manual_seed(0)) - 4
    a, b = (tagger_train.degrade(x, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(a, b)
    assert torch.isfinite(a).all()
    assert ((a - x).abs().amax((1, 2)) > 0).all()
    assert a.min() >= np.log(1e-4) - 1e-5


def test_crops_are_stretches_of_their_example():
    x = torch.arange(20.0).repeat(3, 2, 1) + 100 * torch.arange(3.0)[:, None, None]
    y = tagger_train.crop(x, 5, torch.Generator().manual_seed(0))
    assert y.shape == (3, 2, 5)
    assert torch.equal(y.diff(dim=-1), torch.ones(3, 2, 4))
    assert torch.equal((y[:, 0, 0] // 100), torch.arange(3.0))
    assert tagger_train.crop(x, 50, torch.Generator()) is x


def tones(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips whose label is their pitch: int16 [n,32000], int [n]."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 10
    t = np.arange(RATE) / RATE
    pitch = 200 * 1.5 ** labels[:, None]
    wav = 0.3 * np.sin(2 * np.pi * pitch * t + rng.uniform(0, 6, (n, 1))) + 0.003 * rng.standard_normal((n, RATE))
    return np.round(wav * 32767).astype(np.int16), labels


def test_training_learns_repeats_and_reports(tmp_path):
    profile = config.load("smoke", {"eval": {"tagger_steps": 90, "tagger_width": 4}})
    wavs, labels = tones(40)
    record = tagger_train.train_tagger(profile, wavs, labels, None, tmp_path / "a", (wavs, labels), progress=False)
    assert record["val_accuracy"] > 0.5
    assert record["val_clips"] == 40
    assert "val_accuracy_reconstructed" not in record
    loaded = tg.load_tagger(tmp_path / "a")
    guess = loaded.logits(codec.as_float(wavs)).argmax(1)
    # the file holds float16, so a clip on the border may change sides
    assert float((guess == torch.as_tensor(labels)).float().mean()) == pytest.approx(record["val_accuracy"], abs=0.06)
    tagger_train.train_tagger(profile, wavs, labels, None, tmp_path / "b", progress=False)
    sha = [checkpoint.read_manifest(tmp_path / n)["sha256"] for n in "ab"]
    assert sha[0] == sha[1]


def test_training_through_a_codec(tmp_path):
    profile = config.load("smoke", {"eval": {"tagger_steps": 2, "tagger_width": 4}})
    torch.manual_seed(0)
    rough = codec.FrameCodec(profile.codec).eval()
    wavs, labels = tones(6)
    record = tagger_train.train_tagger(profile, wavs, labels, rough, tmp_path / "a", (wavs, labels), progress=False)
    assert 0 <= record["val_accuracy_reconstructed"] <= 1


def test_training_refuses_labels_that_do_not_fit(tmp_path):
    profile = config.load("smoke", {"eval": {"tagger_steps": 1}})
    wavs, labels = tones(4)
    for bad in (labels[:3], labels + 10, labels - 5):
        with pytest.raises(DataError, match="labels"):
            tagger_train.train_tagger(profile, wavs, bad, None, tmp_path / "a", progress=False)
    with pytest.raises(DataError, match="NaN"):
        tagger_train.train_tagger(
            profile, np.full((4, RATE), np.nan, np.float32), labels, None, tmp_path / "a", progress=False
        )
    assert not (tmp_path / "a").exists()


# --- the committed mini tagger


def test_mini_tagger_was_trained_with_the_mini_codec(mini):
    folder = paths.ROOT / "results" / "checkpoints" / "mini" / "tagger"
    record = checkpoint.read_manifest(folder, "tagger")["training"]
    assert record["codec_sha256"] == mini[1].sha256
    assert record["val_accuracy"] > 0.7
    # robust to the codec: what it says of a clip hardly depends on whether the clip was coded
    assert record["val_accuracy_reconstructed"] > record["val_accuracy"] - 0.1


@pytest.mark.slow
def test_fad_grows_with_noise_low_pass_and_mixing(mini):
    """Clips of the corpus, rendered here; FAD against 60 others must grow with each kind of damage."""
    from scipy.signal import butter, sosfilt

    from vmas.corpus import sample_spec
    from vmas.corpus.sound import render_audio
    from vmas.metrics.fad import fad_from_embeddings

    tagger, _ = mini
    profile = config.load("mini")
    clips = [render_audio(sample_spec("val", i, profile.corpus, profile.clip.seconds), RATE) for i in range(160)]
    wavs = np.stack([np.pad(c, (0, 160000))[:160000] for c in clips]).astype(np.float32)
    reference, wavs = tagger.embed(wavs[:80]).numpy(), wavs[80:]
    rng = np.random.default_rng(0)
    hiss = rng.standard_normal(wavs.shape).astype(np.float32)
    level = np.sqrt((wavs**2).mean(1, keepdims=True))
    damages = {
        "noise": [wavs + level * a * hiss for a in (0.0, 0.1, 0.4, 1.5)],
        "low-pass": [wavs] + [sosfilt(butter(6, f, fs=RATE, output="sos"), wavs) for f in (4000, 1500, 500)],
        "mixing": [(1 - a) * wavs + a * np.roll(wavs, 1, axis=0) for a in (0.0, 0.15, 0.5)],
    }
    for kind, versions in damages.items():
        distances = [fad_from_embeddings(tagger.embed(np.float32(v)).numpy(), reference) for v in versions]
        assert distances == sorted(distances), (kind, distances)
