"""`vmas generate` with a real model of random weights: lengths, files, failures, and going on after a stop."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vmas import config, generate, loudness, media
from vmas.codec import build_codec, save_codec
from vmas.errors import CheckpointError, UsageError
from vmas.generate import generate_videos, join, plan_outputs, window_starts
from vmas.model import VMAs

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "media"
RATE = 32000
TINY = {
    "clip": {"seconds": 1.25, "flow_size": 32},
    "decoder": {"dim": 32, "layers": 1},
    "codec": {"bins": 32, "width": 48, "blocks": 1},
    "encoder": {"embed_dim": 8},
    "sampling": {"batch_size": 2},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> VMAs:
    torch.manual_seed(0)
    profile = config.load("smoke", TINY)
    codec = build_codec(profile.codec)
    codec.E.normal_()  # an untrained codec's entries are all zero
    return VMAs(profile, codec).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_codec(folder / "codec", model.codec)
    model.save_pretrained(folder / "vmas")
    return folder / "vmas"


def video(path, seconds=1.25, fps=8, seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(seed).integers(0, 255, (round(seconds * fps), 32, 48, 3), dtype=np.uint8)
    return media.write_clip(path, frames, fps)


def check_output(path, seconds):
    info = media.probe(path)
    assert info.sample_rate == RATE
    wav = media.read_audio(path)
    assert wav.shape[1] == pytest.approx(seconds * RATE, abs=2)
    assert -30 < loudness.loudness(wav, RATE) < -10
    assert np.abs(wav).max() < 1
    return wav


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize("frames", [1, 11, 12, 13, 19, 20, 21, 40, 100, 1000])
def test_windows_cover_every_frame(frames):
    starts = window_starts(frames, 12, 5)
    assert starts[0] == 0
    assert all(0 < b - a <= 7 for a, b in itertools.pairwise(starts))
    assert starts[-1] + 12 == max(frames, 12)


def test_cross_fade_has_equal_power_and_no_gap():
    rng = np.random.default_rng(0)
    music = np.zeros(40_000, np.float32)
    end = 0
    for at in (0, 7000, 14_000, 21_000, 28_000, 30_000):
        end = join(music, rng.normal(size=10_000).astype(np.float32), at, end, 3000)
    assert end == 40_000
    power = (music**2).reshape(-1, 1000).mean(1)  # of independent noise, so equal power means constant power
    assert power.min() > 0.8
    assert power.max() < 1.2


def test_join_keeps_the_windows_outside_the_fade():
    music = np.zeros(10, np.float32)
    end = join(music, np.full(6, 2.0, np.float32), 0, 0, 2)
    end = join(music, np.full(6, 3.0, np.float32), 4, end, 2)
    assert end == 10
    assert music[:4].tolist() == [2] * 4
    assert music[6:].tolist() == [3] * 4


def test_join_where_the_last_window_overlaps_more():
    music = np.zeros(8, np.float32)
    end = join(music, np.full(6, 2.0, np.float32), 0, 0, 2)
    assert join(music, np.full(6, 3.0, np.float32), 2, end, 2) == 8
    assert music[:4].tolist() == [2] * 4  # the earlier one plays until its own fade
    assert music[6:].tolist() == [3] * 2


def test_music_does_not_depend_on_the_batch(model, tmp_path):
    path = video(tmp_path / "v.mp4", 3.5)
    music = generate.music_for(model, path, 3.5, seed=3)
    assert music.shape == (round(3.5 * RATE),)
    single = VMAs(config.load("smoke", TINY | {"sampling": {"batch_size": 1}}), model.codec).eval()
    single.load_state_dict(model.state_dict())
    assert np.allclose(generate.music_for(single, path, 3.5, seed=3), music, atol=1e-4)
    assert not np.allclose(generate.music_for(model, path, 3.5, seed=4), music, atol=1e-2)


def test_music_of_the_first_window_is_that_of_the_clip(model, tmp_path):
    path = video(tmp_path / "v.mp4", 3.5)
    clip = model.profile.clip
    frames = media.read_frames(path, clip.fps, clip.img_size, duration_s=clip.seconds)
    alone = model.generate_waveform(frames[None], seed=1)[0]
    music = generate.music_for(model, path, 3.5, seed=1)
    safe = round((clip.seconds - 6 / clip.fps) * RATE)
    assert np.allclose(music[:safe], alone[:safe], atol=1e-4)


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("seconds", [0.125, 0.5, 1.25, 1.5, 3.125])
def test_length_loudness_and_pictures(model, tmp_path, seconds):
    path = video(tmp_path / "v.mp4", seconds)
    summary = generate_videos([path], model=model, progress=False)
    assert summary.exit_code == 0
    out = summary.results[0].output
    assert out == tmp_path / "v.vmas.mp4"
    check_output(out, seconds)
    assert np.array_equal(media.read_frames(out, 8, None), media.read_frames(path, 8, None))


def test_one_picture(model, tmp_path):
    path = media.write_clip(tmp_path / "still.mp4", np.full((1, 32, 32, 3), 99, np.uint8), 2)
    summary = generate_videos([path], model=model, progress=False)
    check_output(summary.results[0].output, 0.5)


def test_same_seed_same_bytes(model, tmp_path):
    path = video(tmp_path / "v.mp4", 1.5)
    made = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate_videos([path], out=tmp_path / f"{name}.mp4", seed=seed, model=model, progress=False)
        made[name] = (tmp_path / f"{name}.mp4").read_bytes()
    assert made["a"] == made["b"] != made["c"]


def test_result_does_not_depend_on_the_other_videos(model, tmp_path):
    a, b = video(tmp_path / "a.mp4", seed=1), video(tmp_path / "b.mp4", seed=2)
    generate_videos([a, b], out=tmp_path / "both", model=model, progress=False)
    generate_videos([b], out=tmp_path / "alone", model=model, progress=False)
    assert (tmp_path / "both" / "b.vmas.mp4").read_bytes() == (tmp_path / "alone" / "b.vmas.mp4").read_bytes()


def test_duration(model, tmp_path):
    path = video(tmp_path / "v.mp4", 3.5)
    summary = generate_videos([path], duration=1.0, model=model, progress=False)
    length = media.video_seconds(path, 1.0)
    assert 1.0 <= length < 2.0
    check_output(summary.results[0].output, length)
    summary = generate_videos([path], duration=99, model=model, progress=False)
    check_output(summary.results[0].output, 3.5)


def test_output_rule(tmp_path):
    a, b = tmp_path / "x" / "a.mov", tmp_path / "y" / "b b.mp4"
    assert plan_outputs([a, b], None) == [tmp_path / "x" / "a.vmas.mp4", tmp_path / "y" / "b b.vmas.mp4"]
    assert plan_outputs([a, b], tmp_path) == [tmp_path / "a.vmas.mp4", tmp_path / "b b.vmas.mp4"]
    assert plan_outputs([a], tmp_path / "new") == [tmp_path / "new" / "a.vmas.mp4"]
    assert plan_outputs([a], tmp_path / "o.MKV") == [tmp_path / "o.MKV"]
    with pytest.raises(UsageError, match="names one file for 2 videos"):
        plan_outputs([a, b], tmp_path / "o.mp4")
    with pytest.raises(UsageError, match="unknown kind of video file"):
        plan_outputs([a], tmp_path / "o.avi")


def test_usage_errors(model, tmp_path):
    path = video(tmp_path / "v.mp4")
    with pytest.raises(UsageError, match="no video"):
        generate_videos([], model=model)
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--duration"):
            generate_videos([path], duration=bad, model=model)
    with pytest.raises(UsageError, match="not available"):
        generate.pick_device("warp")


# ---------------------------------------------------------------- failures


def test_the_others_go_on(model, tmp_path, capsys):
    good = video(tmp_path / "good.mp4")
    late = video(tmp_path / "ünï cödé.mp4", seed=1)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:600])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "sub").mkdir()
    other = tmp_path / "sub" / "good.mov"
    other.write_bytes(good.read_bytes())
    broken = [cut, tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "missing.mp4", tmp_path / "sub"]
    out = tmp_path / "out"
    summary = generate_videos([good, *broken, other, late], out=out, model=model, progress=False)
    assert summary.exit_code == 1
    assert [r.video for r in summary.failed] == [*broken, other]
    assert sorted(p.name for p in out.iterdir()) == ["good.vmas.mp4", "ünï cödé.vmas.mp4"]
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6
    assert all(str(r.video) in line for r, line in zip(summary.failed, errors, strict=True))
    assert "already that of" in errors[-1]
    assert "2 of 8 videos done, 6 failed:" in captured.out


def test_input_is_never_overwritten(model, tmp_path):
    path = video(tmp_path / "v.mp4")
    before = path.read_bytes()
    summary = generate_videos([path], out=path, model=model, progress=False)
    assert "would overwrite an input" in str(summary.failed[0].error)
    again = generate_videos([path, video(tmp_path / "v.vmas.mp4")], model=model, progress=False)
    assert [r.video for r in again.failed] == [path]
    assert path.read_bytes() == before


def test_output_folder_that_cannot_be_made(model, tmp_path):
    path = video(tmp_path / "v.mp4")
    (tmp_path / "file").write_text("x")
    summary = generate_videos([path], out=tmp_path / "file" / "out", model=model, progress=False)
    assert summary.exit_code == 1
    assert str(tmp_path / "file" / "out") in str(summary.failed[0].error)
    assert "\n" not in str(summary.failed[0].error)


def test_container_that_cannot_hold_the_video(model, tmp_path):
    path = video(tmp_path / "v.mp4")
    summary = generate_videos([path], out=tmp_path / "o.webm", model=model, progress=False)
    assert "webm files cannot hold the h264 video" in str(summary.failed[0].error)
    assert not (tmp_path / "o.webm").exists()


def test_three_hours_are_refused(model, tmp_path):
    path = media.write_clip(tmp_path / "long.mp4", np.zeros((108, 16, 16, 3), np.uint8), 0.01)
    summary = generate_videos([path], model=model, progress=False)
    assert "is 180 min long, at most 30 min" in str(summary.failed[0].error)


def test_nan_weights_name_the_video(model, tmp_path):
    path = video(tmp_path / "v.mp4")
    broken = VMAs(model.profile, model.codec).eval()
    with torch.no_grad():
        for p in broken.decoder.parameters():
            p.fill_(float("nan"))
    summary = generate_videos([path], model=broken, progress=False)
    assert str(path) in str(summary.failed[0].error)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


# ---------------------------------------------------------------- checkpoints, stopping and going on


def test_from_a_checkpoint_and_again(checkpoint, tmp_path, capsys):
    path = video(tmp_path / "v.mp4")
    first = generate_videos([path], checkpoint=checkpoint, device="cpu", verbose=True, progress=False)
    assert first.exit_code == 0
    assert "peak memory" in capsys.readouterr().out
    out = tmp_path / "v.vmas.mp4"
    check_output(out, 1.25)
    stamp, data = out.stat().st_mtime_ns, out.read_bytes()
    again = generate_videos([path], checkpoint=checkpoint, device="cpu", progress=False)
    assert again.results[0].skipped
    assert out.stat().st_mtime_ns == stamp
    other = generate_videos([path], checkpoint=checkpoint, device="cpu", seed=1, progress=False)
    assert not other.results[0].skipped
    assert out.read_bytes() != data


def test_missing_and_tampered_checkpoints_stop_before_any_work(checkpoint, tmp_path):
    path = video(tmp_path / "v.mp4")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        generate_videos([path], checkpoint=tmp_path / "nowhere", progress=False)
    bad = tmp_path / "vmas"
    bad.mkdir()
    for f in checkpoint.iterdir():
        (bad / f.name).write_bytes(f.read_bytes())
    weights = bytearray((bad / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (bad / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match="sha256"):
        generate_videos([path], checkpoint=bad, device="cpu", progress=False)
    assert not (tmp_path / "v.vmas.mp4").exists()


def test_stopped_run_says_how_to_go_on(checkpoint, tmp_path, capsys):
    a, b = video(tmp_path / "a.mp4", seed=1), video(tmp_path / "b.mp4", seed=2)
    loaded = VMAs.from_pretrained(checkpoint)
    make = loaded.generate_waveform
    calls = []

    def stopped(*args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return make(*args, **kwargs)

    loaded.generate_waveform = stopped
    with pytest.raises(KeyboardInterrupt):
        generate_videos([a, b], out=tmp_path / "out", model=loaded, progress=False)
    assert "stopped: 1 of 2 videos are done" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.vmas.mp4"]


def test_importing_costs_no_torch():
    code = "import sys, vmas.generate; sys.exit(any(m in sys.modules for m in ('torch', 'av', 'cv2', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_is_played_does_not_clip(model, tmp_path, monkeypatch):
    """AAC overshoots what it is given: short bursts of a square wave at the ceiling come back above full scale."""
    t = np.arange(40000) / RATE
    loud = (np.sign(np.sin(2 * np.pi * 400 * t)) * np.exp(-60 * (t % 0.4))).astype(np.float32)
    monkeypatch.setattr(generate, "music_for", lambda *_: loud)
    one = video(tmp_path / "a.mp4")
    once = tmp_path / "once.mp4"
    media.mux(one, loudness.finish(loud, RATE)[None], RATE, once)
    assert np.abs(media.read_audio(once, RATE)).max() > 1, "the case that is tested for"
    generate_videos(one, out=tmp_path / "b.mp4", model=model, progress=False)
    assert np.abs(media.read_audio(tmp_path / "b.mp4", RATE)).max() <= 1


def test_an_unexpected_failure_of_one_video_is_a_line(model, tmp_path, capsys, monkeypatch):
    videos = [video(tmp_path / f"{n}.mp4") for n in "ab"]
    make = generate.music_for

    def music(m, path, *rest):
        if path.stem == "a":
            raise ValueError("broken\nin two lines")
        return make(m, path, *rest)

    monkeypatch.setattr(generate, "music_for", music)
    summary = generate_videos(videos, out=tmp_path / "out", model=model, progress=False)
    assert summary.exit_code == 1
    err = capsys.readouterr().err
    assert "a.mp4: unexpected ValueError: broken in two lines (--debug shows where)" in err
    assert "Traceback" not in err
    assert (tmp_path / "out" / "b.vmas.mp4").is_file()
    generate_videos(videos[:1], out=tmp_path / "out", model=model, progress=False, debug=True)
    assert "Traceback" in capsys.readouterr().err


def test_a_name_that_ends_in_a_slash_is_a_folder(model, tmp_path):
    one = video(tmp_path / "a.mp4")
    assert cli_out(plan_outputs([one], tmp_path / "res.v1", named_as_folder=True)) == ["res.v1/a.vmas.mp4"]
    with pytest.raises(UsageError, match="unknown kind"):
        plan_outputs([one], tmp_path / "res.v1")
    generate_videos(one, out=f"{tmp_path}/res.v1/", model=model, progress=False)
    assert (tmp_path / "res.v1" / "a.vmas.mp4").is_file()


def cli_out(plan) -> list[str]:
    return ["/".join(p.parts[-2:]) for p in plan]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared media are not here")
def test_the_committed_model_scores_real_videos(tmp_path):
    """As a user starts it: exact length, 32 kHz, -30 to -10 LUFS, no clipping, a bar, the same again by seed."""
    line = [sys.executable, "-m", "vmas", "generate", SHARED / "dog.mp4", SHARED / "sample.mp4", "-v", "-o"]
    for out in ("one", "two"):
        done = subprocess.run([*line, f"{tmp_path / out}/"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "peak memory" in done.stdout
    for name, seconds in (("dog", 5.0), ("sample", 5.1)):
        files = [tmp_path / out / f"{name}.vmas.mp4" for out in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
        about = media.probe(files[0])
        assert about.duration_s == pytest.approx(seconds, abs=0.05)
        wav = media.read_audio(files[0], RATE)
        assert wav.shape[1] == pytest.approx(seconds * RATE, abs=RATE * 0.05)
        assert np.abs(wav).max() <= 1
        assert -30 < loudness.loudness(wav, RATE) < -10
        assert np.abs(wav[:, -32:]).max() < 0.05 > np.abs(wav[:, :32]).max()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared media are not here")
def test_real_videos(model, tmp_path):
    names = ["dog.mp4", "sample.mp4"]
    summary = generate_videos([SHARED / n for n in names], out=tmp_path, model=model, progress=False)
    assert summary.exit_code == 0
    for name, seconds in zip(names, (5.0, 5.1), strict=True):
        check_output(tmp_path / name.replace(".mp4", ".vmas.mp4"), seconds)
