"""Hiera-Base weights in their three published layouts, with random values."""

import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from vmas import encoder_weights
from vmas.encoder import NORMALISATION, VideoEncoder
from vmas.encoder_weights import convert, inflate, load_pretrained, read, stretch_time
from vmas.errors import CheckpointError, UsageError, WeightsUnavailable

WIDTH = 16
DIM = 8 * WIDTH


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    """Hiera-Base's blocks and grid at a sixth of its width: the same 300 tensors, quick to fill."""
    torch.manual_seed(0)
    return VideoEncoder(embed_dim=WIDTH)


def randn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.fixture(scope="module")
def video_state(encoder) -> dict:
    """hiera_base_16x224 of the original repository: 8 time steps, a Kinetics head."""
    state = {k: randn(v.shape, i) for i, (k, v) in enumerate(encoder.state_dict().items())}
    state["pos_embed_temporal"] = randn((1, 8, WIDTH), 1)
    return {**state, "head.projection.weight": randn((400, DIM)), "head.projection.bias": randn((400,))}


@pytest.fixture(scope="module")
def image_state(video_state) -> dict:
    """hiera_base_224 of the original repository: one table of positions, a 2-D patch convolution."""
    skip = ("pos_embed_temporal", "pos_embed_spatial", "head.projection.weight", "head.projection.bias")
    state = {k: v for k, v in video_state.items() if k not in skip}
    return {
        **state,
        "pos_embed": randn((1, 3136, WIDTH), 5),
        "patch_embed.proj.weight": randn((WIDTH, 3, 7, 7), 6),
        "head.projection.weight": randn((1000, DIM)),
        "head.projection.bias": randn((1000,)),
    }


def test_video_weights(encoder, video_state, tmp_path, caplog):
    torch.save({"model_state": video_state}, tmp_path / "hiera_base_16x224.pth")
    with caplog.at_level(logging.WARNING):
        loaded = load_pretrained(encoder, tmp_path / "hiera_base_16x224.pth")
    assert "CC-BY-NC 4.0" in caplog.text
    assert (loaded.layout, loaded.statistics, loaded.licence) == ("video", "kinetics", "CC-BY-NC 4.0")
    assert len(loaded.as_is) == 299
    assert loaded.changed == ("pos_embed_temporal",)
    assert set(loaded.dropped) == {"head.projection.weight", "head.projection.bias"}
    own = encoder.state_dict()
    for name in loaded.as_is:
        assert torch.equal(own[name], video_state[name]), name
    want = F.interpolate(video_state["pos_embed_temporal"].mT, size=48, mode="linear", align_corners=False).mT
    assert torch.equal(own["pos_embed_temporal"], want)


def test_time_is_stretched_linearly_between_centres():
    line = torch.arange(8.0).view(1, 8, 1)
    out = stretch_time(line, 48).flatten()
    assert torch.equal(out[:3], torch.zeros(3))  # before the first centre: held
    torch.testing.assert_close(out[3:-3], (torch.arange(48.0)[3:-3] + 0.5) / 6 - 0.5)
    assert torch.equal(out[-3:], torch.full((3,), 7.0))
    assert torch.equal(stretch_time(line, 8), line)


def test_image_weights(encoder, image_state, tmp_path):
    torch.save({"model_state": image_state}, tmp_path / "hiera_base_224.pth")
    loaded = load_pretrained(encoder, tmp_path / "hiera_base_224.pth")
    assert (loaded.layout, loaded.statistics) == ("image", "imagenet")
    assert loaded.statistics in NORMALISATION
    assert len(loaded.as_is) == 297
    assert not loaded.renamed
    own = encoder.state_dict()
    assert torch.equal(own["pos_embed_spatial"], image_state["pos_embed"])
    assert not own["pos_embed_temporal"].any()


def test_timm_weights(encoder, tmp_path):
    from timm.models.hiera import Hiera

    torch.manual_seed(3)
    state = Hiera(embed_dim=WIDTH, stages=(2, 3, 16, 3)).state_dict()
    save_file(state, str(tmp_path / "model.safetensors"))
    loaded = load_pretrained(encoder, tmp_path / "model.safetensors")
    assert (loaded.layout, loaded.statistics) == ("image (timm)", "imagenet")
    assert len(loaded.as_is) == 295
    assert set(loaded.renamed) == {"norm.weight", "norm.bias"}
    assert set(loaded.dropped) == {"head.fc.weight", "head.fc.bias"}
    own = encoder.state_dict()
    for name in loaded.as_is:
        assert torch.equal(own[name], state[name]), name
    assert torch.equal(own["norm.weight"], state["head.norm.weight"])
    assert torch.equal(own["patch_embed.proj.weight"][:, :, 1], state["patch_embed.proj.weight"])
    assert not own["patch_embed.proj.weight"][:, :, [0, 2]].any()


def test_timm_hiera_base_fits_at_full_size():
    import timm

    with torch.device("meta"):
        state = timm.create_model("hiera_base_224", pretrained=False).state_dict()
        base = VideoEncoder()
    new, loaded = convert(state, base, "timm")
    assert len(loaded.as_is) + len(loaded.renamed) == 297
    assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in base.state_dict().items()}


def test_inflated_convolution_equals_the_image_model_on_a_still_video():
    kernel, bias, image = randn((8, 3, 7, 7)), randn((8,), 1), randn((2, 3, 32, 32), 2)
    video = image[:, :, None].expand(-1, -1, 6, -1, -1)
    flat = F.conv2d(image, kernel, bias, stride=4, padding=3)
    deep = F.conv3d(video, inflate(kernel, 3), bias, stride=(2, 4, 4), padding=(1, 3, 3))
    torch.testing.assert_close(deep, flat[:, :, None].expand_as(deep))
    spread = F.conv3d(video, kernel[:, :, None].expand(-1, -1, 3, -1, -1) / 3, bias, (2, 4, 4), (1, 3, 3))
    assert not torch.allclose(spread[:, :, 0], flat, atol=1e-4)  # the zero padding before t = 0
    torch.testing.assert_close(spread[:, :, 1], flat)


def test_absent_weights_name_file_source_and_licence(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsUnavailable) as e:
        load_pretrained(encoder, "hiera_base_16x224")
    for word in ("hiera_base_16x224.pth", "https://", "CC-BY-NC 4.0"):
        assert word in str(e.value)
    assert "\n" not in str(e.value)


def test_named_weights_come_from_the_weights_folder(encoder, video_state, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    torch.save({"model_state": video_state}, tmp_path / "hiera_base_16x224.pth")
    assert load_pretrained(encoder, "hiera_base_16x224").layout == "video"


def test_a_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model_state": Evil()}))
    with pytest.raises(CheckpointError, match=r"evil\.pth: not readable as plain tensors"):
        read(path)
    torch.save({"model_state": Evil()}, path)
    with pytest.raises(CheckpointError, match="not readable as plain tensors"):
        read(path)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        read(tmp_path / name)


def test_missing_file_and_unknown_contents(encoder, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_pretrained(encoder, tmp_path / "absent.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="named tensors"):
        read(tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a Hiera checkpoint"):
        load_pretrained(encoder, tmp_path / "other.pth")


def test_a_checkpoint_that_does_not_fit_leaves_the_encoder_alone(encoder, video_state, tmp_path):
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    for change, words in (
        ({"pos_embed_spatial": torch.zeros(1, 49, WIDTH)}, "pos_embed_spatial is"),
        ({"blocks.0.attn.qkv.weight": None}, "blocks.0.attn.qkv.weight is missing"),
        ({"blocks.24.norm1.weight": torch.zeros(DIM)}, "blocks.24.norm1.weight is unknown"),
    ):
        state = {k: v for k, v in {**video_state, **change}.items() if v is not None}
        save_file(state, str(tmp_path / "m.safetensors"))
        with pytest.raises(CheckpointError, match=words):
            load_pretrained(encoder, tmp_path / "m.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_unknown_name_is_a_path(encoder):
    with pytest.raises((CheckpointError, UsageError)):
        load_pretrained(encoder, "hiera_huge")


def test_convert_keeps_the_weights_of_the_small_time_grid(video_state):
    encoder = VideoEncoder(num_frames=16, embed_dim=WIDTH)
    _, loaded = convert(video_state, encoder, "x.pth")
    assert len(loaded.as_is) == 300
    assert encoder_weights.LICENCE == loaded.licence
