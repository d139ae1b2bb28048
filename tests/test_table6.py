"""Table 6's encoders: one interface, nearly the same size, costs as torch counts them, and what they can see."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vmas import config, encoder_cost
from vmas.config import sha256
from vmas.encoder import Layout, VideoEncoder
from vmas.encoder_sampled import SampledEncoder, frame_indices
from vmas.errors import ConfigError
from vmas.experiments import assemble, table3, table6
from vmas.model import build_decoder, build_encoder
from vmas.records import Record, Row
from vmas.report import encoders, paper
from vmas.training.tasks import MotionTask

NAMES = [c.name for c in table6.CONDITIONS]
BY = {c.name: c for c in table6.CONDITIONS}


def profile(name: str, base: str = "mini") -> config.Profile:
    return config.load(base, BY[name].overrides)


@pytest.fixture(scope="module")
def built() -> dict[str, VideoEncoder]:
    out = {}
    for name in NAMES:
        torch.manual_seed(0)
        out[name] = build_encoder(profile(name)).eval()
    return out


def video(encoder: VideoEncoder, clips: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(clips, *encoder.video_shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- frames


@given(st.integers(1, 200), st.integers(1, 200))
def test_frames_are_the_middles_of_equal_parts(total, count):
    if count > total:
        with pytest.raises(ConfigError, match=f"1 and the clip's {total}"):
            frame_indices(total, count)
        return
    got = frame_indices(total, count)
    assert len(got) == count
    assert got == sorted(set(got))
    assert got == [int((i + 0.5) * total / count + 1e-9) for i in range(count)]
    assert frame_indices(total, total) == list(range(total))


# ---------------------------------------------------------------- interface and size


def test_every_row_of_the_paper_has_a_condition():
    printed = {r.split(" [")[0] for r in paper.load("table6").row}
    assert {c.paper for c in table6.CONDITIONS if c.paper} == printed
    assert len({sha256(profile(n)) for n in NAMES}) == len(NAMES)
    assert table6.REFERENCE in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_frames_to_rows_of_one_width(built, name):
    p, encoder = profile(name), built[name]
    assert encoder.video_shape == (3, 48, 64, 64)
    with torch.no_grad():
        X_v = encoder(video(encoder, 2))
    assert X_v.shape == (2, p.num_video_tokens, 192)
    assert encoder.width == p.encoder.out_dim == 192, "the decoder, and with it stage 1b, is the same one for all"
    assert len(encoder.rows_at) == p.num_video_tokens
    assert 48 % p.num_video_tokens == 0
    with pytest.raises(ConfigError, match=r"takes \[B,3,48,64,64\]"):
        encoder(torch.zeros(1, 3, 16, 64, 64))


def test_parameters_within_fifteen_percent(built):
    sizes = {n: sum(x.numel() for x in e.parameters()) for n, e in built.items()}
    for size in sizes.values():
        assert abs(size / sizes["ours"] - 1) < 0.15, sizes
    assert sizes["ours"] == 812_112


def test_ours_is_the_profile_as_it_stands(built):
    assert type(built["ours"]) is VideoEncoder
    assert profile("ours") == config.load("mini", {"decoder": {"row_times": "frames"}})  # as in all rows
    assert isinstance(built["clip"], SampledEncoder)


def test_later_keys_leave_older_hashes_alone():
    mini = config.load("mini")
    assert not {"frames", "mean_space", "width"} & set(config.plain(mini)["encoder"])
    assert "row_times" not in config.plain(mini)["decoder"]
    changed = config.load("mini", {"encoder": {"frames": 16}})
    assert config.plain(changed)["encoder"]["frames"] == 16
    assert sha256(changed) != sha256(mini)
    for key, value in (("frames", "many"), ("mean_space", 1), ("width", 0.5)):
        with pytest.raises(ConfigError, match=f"encoder.{key} must be"):
            config.load("mini", {"encoder": {key: value}})


@pytest.mark.parametrize("name", NAMES)
def test_a_row_lies_where_the_decoder_thinks_it_does(name):
    p = profile(name)
    decoder, rows = build_decoder(p), build_encoder(p).rows_at
    bias = decoder.time_bias(0, 250, len(rows))
    np.testing.assert_allclose(bias.argmax(0) / decoder.frame_rate, np.array(rows) / p.clip.fps, atol=0.5 / 50 + 1e-6)
    assert p.num_video_tokens / decoder.cond_rate == pytest.approx(p.clip.seconds)


def test_rows_evenly_spread_are_late_by_what_is_told():
    """The default, which the first records were made with: half a row late, whatever the row shows."""
    p = config.load("mini")
    late = {}
    for name in NAMES:
        one = config.load("mini", {**BY[name].overrides, "decoder": {}})
        t = (np.arange(one.num_video_tokens) + 0.5) / build_decoder(one).cond_rate
        late[name] = round(float((t - np.array(build_encoder(one).rows_at) / p.clip.fps).max()) * p.clip.fps, 6)
    assert late["ours"] == 1
    assert max(late.values()) == 3
    with pytest.raises(ConfigError, match="row_times must be evenly or frames"):
        build_decoder(config.load("mini", {"decoder": {"row_times": "first"}}))


# ---------------------------------------------------------------- what they can see


@pytest.mark.parametrize("name", ["clip", "hiera", "ours-16"])
def test_frames_in_between_are_not_seen(built, name):
    encoder = built[name]
    x = video(encoder)
    y = x.clone()
    unseen = [t for t in range(48) if t not in encoder.index]
    y[:, :, unseen] += 5
    with torch.no_grad():
        assert torch.equal(encoder(x), encoder(y))


def test_a_row_of_the_vit_sees_its_own_frame_only(built):
    encoder = built["clip"]
    x = video(encoder)
    y = x.clone()
    y[:, :, encoder.rows_at[5]] += 1
    with torch.no_grad():
        gap = (encoder(x) - encoder(y)).abs().amax((0, 2))
    assert (gap > 1e-4).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("name", ["hiera", "ours"])
def test_rows_of_the_others_see_the_whole_clip(built, name):
    encoder = built[name]
    x = video(encoder)
    y = x.clone()
    y[:, :, encoder.rows_at[0]] += 1
    with torch.no_grad():
        assert ((encoder(x) - encoder(y)).abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_stage_1a_takes_any_number_of_rows(built, name):
    encoder = built[name]
    task = MotionTask(encoder, 0.0, 1.0)
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (2, 48, 64, 64, 3), generator=g, dtype=torch.uint8)
    with torch.no_grad():
        out = task({"frames": frames, "flow": torch.rand(2, 47, generator=g)})
    assert torch.isfinite(out["loss"])
    assert task.head.out_features == 48 // profile(name).num_video_tokens


def test_stage_1a_needs_whole_shares():
    odd = build_encoder(config.load("mini", {"encoder": {"frames": 10}}))
    assert MotionTask(build_encoder(profile("ours")), 0.0, 1.0).middles == list(range(0, 48, 2))
    with pytest.raises(ConfigError, match="5 rows of X_v cannot share 48 frames"):
        MotionTask(odd, 0.0, 1.0)


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_equals_torchs_counter(name):
    p = profile(name)
    with torch.device("meta"):
        encoder = build_encoder(p)
    assert encoder_cost.macs(encoder, 2) == encoder_cost.count(encoder, 2, *encoder.video_shape)


def test_paper_scale_in_our_class():
    total = {m: sum(encoder_cost.macs(encoder_cost.at_paper_scale(m)).values()) for m in encoder_cost.PAPER_SCALE}
    assert 2 * total["Hiera-B"] == 203_451_236_352, "Hiera as published"
    assert 2 * total["VMAs encoder"] == 152_468_324_352
    assert 2 * total["CLIP ViT-B/16"] == pytest.approx(562_017_927_168, rel=0.006), "without the class token"


def test_cost_grows_as_attention_reaches():
    rows = {(r["model"], r["frames"]): r["gflops"] for r in encoder_cost.against_frames((16, 96))}
    assert rows["CLIP ViT-B/16", 96] / rows["CLIP ViT-B/16", 16] == pytest.approx(6)
    assert rows["Hiera-B", 96] / rows["Hiera-B", 16] > 12
    assert rows["VMAs encoder", 96] < rows["Hiera-B", 16] < rows["CLIP ViT-B/16", 16], "the order of Table 6"


def test_costs_of_the_conditions():
    got = {r["condition"]: r for r in table6.costs("mini")}
    assert list(got) == NAMES
    assert got["ours"]["gflops"] < got["hiera"]["gflops"] < got["clip"]["gflops"]
    assert (got["clip"]["frames"], got["hiera"]["rows"], got["ours"]["frames"]) == (16, 8, 48)


def test_a_time_is_measured(built):
    assert 0 < encoder_cost.seconds_per_clip(built["ours-16"], clips=1, repeats=2) < 10


# ---------------------------------------------------------------- tables and figures


def run(name: str, value: float) -> Record:
    rows = []
    same = {"n": 3, "seeds": 1, "status": "scaled_down"}
    label, metric, kept = BY[name].label, "MV Align (2025, 9.6 fps)", {}
    for dataset in table3.DATASETS.values():
        rows.append(Row(label, dataset, "FAD (codec)", "down", 20 - value, (19 - value, 21 - value), **same))
        rows.append(Row(label, dataset, "KL", "down", 2 - value, **same))
        rows.append(Row(label, dataset, metric, "up", value, chance=0.2, **same))
        kept[dataset] = {"KL": [2 - value] * 3, metric: [value, value + 0.1, value - 0.1]}
    extra = {"seed": 0, "per_clip": kept, "curve": []}
    prov = {"wall_s": 1.0, "data_sha256": "d", "checkpoint_sha256": name}
    return Record(f"table6-{name}", "mini", label, name, tuple(rows), prov, extra)


def test_a_table_of_runs_with_costs_and_the_papers_rows(monkeypatch):
    from vmas.report import table

    monkeypatch.setattr(encoder_cost, "seconds_per_clip", lambda *a, **k: 0.0125)
    mini = config.load("mini", {"eval": {"bootstrap": 100}})
    found = {"clip": [run("clip", 0.21)], "ours": [run("ours", 0.3)]}
    quoted = paper.quoted_rows("table6")
    record = assemble.record("table6", table6.TITLE, table6.CONDITIONS, found, "ours", mini, quoted)
    record = table6.finish(record, mini)
    assert record.row(BY["clip"].label, table6.ENCODER, table6.TIME).value == 12.5
    assert record.row(BY["ours"].label, table6.ENCODER, table6.GFLOPS).value == pytest.approx(0.2305, abs=1e-4)
    assert not any(r.system == BY["hiera"].label for r in record.rows), "no run, no row"
    assert sum(r.status == "quoted" for r in record.rows) == len(quoted) == 15
    assert record.extra["missing"] == ["hiera", "clip-8", "hiera-8", "ours-16"]
    text = table.markdown(record)
    assert table6.GFLOPS in text
    assert "281.6" in text
    figure = table6.figure(record)
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == ["FAD (codec)", "KL", "MV Align (2025, 9.6 fps)"]
    assert table.png(figure)[:4] == b"\x89PNG"


def test_token_order_shows_pool_cells_outermost():
    window, place = encoders.token_order(Layout((2, 4, 4), (1, 4, 4), (2, 2)))
    assert (window == 0).all()
    # the four tokens that become one stand a quarter of the window apart
    assert sorted(place[:2, :2].ravel()) == [0, 4, 8, 12]
    window, _ = encoders.token_order(Layout((2, 4, 4), (1, 2, 2)))
    assert [len(np.unique(window[y : y + 2, x : x + 2])) for y in (0, 2) for x in (0, 2)] == [1] * 4
    found = [Layout((2, 4, 4), (1, 2, 2), (2, 2)), Layout((2, 2, 2), (2, 2, 2))]
    assert len(encoders.layouts(found, ["1", "2"]).axes) == 2
    assert len(encoders.against_frames(encoder_cost.against_frames((16,)), {"Hiera-B": 140.2}).axes) == 2
