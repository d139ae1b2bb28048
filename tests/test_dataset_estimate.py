"""What a build of another size costs, from what one took: counted by hand."""

import dataclasses
import json

import pytest

from vmas import cli, config, paths
from vmas.dataset import estimate
from vmas.dataset.estimate import Costs, extrapolate, measured, read_timings
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Options
from vmas.errors import DataError

TIMINGS = {
    "videos": 100,
    "clip_hours": 2.0,
    "bytes": 4_000_000,
    "seconds": {"probe": 50.0, "similarity": 150.0, "segments": 400.0, "tokens": 200.0, "shards": 100.0},
    "gpu": ["tokens"],
}


def test_seconds_are_shared_out_over_videos_hours_and_kinds_of_machine():
    assert measured(TIMINGS) == Costs(2.0, 0.0, 250.0, 100.0, 2e6)
    everything = measured(TIMINGS | {"gpu": ["tokens", "similarity"]})
    assert (everything.core_s_video, everything.gpu_s_video) == (0.5, 1.5)
    on_cpu = measured(TIMINGS | {"gpu": []})
    assert (on_cpu.core_s_hour, on_cpu.gpu_s_hour) == (350.0, 0.0)


def test_what_the_cores_do_for_a_model_on_a_gpu_is_core_time():
    seconds = {"probe": 50.0, "decode": 150.0, "similarity": 10.0, "segments": 400.0, "beats": 200.0, "onsets": 30.0}
    costs = measured(TIMINGS | {"seconds": seconds, "gpu": ["similarity", "beats"]})
    assert costs == Costs(2.0, 0.1, 215.0, 100.0, 2e6)


def test_table_by_hand():
    costs = Costs(core_s_video=3.6, gpu_s_video=0.36, core_s_hour=3600, gpu_s_hour=36, bytes_hour=1e8)
    table = extrapolate(costs, videos=1e6, kept_hours=1e4, nodes=(1, 8), cores=10, gpus=2)
    assert table["nodes"].tolist() == [1, 8]
    assert table["core-hours"].tolist() == pytest.approx([11_000] * 2)  # 1000 for the videos, 10,000 for the clips
    assert table["GPU-hours"].tolist() == pytest.approx([200] * 2)
    assert table["TB"].tolist() == pytest.approx([1.0] * 2)
    assert table["days"].tolist() == pytest.approx([11_000 / 10 / 24, 11_000 / 80 / 24])  # the cores are the slower
    slow = extrapolate(dataclasses.replace(costs, gpu_s_hour=36e3), 1e6, 1e4, (1,), cores=10, gpus=2, efficiency=0.5)
    assert slow["days"].tolist() == pytest.approx([100_100 / 2 / 24 / 0.5])  # now the GPUs are


def test_default_is_the_papers_size():
    costs = Costs(1.0, 0.0, 0.0, 0.0, 1e9)
    table = extrapolate(costs)
    assert table["nodes"].tolist() == [1, 8, 64]
    assert table["core-hours"][0] == pytest.approx(15.3e6 / 3600)
    assert table["TB"][0] == pytest.approx(47.0)
    assert table["days"][0] == pytest.approx(64 * table["days"][2])


def test_costs_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match="kept nothing"):
        measured(TIMINGS | {"clip_hours": 0})
    with pytest.raises(DataError, match="old: not the timings of a build"):
        measured({"clip_hours": 1.0, "seconds": {}}, "old")
    with pytest.raises(DataError, match=r"timings\.json: no such file"):
        read_timings(tmp_path)
    (tmp_path / "timings.json").write_text("{")
    with pytest.raises(DataError, match="not readable"):
        read_timings(tmp_path)
    with pytest.raises(DataError, match="at least one"):
        extrapolate(measured(TIMINGS), gpus=0)
    with pytest.raises(DataError, match="at least one node"):
        extrapolate(measured(TIMINGS), nodes=(0,))


def test_command_line(tmp_path, capsys):
    (tmp_path / "timings.json").write_text(json.dumps(TIMINGS))
    line = ["dataset", "extrapolate", str(tmp_path), "--videos", "3600", "--hours", "36", "--nodes", "2"]
    assert cli.main([*line, "--cores", "3", "--gpus", "1"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["nodes", "core-hours", "GPU-hours", "TB", "days"]
    assert row.split() == ["2", "4.5", "1.0", "0.0", "0.0"]
    assert cli.main(["dataset", "extrapolate", str(tmp_path / "nowhere")]) == 1


def test_rates_of_a_dry_run_are_those_measured():
    figures = json.loads((paths.ROOT / "benchmarks" / "results" / "dataset.json").read_text())["figures"]["rates"]
    large, small = figures["640 x 360, paper's clips"], figures["64 x 64, mini"]
    for stage, assumed in (estimate.CORE_S_LOOKED | estimate.CORE_S_MADE).items():
        rate = large["video_hours_per_core_hour"].get(stage) or small["video_hours_per_core_hour"][stage]
        assert assumed == pytest.approx(3600 / rate, rel=0.1, abs=0.1), stage


def test_models_on_a_gpu_leave_the_decoding_to_the_cores():
    """What `--dry-run` says of a thousand videos, counted by hand."""
    rows = [Video(f"v{i}", "", f"v{i}", duration=240.0) for i in range(1000)]

    def hours(kind: str, **changes) -> float:
        profile = config.load("paper", changes.pop("profile", {}))
        said = estimate.estimate(rows, Options(profile, **changes))
        return float(next(line for line in said.splitlines() if line.startswith(kind)).split()[1].replace("none", "0"))

    looked, made = estimate.CORE_S_LOOKED, estimate.CORE_S_MADE
    only = ("duplicates", "vocals", "genre", "tokens", "beats")
    cheap, clip = (hours("core-hours", skip=only, frames=f) for f in ("cheap", "clip"))
    assert cheap - clip == pytest.approx(looked["similarity"] * 1000 * 240 / 3600**2, abs=0.11)
    assert hours("GPU-hours", skip=only, frames="clip") == pytest.approx(0.05 * 1000 / 3600, abs=0.1)
    beats, kept = ("similarity", *only[:-1]), 1000 * 240 / 3600
    plain = hours("core-hours", skip=(*beats, "beats"))
    onsets = made["onsets"] * kept / 3600
    assert hours("core-hours", skip=beats) - plain == pytest.approx(onsets, abs=0.11)  # RAFT's pictures are the clip's
    again = hours("core-hours", skip=beats, profile={"clip": {"flow_size": 128}})
    assert again - plain == pytest.approx(onsets + made["segments"] * kept / 3600, abs=0.11)


def test_the_papers_models_at_the_papers_size_by_hand():
    options = Options(config.load("paper"), frames="clip", vocals="demucs", genre="clap")
    costs = estimate.expected(options, 240.0)
    one, _, many = estimate.extrapolate(costs).itertuples()
    gpu = (0.05 * 15.3e6 + (60 + 10 + 15 + 720) * 47_000) / 3600
    looked, made = estimate.CORE_S_LOOKED, estimate.CORE_S_MADE
    core = sum(looked[k] for k in ("probe", "decode", "duplicates")) * 240 / 3600 * 15.3e6
    core += sum(made[k] for k in ("segments", "onsets", "shards")) * 47_000
    assert one[3] == pytest.approx(gpu)
    assert one[2] == pytest.approx(core / 3600)
    assert one.days == pytest.approx(max(core / 3600 / 64, gpu / 8) / 24)
    assert many.days == pytest.approx(one.days / 64)
