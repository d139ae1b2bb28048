"""The video encoder against the golden numbers of Table 2, timm's Hiera and plain max pooling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vmas import config, encoder
from vmas.encoder import NORMALISATION, Layout, VideoEncoder, normalise, patch_grid, plan
from vmas.errors import ConfigError

SMALL = dict(
    num_frames=8, img_size=64, embed_dim=16, depths=(1, 2, 2, 1), pool=((4, 4), (2, 2), (2, 2)),
    windows=((8, 8), (2, 2), None, None),
)  # fmt: skip


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def meta() -> VideoEncoder:
    with torch.device("meta"):
        return VideoEncoder()


def small(seed: int = 0, **changes) -> VideoEncoder:
    torch.manual_seed(seed)
    return VideoEncoder(**{**SMALL, **changes}).eval()


def randomise(module, seed: int) -> None:
    """Every parameter random, biases and norms too, so that parity tests leave nothing at 0 or 1."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.2 if p.ndim == 1 else p[0].numel() ** -0.5))
            if "norm" in name and name.endswith("weight"):
                p.add_(1.0)


def test_parameters_are_those_of_hiera_base(meta):
    assert count(meta) == 50_788_800
    assert len(meta.state_dict()) == 300
    assert meta.pos_embed_spatial.numel() == 301_056
    assert meta.pos_embed_temporal.numel() == 4_608
    assert count(meta.patch_embed) == 42_432
    stages = [meta.blocks[a:b] for a, b in ((0, 2), (2, 5), (5, 21), (21, 24))]
    assert [count(s) for s in stages] == [223_680, 1_297_728, 28_243_968, 20_673_792]
    assert count(meta.norm) == 1_536


@pytest.mark.parametrize(("window", "count"), [((4, 4), 9408), ((8, 8), 2352)])
def test_windows_of_a_clip(window, count):
    """Of 48 x 56 x 56 tokens; 65535 windows, the most that CUDA's attention takes at once, are 6 clips or 27."""
    layouts = plan((48, 56, 56), (1, 1, 1, 1), ((2, 2), (2, 2), (2, 2)), (window, (4, 4), None, None), False)
    tokens = torch.empty(1, 48, 56, 56, 1, device="meta")
    assert layouts[0].gather(tokens).shape[0] == count


@pytest.mark.parametrize(
    ("windows", "flops"),
    [(((8, 8), (7, 7), None, None), 152_468_324_352), (((4, 4), (7, 7), None, None), 146_572_443_648)],
)
def test_flops_on_meta(windows, flops):
    with torch.device("meta"):
        model, video = VideoEncoder(windows=windows), torch.empty(1, 3, 96, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(video)
    assert counter.get_total_flops() == flops


def test_stage_shapes_are_table_2(meta):
    X_v, stages = meta(torch.empty(2, 3, 96, 224, 224, device="meta"), return_stages=True)
    assert X_v.shape == (2, 48, 768)
    assert [tuple(s.shape[1:]) for s in stages] == [
        (48, 56, 56, 96), (48, 14, 14, 192), (48, 2, 2, 384), (48, 1, 1, 768),
    ]  # fmt: skip
    assert [b.attn.heads for b in meta.blocks] == [1] * 2 + [2] * 3 + [4] * 16 + [8] * 3
    assert [i for i, b in enumerate(meta.blocks) if b.cells > 1] == [2, 5, 21]
    assert [[*a, *b] for a, b in meta.runs] == [[0, 1, 2], [3, 4, 5], list(range(6, 22)), [22, 23]]


@pytest.mark.parametrize("depths", [(1, 2, 2, 1), (1, 1, 1, 1), (2, 1, 3, 2)])
def test_parity_with_timm_at_every_stage(depths):
    from timm.models.hiera import Hiera

    reference = Hiera(
        img_size=(8, 64, 64), embed_dim=16, num_heads=1, num_classes=0, stages=depths, q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4), patch_padding=(1, 3, 3),
        sep_pos_embed=True, norm_layer="layernorm", weight_init="skip",
    ).eval()  # fmt: skip
    ours = small(depths=depths, pool=((2, 2),) * 3, windows=((8, 8), (4, 4), None, None), single_output=False)
    for name, m in reference.named_modules():
        if isinstance(m, torch.nn.LayerNorm):
            assert m.eps == 1e-6, name
    randomise(reference, 1)
    state = {k.replace("head.norm.", "norm."): v for k, v in reference.state_dict().items()}
    ours.load_state_dict(state)
    video = torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, stages = ours(video, return_stages=True)
        theirs = reference.forward_intermediates(video, output_fmt="NHWC", intermediates_only=True)
    assert len(stages) == len(theirs) == 4
    for a, b in zip(stages, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def layouts():
    side = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))  # windows, rest, cell
    return st.builds(
        lambda t, glob, h, w: Layout((t, h[0] * h[1] * h[2], w[0] * w[1] * w[2]), (1, h[1] * h[2], w[1] * w[2]),
                                     (h[2], w[2])) if not glob else
        Layout((t, h[1] * h[2], w[1] * w[2]), (t, h[1] * h[2], w[1] * w[2]), (h[2], w[2])),
        st.integers(1, 3), st.booleans(), side, side,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), batch=st.integers(1, 2))
def test_pooling_order_equals_max_pool3d(layout, batch):
    x = torch.randn(batch, *layout.grid, 5)
    windows = layout.gather(x)
    assert windows.shape[1] == layout.tokens
    torch.testing.assert_close(layout.scatter(windows), x, rtol=0, atol=0)
    pooled = windows.unflatten(1, (layout.cells, -1)).amax(1)
    want = F.max_pool3d(x.movedim(-1, 1), (1, *layout.pool)).movedim(1, -1)
    assert torch.equal(layout.pooled.scatter(pooled), want)


@settings(max_examples=30, deadline=None)
@given(layout=layouts())
def test_windows_hold_neighbours_only(layout):
    T, H, W = layout.grid
    t, h, w = layout.window
    place = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (T, H, W)), indexing="ij"), -1)
    place = layout.gather(place[None])
    span = place.amax(1) - place.amin(1)
    assert torch.equal(span, torch.tensor([t - 1, h - 1, w - 1]).expand_as(span))


def test_time_mixes_only_where_the_paper_says():
    """Within windowed stages a frame reaches only the time steps of its 3-frame patches; later, all of them."""
    model = small()
    video = torch.zeros(1, 3, 8, 64, 64)
    changed = video.clone()
    changed[:, :, 7] = 1.0
    with torch.no_grad():
        (a, sa), (b, sb) = model(video, return_stages=True), model(changed, return_stages=True)
    touched = [(x - y).abs().amax((0, 2, 3, 4)) > 0 for x, y in zip(sa, sb, strict=True)]
    assert touched[0].tolist() == touched[1].tolist() == [False, False, False, True]
    assert touched[2].all()
    assert ((a - b).abs().amax((0, 2)) > 0).all()


def test_clips_of_a_batch_do_not_mix():
    model = small()
    video = torch.randn(3, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(video)[1:2], model(video[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 256 * 3])
def test_parts_of_time_equal_the_whole(monkeypatch, tokens):
    model = small()
    video = torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, stages = model(video, return_stages=True)  # gradients on: one part
    monkeypatch.setattr(encoder, "PART_TOKENS", tokens)
    with torch.inference_mode():
        X_v, parts = model(video, return_stages=True)
    torch.testing.assert_close(X_v, whole.detach(), atol=1e-5, rtol=1e-5)
    for a, b in zip(parts, stages, strict=True):
        torch.testing.assert_close(a, b.detach(), atol=1e-5, rtol=1e-5)


def test_attention_in_calls_of_limited_batch(monkeypatch):
    model = small()
    video = torch.randn(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one = model(video)
        monkeypatch.setitem(encoder.MAX_BATCH, "cpu", 5)
        torch.testing.assert_close(model(video), one, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    model = small().train()
    model(torch.randn(1, 3, 8, 64, 64)).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("profile", ["smoke", "mini", "paper"])
def test_profiles_build(profile):
    p = config.load(profile)
    with torch.device("meta"):
        model = VideoEncoder.from_config(p.encoder, p.clip.num_frames, p.clip.img_size)
    size = p.clip.img_size
    X_v = model(torch.empty(2, 3, p.clip.num_frames, size, size, device="meta"))
    assert X_v.shape == (2, p.num_video_tokens, p.encoder.out_dim)


def test_drop_path_drops_whole_clips():
    torch.manual_seed(0)
    block = VideoEncoder(**SMALL, drop_path_rate=0.5).train().blocks[-1]
    block.drop_path = 0.5
    kept = block._drop(torch.ones(6 * 4, 3, 2), 6).view(6, -1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin(1), kept.amax(1))
    assert torch.equal(block.eval()._drop(torch.ones(4, 3), 2), torch.ones(4, 3))


def test_drop_path_rises_with_depth():
    rates = [b.drop_path for b in VideoEncoder(**SMALL, drop_path_rate=0.5).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("statistics", NORMALISATION)
def test_normalise(statistics):
    frames = torch.randint(0, 256, (2, 4, 5, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v) for v in NORMALISATION[statistics])
    want = ((frames.float() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    x = normalise(frames, statistics)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"windows": ((7, 7), (2, 2), None, None)}, "stage 1 has 16x16 tokens, not whole windows of 7x7"),
        # timm takes mask units larger than the grid of its pools and attends to scrambled tokens
        ({"windows": ((32, 32), (2, 2), None, None)}, "stage 1 has 16x16 tokens"),
        ({"windows": ((2, 2), (2, 2), None, None)}, "window 2x2 does not hold whole cells of the 4x4 pool"),
        ({"pool": ((4, 4), (2, 2), (1, 1))}, "a last pool of 2x2 would fit"),
        ({"pool": ((4, 4), (2, 2))}, "4 stages need 3 pools"),
        ({"depths": (1, 0, 2, 1)}, "at least one block"),
        ({"embed_dim": 15, "num_heads": 2}, "not a multiple of num_heads"),
        ({"img_size": 1, "patch_padding": (1, 0, 0)}, "smaller than the patch kernel"),
        ({"windows": ((0, 8), (2, 2), None, None)}, "must be positive"),
    ],
)
def test_sizes_that_do_not_fit(changes, words):
    with pytest.raises(ConfigError, match=words) as e:
        small(**changes)
    assert "\n" not in str(e.value)


def test_video_of_another_shape():
    with pytest.raises(ConfigError, match=r"this encoder takes \[B,3,8,64,64\]"):
        small()(torch.zeros(1, 3, 10, 64, 64))


def test_rectangular_frames():
    model = small(img_size=(64, 32), windows=((8, 8), (2, 2), None, None), pool=((4, 4), (2, 2), (2, 1)))
    assert model(torch.zeros(1, 3, 8, 64, 32)).shape == (1, 4, 128)


def test_patch_grid_and_plan_of_the_paper():
    grid = patch_grid((96, 224, 224), (3, 7, 7), (2, 4, 4), (1, 3, 3))
    assert grid == (48, 56, 56)
    stages = plan(grid, (2, 3, 16, 3), ((4, 4), (7, 7), (2, 2)), ((8, 8), (7, 7), None, None))
    assert [s.tokens for s in stages] == [64, 49, 192, 48]
