"""The music tagging transformer: size, names and front end of the reference, windows, loading."""

import numpy as np
import pytest
import torch

from vmas import compiled
from vmas.embedders.music_tagger import SAMPLES, MusicTagger, load_music_tagger, windows
from vmas.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def student():
    """Narrower convolutions than the student's, for speed."""
    torch.manual_seed(0)
    return MusicTagger(conv_ndim=16, attention_ndim=64).eval()


@pytest.mark.parametrize(("attention_ndim", "parameters"), [(256, 4_567_732), (64, 1_108_852)])
def test_golden_parameter_counts(attention_ndim, parameters):
    assert sum(p.numel() for p in MusicTagger(attention_ndim=attention_ndim).parameters()) == parameters


def test_parameter_names_are_the_references(student):
    names = set(student.state_dict())
    assert {
        "spec.spectrogram.window",
        "spec.mel_scale.fb",
        "frontend.input_bn.weight",
        "frontend.layer1.conv_3.weight",
        "frontend.layer3.bn_2.running_var",
        "frontend.fc.weight",
        "pos_embedding",
        "cls_token",
        "transformer.layers.3.0.fn.norm.weight",
        "transformer.layers.0.0.fn.fn.to_qkv.weight",
        "transformer.layers.0.0.fn.fn.to_out.0.bias",
        "transformer.layers.3.1.fn.fn.net.3.weight",
        "mlp_head.1.weight",
    } <= names
    assert "frontend.layer2.conv_3.weight" not in names
    assert "transformer.layers.0.0.fn.fn.to_qkv.bias" not in names
    assert student.state_dict()["pos_embedding"].shape == (1, 513, 64)


def test_front_end(student):
    """22.05 kHz, 1024/512, 128 mels over 0 to 11025 Hz, power, dB: 431 frames, 107 tokens."""
    wav = torch.randn(1, SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.1
    mel = student.spec(wav)
    assert mel.shape == (1, 128, 431)
    librosa = compiled.librosa()

    power = np.abs(librosa.stft(wav[0].numpy(), n_fft=1024, hop_length=512, pad_mode="reflect")) ** 2
    bank = librosa.filters.mel(sr=22050, n_fft=1024, n_mels=128, fmin=0, fmax=11025, htk=True, norm=None)
    np.testing.assert_allclose(mel[0].numpy(), bank @ power, rtol=1e-3, atol=1e-3)
    db = student.amplitude_to_db(mel)
    np.testing.assert_allclose(db.numpy(), 10 * np.log10(np.maximum(mel.numpy(), 1e-10)), atol=1e-4)
    assert student.frontend(db[:, None]).shape == (1, 107, 64)


def test_attention_word_by_word(student):
    attention = student.transformer.layers[0][0].fn["fn"]
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.to_qkv(x).chunk(3, -1)
    out = torch.zeros(2, 5, 64)
    for h in range(8):
        s = slice(8 * h, 8 * h + 8)
        out[..., s] = (q[..., s] @ k[..., s].mT / 8**0.5).softmax(-1) @ v[..., s]
    torch.testing.assert_close(attention(x), attention.to_out(out))


def test_logits_are_before_the_sigmoid_one_row_a_window(student):
    rng = np.random.default_rng(0)
    wav = rng.standard_normal(2 * SAMPLES + 1000).astype(np.float32) * 0.1
    got = student.logits(wav, 22050)
    assert got.shape == (2, 50)
    assert (got < 0).any()
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.from_numpy(got[1:]), student(torch.from_numpy(wav[None, SAMPLES : 2 * SAMPLES]))
        )


def test_windows():
    assert windows(np.ones(320000), 32000).shape == (1, SAMPLES)  # 10 s exactly
    short = windows(np.ones((2, 22050)), 22050)
    assert short.shape == (1, SAMPLES)
    assert short.sum() == 22050


@pytest.mark.parametrize("wav", [np.zeros(0), np.full(9, np.nan), np.zeros((1, 1, 9))])
def test_broken_audio(wav):
    with pytest.raises(DataError):
        windows(wav, 22050)


def test_any_other_length_is_refused(student):
    with pytest.raises(DataError, match="220500"):
        student(torch.zeros(1, SAMPLES - 1))


@pytest.mark.parametrize("prefix", ["", "network."])
def test_checkpoints_load_without_pickle(tmp_path, student, prefix):
    path = tmp_path / "student.ckpt"
    extra = {"teacher_network.cls_token": torch.zeros(256)}
    torch.save({**{prefix + k: v for k, v in student.state_dict().items()}, **extra}, path)
    loaded = load_music_tagger(path)
    wav = np.random.default_rng(0).standard_normal(SAMPLES).astype(np.float32) * 0.1
    np.testing.assert_array_equal(loaded.logits(wav, 22050), student.logits(wav, 22050))


def test_broken_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_music_tagger(tmp_path / "absent.ckpt")
    path = tmp_path / "other.ckpt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not the music tagging"):
        load_music_tagger(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not the music tagging"):
        load_music_tagger(path)
