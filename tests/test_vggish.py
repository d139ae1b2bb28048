"""VGGish: front-end golden numbers of both variants, the network's shape, loading, broken input."""

import numpy as np
import pytest
import torch

from vmas import weights
from vmas.embedders.vggish import VGGish, load_vggish, log_mel, mel_matrix, patches
from vmas.errors import CheckpointError, DataError, UsageError, WeightsUnavailable


@pytest.fixture(scope="module")
def sine():
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(160000) / 16000)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return VGGish().eval()


def test_golden_front_end(sine):
    mel = log_mel(sine)[:960]
    assert mel.mean() == pytest.approx(-3.501795406203, abs=1e-10)
    assert mel.max() == pytest.approx(4.089175, abs=1e-6)
    assert mel.max(axis=0).argmax() == 8
    got = patches(sine, variant="torchvggish")
    assert got.shape == (10, 96, 64)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.reshape(-1, 64), mel, atol=1e-6)


def test_google_variant_takes_the_first_96_of_98_frames(sine):
    got = patches(sine)
    assert got.shape == (19, 96, 64)
    np.testing.assert_allclose(got[3], log_mel(sine[24000:40000])[:96], atol=1e-6)
    assert log_mel(sine[:16000]).shape == (98, 64)


def test_mel_matrix_is_htk_in_mel_with_dc_zeroed():
    m = mel_matrix()
    assert m.shape == (257, 64)
    assert (m[0] == 0).all()
    hertz = np.linspace(0, 8000, 257)
    assert (m[hertz <= 125] == 0).all()
    assert (m[hertz >= 7500] == 0).all()
    inside = m[(hertz > 160) & (hertz < 7000)].sum(1)  # neighbouring triangles add up to 1
    np.testing.assert_allclose(inside, 1, atol=1e-9)


def test_silence_is_the_log_offset():
    np.testing.assert_allclose(patches(np.zeros(16000)), np.log(0.01), atol=1e-6)


def test_rate_and_channels(sine):
    import soxr

    at32 = soxr.resample(sine, 16000, 32000)
    np.testing.assert_allclose(patches(at32, 32000)[1:-1], patches(sine)[1:-1], atol=0.05)
    np.testing.assert_allclose(patches(np.stack([sine, sine])), patches(sine), atol=1e-6)


def test_network_has_vggishs_size_and_names(net):
    assert sum(p.numel() for p in net.parameters()) == 72_141_184
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if k.endswith("weight")}
    assert list(shapes.items()) == [
        ("features.0.weight", (64, 1, 3, 3)),
        ("features.3.weight", (128, 64, 3, 3)),
        ("features.6.weight", (256, 128, 3, 3)),
        ("features.8.weight", (256, 256, 3, 3)),
        ("features.11.weight", (512, 256, 3, 3)),
        ("features.13.weight", (512, 512, 3, 3)),
        ("embeddings.0.weight", (4096, 12288)),
        ("embeddings.2.weight", (4096, 4096)),
        ("embeddings.4.weight", (128, 4096)),
    ]


def test_embedding_is_before_the_last_activation(net, sine):
    got = net.embed(sine[:32000], batch_size=2)
    assert got.shape == (3, 128)
    assert (got < 0).any()
    np.testing.assert_allclose(got, net.embed(sine[:32000], batch_size=1), atol=1e-6)


def test_features_are_flattened_channels_last(net):
    """TensorFlow's order: row (time), column (band), channel."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 96, 64)).astype(np.float32))
    with torch.inference_mode():
        h = net.features(x[:, None])[0].numpy()
        flat = torch.tensor([[h[c, t, f] for t in range(6) for f in range(4) for c in range(512)]])
        torch.testing.assert_close(net(x), net.embeddings(flat))


def test_missing_and_wrong_weights_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"vggish-10086976\.pth.*torchvggish.*Apache-2\.0"):
        load_vggish()
    (tmp_path / "vggish-10086976.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="sha256"):
        load_vggish()


@pytest.mark.slow
def test_weights_load_without_pickle(tmp_path, monkeypatch, net):
    path = tmp_path / "vggish.pth"
    monkeypatch.setattr(weights, "locate", lambda name: path)  # random weights cannot have the published hash
    torch.save({**net.state_dict(), "pproc.pca_means": torch.zeros(128, 1)}, path)
    loaded = load_vggish()
    assert not loaded.training
    torch.testing.assert_close(loaded.embeddings[4].bias, net.embeddings[4].bias)
    torch.save({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="VGGish"):
        load_vggish()


@pytest.mark.parametrize("wav", [np.zeros(15999), np.zeros(0), np.full(16000, np.nan), np.zeros((1, 1, 16000))])
def test_broken_audio(wav):
    with pytest.raises(DataError):
        patches(wav)


def test_unknown_variant():
    with pytest.raises(UsageError, match="torchvggish"):
        patches(np.zeros(16000), variant="torchvgish")
