"""Media: exact sampling in time, muxing that leaves the pictures alone, and broken files."""

import errno
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import RATE, click, encode, levels, numbers, video_bytes, wav_file

from vmas import media
from vmas.errors import MediaError

SHARED = Path(__file__).parents[2] / "shared" / "media"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """2 s at 24 fps, 48x32, with clicks at 0.5 s and 1.5 s."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    return media.write_clip(path, levels(48, 32, 48, 4), 24, click(2.0, 0.5, 1.5))


# ---------------------------------------------------------------- writing and reading


def test_probe(clip):
    info = media.probe(clip)
    assert (info.duration_s, info.fps, info.width, info.height, info.frames) == (2.0, 24.0, 48, 32, 48)
    assert (info.has_video, info.has_audio, info.sample_rate, info.channels, info.rotation) == (True, True, RATE, 1, 0)


def test_write_is_deterministic(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (12, 34, 46, 3), dtype=np.uint8)
    wav = rng.normal(0, 0.1, (2, RATE // 2)).astype(np.float32)
    a, b = (media.write_clip(tmp_path / n, frames, 24, wav).read_bytes() for n in ("a.mp4", "b.mp4"))
    assert a == b
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("fps", [9.6, 12, 24, 30, 60])
def test_sampling_by_timestamps(clip, fps):
    frames = media.read_frames(clip, fps, 16)
    assert frames.shape == (round(2 * fps), 16, 16, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames, 4) == [int(i * 24 / fps + 1e-6) for i in range(len(frames))]


@pytest.mark.parametrize("start", [0.25, 1.0, 1.5])
def test_start_seeks_to_the_exact_picture(clip, start):
    frames = media.read_frames(clip, 24, 16, start_s=start, duration_s=0.25)
    assert numbers(frames, 4) == list(range(round(start * 24), round(start * 24) + 6))


def test_last_picture_is_held(clip):
    frames = media.read_frames(clip, 10, 16, start_s=1.0, duration_s=3.0)
    assert len(frames) == 30
    assert numbers(frames, 4)[10:] == [47] * 20


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm"])
def test_variable_frame_rate(tmp_path, name):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = encode(tmp_path / name, levels(5, step=40), [0, 100, 900, 1000, 1500, 2000], codec=codec)
    frames = media.read_frames(path, 10, 16, duration_s=2.0)
    assert numbers(frames, 40) == [0] + [1] * 8 + [2] + [3] * 5 + [4] * 5
    assert media.video_seconds(path) == pytest.approx(2.0, abs=0.05)


def test_matroska_rounding_does_not_repeat_pictures(tmp_path):
    media.mux(media.write_clip(tmp_path / "a.mp4", levels(48, step=4), 24), click(2.0, 0.5), RATE, tmp_path / "a.mkv")
    assert numbers(media.read_frames(tmp_path / "a.mkv", 24, 16), 4) == list(range(48))


def test_square_is_the_centre(tmp_path):
    frames = np.zeros((2, 64, 128, 3), np.uint8)
    frames[:, :, 32:96, 0] = 250  # the centre square is red, what is cut away is black
    path = media.write_clip(tmp_path / "a.mp4", frames, 10, crf=5)
    for size in (8, 32, 96):  # shrunk and enlarged
        got = media.read_frames(path, 10, size)[0].astype(int)
        assert got.shape == (size, size, 3)
        assert np.abs(got[2:-2, 2:-2] - [250, 0, 0]).mean() < 4


def test_quick_shrinking_agrees_with_area_scaling(tmp_path):
    import cv2

    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    path = media.write_clip(tmp_path / "a.mp4", image[None], 10, crf=10)
    native = media.read_frames(path, 10, None)[0]
    area = cv2.resize(native, (64, 48), interpolation=cv2.INTER_AREA)[:, 8:56].astype(int)
    assert np.abs(media.read_frames(path, 10, 48)[0] - area).mean() < 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_mirror(tmp_path, degrees, mirror):
    image = np.full((48, 64, 3), 40, np.uint8)
    image[:24, :32] = (230, 40, 40)  # top left red
    image[24:, 32:] = (40, 40, 230)  # bottom right blue
    path = encode(tmp_path / "r.mp4", np.stack([image] * 3), rotate=(degrees, mirror))
    expected = np.rot90(image, degrees // 90)
    expected = expected[:, ::-1] if mirror else expected
    native = media.read_frames(path, 10, None)[0]
    assert native.shape == expected.shape
    assert np.abs(native.astype(int) - expected).mean() < 12
    square = media.read_frames(path, 10, 12)[0].astype(int)
    for row, col in ((1, 1), (1, -2), (-2, 1), (-2, -2)):
        assert np.abs(square[row, col] - expected[row * 4, col * 4]).max() < 60
    info = media.probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    media.mux(path, click(0.3, 0.1), RATE, tmp_path / "out.mov")
    assert np.array_equal(media.read_frames(tmp_path / "out.mov", 10, None)[0], native)


def test_odd_sizes(tmp_path):
    path = media.write_clip(tmp_path / "odd.mp4", levels(3, 33, 47, 40), 10)
    assert media.read_frames(path, 10, None).shape == (3, 34, 48, 3)  # one row and column repeated
    stored = encode(tmp_path / "odd.mkv", levels(3, 33, 47, 40), codec="ffv1", pix="yuv444p")
    assert media.read_frames(stored, 10, None).shape == (3, 33, 47, 3)
    assert numbers(media.read_frames(stored, 10, 17), 40) == [0, 1, 2]


def test_one_picture_is_held_for_its_duration(tmp_path):
    path = encode(tmp_path / "one.mp4", levels(1, step=40), [0, 2000])
    frames = media.read_frames(path, 9.6, 16, duration_s=2.0)
    assert numbers(frames, 40) == [0] * 19
    assert media.read_frames(media.write_clip(tmp_path / "b.mp4", levels(1), 25), 9.6, 16).shape[0] == 1


def test_anamorphic_pixels(tmp_path):
    path = tmp_path / "a.mp4"
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 16:48] = 255  # pixels twice as wide as high: shown as a 128x64 picture with a 64x64 square
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height = stream.width = 64
        stream.pix_fmt, stream.codec_context.sample_aspect_ratio = "yuv420p", Fraction(2, 1)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    assert media.read_frames(path, 10, 32)[0][2:-2, 2:-2].min() > 200


# ---------------------------------------------------------------- audio


def test_audio_stays_in_step_with_the_picture(clip):
    wav = media.read_audio(clip)
    assert wav.shape == (1, 2 * RATE)
    assert wav.dtype == np.float32
    for t in (0.5, 1.5):
        near = np.abs(wav[0, round((t - 0.2) * RATE) : round((t + 0.2) * RATE)])
        assert abs(np.argmax(near > 0.4) - 0.2 * RATE) <= 8
    part = media.read_audio(clip, start_s=1.4, duration_s=0.3)[0]
    assert abs(np.argmax(np.abs(part) > 0.4) - 0.1 * RATE) <= 8


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_audio_resampling_keeps_length_and_pitch(tmp_path, rate):
    t = np.arange(RATE) / RATE
    path = wav_file(tmp_path / "a.wav", np.sin(2 * np.pi * 1000 * t)[None] * 0.5)
    wav = media.read_audio(path, rate, duration_s=1.0)
    assert wav.shape == (1, rate)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    assert np.abs(wav[0, 400:-400] - expected[400:-400]).max() < 2e-3
    assert media.read_audio(path, rate).shape[1] == pytest.approx(rate, abs=2)


def test_mono_is_the_mean_of_the_channels(tmp_path):
    wav = np.stack([np.full(RATE, 0.5), np.full(RATE, -0.1)]).astype(np.float32)
    path = wav_file(tmp_path / "a.wav", wav)
    assert np.allclose(media.read_audio(path), 0.2)
    assert np.allclose(media.read_audio(path, mono=False), wav)


def test_audio_is_continued_by_silence(clip):
    wav = media.read_audio(clip, duration_s=3.0)
    assert wav.shape == (1, 3 * RATE)
    assert not wav[0, 2 * RATE + 2048 :].any()


def test_silent_audio_is_read(tmp_path):
    path = media.write_clip(tmp_path / "a.mp4", levels(10), 10, click(1.0))
    assert np.abs(media.read_audio(path)).max() < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_audio(tmp_path, bad):
    wav = click(1.0, 0.5)
    wav[0, 1000] = bad
    with pytest.raises(MediaError, match=r"nan\.wav: its audio holds NaN"):
        media.read_audio(wav_file(tmp_path / "nan.wav", wav))
    with pytest.raises(MediaError, match="NaN"):
        media.write_clip(tmp_path / "out.mp4", levels(3), 10, wav)
    assert not (tmp_path / "out.mp4").exists()


def test_video_only(tmp_path):
    path = media.write_clip(tmp_path / "v.mp4", levels(10), 10)
    assert not media.probe(path).has_audio
    with pytest.raises(MediaError, match="has no audio"):
        media.read_audio(path)


def test_audio_only(tmp_path):
    path = wav_file(tmp_path / "a.wav", click(1.0, 0.5))
    info = media.probe(path)
    assert (info.has_video, info.has_audio, info.duration_s) == (False, True, 1.0)
    with pytest.raises(MediaError, match=r"a\.wav: holds no video stream"):
        media.read_frames(path, 10, 16)


def test_cover_art_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=RATE, layout="mono")
        cover = out.add_stream("mjpeg", rate=1)
        cover.height = cover.width = 32
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(levels(1)[0], format="rgb24").reformat(format="yuvj420p")
        out.mux(cover.encode(frame))
        out.mux(cover.encode(None))
        samples = av.AudioFrame.from_ndarray(click(1.0, 0.5), format="fltp", layout="mono")
        samples.sample_rate = RATE
        out.mux(sound.encode(samples))
        out.mux(sound.encode(None))
    assert not media.probe(path).has_video
    with pytest.raises(MediaError, match="only cover art"):
        media.read_frames(path, 10, 16)
    assert media.read_audio(path, duration_s=1.0).shape == (1, RATE)


# ---------------------------------------------------------------- muxing


@pytest.mark.parametrize(
    ("source", "codec", "out"),
    [
        ("a.mp4", "libx264", "o.mp4"),
        ("a.mp4", "libx264", "o.mkv"),
        ("a.mp4", "mpeg4", "o.mov"),
        ("a.mov", "libx264", "o.mp4"),
        ("a.mkv", "libx264", "o.mp4"),
        ("a.webm", "libvpx-vp9", "o.mp4"),
        ("a.webm", "libvpx-vp9", "o.webm"),
    ],
)
@pytest.mark.parametrize("seconds", [0.7, 3.0])
def test_mux_copies_pictures_and_fits_the_audio(tmp_path, source, codec, out, seconds):
    video = encode(tmp_path / source, levels(15, step=10), codec=codec)
    path = media.mux(video, click(seconds, 0.5), RATE, tmp_path / out, comment="made by a test")
    assert video_bytes(path) == video_bytes(video)
    info = media.probe(path)
    assert info.comment == "made by a test"
    assert info.sample_rate == (48000 if out.endswith("webm") else RATE)
    length = media.video_seconds(video)
    assert media.video_seconds(path) == pytest.approx(length, abs=2e-3)
    wav = media.read_audio(path)
    assert abs(wav.shape[1] / RATE - length) <= 1024 / RATE + 2e-3
    assert np.argmax(np.abs(wav[0]) > 0.4) == pytest.approx(0.5 * RATE, abs=100)
    assert numbers(media.read_frames(path, 10, 16), 10) == list(range(15))


def test_mux_replaces_the_old_audio(clip, tmp_path):
    path = media.mux(clip, click(2.0, 1.0), RATE, tmp_path / "o.mp4")
    wav = np.abs(media.read_audio(path)[0])
    assert wav[: RATE - 2048].max() < 0.1
    assert abs(np.argmax(wav > 0.4) - RATE) <= 8
    with av.open(str(path)) as c:
        assert [s.type for s in c.streams] == ["video", "audio"]


def test_mux_is_deterministic(clip, tmp_path):
    a, b = (media.mux(clip, click(2.0, 1.0), RATE, tmp_path / n).read_bytes() for n in ("a.mp4", "b.mp4"))
    assert a == b


def test_mux_cut(clip, tmp_path):
    length = media.video_seconds(clip, 1.0)
    assert 1.0 <= length <= 1.0 + 5 / 24
    path = media.mux(clip, click(2.0, 0.5), RATE, tmp_path / "o.mp4", limit_s=1.0)
    assert media.video_seconds(path) == pytest.approx(length)
    assert media.read_audio(path).shape[1] == pytest.approx(length * RATE, abs=2)
    assert numbers(media.read_frames(path, 24, 16, duration_s=1.0), 4) == list(range(24))


def test_mux_refusals(clip, tmp_path):
    (tmp_path / "d.mp4").mkdir()
    (tmp_path / "file").write_text("x")
    for out, match in (
        (tmp_path / "o.webm", "webm files cannot hold the h264 video"),
        (tmp_path / "o.txt", "unknown kind of video file"),
        (clip, "overwrite its own input"),
        (tmp_path / "d.mp4", "is a folder"),
        (tmp_path / "file" / "o.mp4", "cannot be written"),
    ):
        with pytest.raises(MediaError, match=match):
            media.mux(clip, click(2.0, 0.5), RATE, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.mp4", "file"]


def test_read_only_file_system_is_one_line(clip, tmp_path, monkeypatch):
    def refuse(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), options["dir"])

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(MediaError, match=r"o\.mp4: cannot be written: Read-only file system"):
        media.mux(clip, click(2.0, 0.5), RATE, tmp_path / "o.mp4")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that lets nobody write")
def test_folder_that_nobody_may_write_to_is_one_line(clip):
    with pytest.raises(MediaError, match=r"o\.mp4: cannot be written"):
        media.mux(clip, click(2.0, 0.5), RATE, Path("/proc/o.mp4"))


def test_full_disk_leaves_nothing(clip, tmp_path):
    """A file size limit stands for the full disk: the write fails in the same place."""
    code = (
        "import resource, sys, numpy as np\n"
        "from vmas import media\n"
        "from vmas.errors import MediaError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n    media.mux(sys.argv[1], np.zeros((1, 64000), np.float32), 32000, sys.argv[2])\n"
        "except MediaError as e:\n    print(e); sys.exit(7)\n"
    )
    run = [sys.executable, "-c", code, str(clip), str(tmp_path / "o.mp4")]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 7, done.stderr
    assert "o.mp4: cannot be written" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(tmp_path):
    def half():
        with media.aside(tmp_path / "o.mp4") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- broken input


BROKEN = {
    "empty.mp4": (b"", "is empty"),
    "text.mp4": (b"hello\n" * 200, "not a media file"),
    "notes.txt": (b"hello\n" * 200, "not a media file"),
    "zeros.mp4": (bytes(5000), "not a media file"),
    "head.mp4": (None, "not a media file"),  # the first 500 bytes of a good one
    "folder.mp4": (None, "is a folder"),
    "missing.mp4": (None, "no such file"),
}


@pytest.mark.parametrize("read", [media.probe, media.video_seconds, lambda p: media.read_frames(p, 10, 16)])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path, clip, read, name):
    data, match = BROKEN[name]
    if name == "folder.mp4":
        (tmp_path / name).mkdir()
    elif name != "missing.mp4":
        (tmp_path / name).write_bytes(clip.read_bytes()[:500] if data is None else data)
    with pytest.raises(MediaError, match=match) as e:
        read(tmp_path / name)
    assert str(e.value).startswith(str(tmp_path / name))
    assert "\n" not in str(e.value)


def test_truncated_video(tmp_path):
    rng = np.random.default_rng(0)
    path = media.write_clip(tmp_path / "a.mp4", rng.integers(0, 255, (60, 64, 64, 3), dtype=np.uint8), 20)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (media.video_seconds, lambda p: media.read_frames(p, 10, 16)):
        with pytest.raises(MediaError, match=r"cut\.mp4: is truncated: 1\.\d+ s of 3\.00 s"):
            read(cut)
    assert len(media.read_frames(cut, 10, 16, duration_s=1.0)) == 10  # what is there can be read


def test_damaged_packets_are_passed_over(tmp_path):
    rng = np.random.default_rng(0)
    path = media.write_clip(tmp_path / "a.mp4", rng.integers(0, 255, (60, 64, 64, 3), dtype=np.uint8), 20)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = rng.integers(0, 255, 3000, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    assert media.read_frames(path, 10, 16).shape == (30, 16, 16, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(clip, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(clip.read_bytes())
    path.chmod(0)
    with pytest.raises(MediaError, match="permissions"):
        media.probe(path)


def test_start_after_the_end(clip):
    with pytest.raises(MediaError, match="it has no second 9"):
        media.read_frames(clip, 10, 16, start_s=9.0)
    with pytest.raises(MediaError, match="ends before second 9"):
        media.read_audio(clip, start_s=9.0)


@pytest.mark.parametrize("name", ["ünïcödé 影片.mp4", "with  spaces & 'quotes'.mp4", "a:b.mp4", "%d.mp4", "-x.mp4"])
def test_names(clip, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip.read_bytes())
    assert media.probe(name).duration_s == 2.0
    media.mux(name, click(2.0, 0.5), RATE, Path(f"out {name}"))
    assert video_bytes(tmp_path / f"out {name}") == video_bytes(clip)


@pytest.mark.slow
def test_large_pictures_are_streamed(tmp_path):
    image = np.zeros((1, 4320, 7680, 3), np.uint8)
    image[:, :, 1680:6000] = 200
    path = encode(tmp_path / "8k.mp4", image.repeat(2, 0), preset="ultrafast")
    frames = media.read_frames(path, 9.6, 64)
    assert frames.shape == (2, 64, 64, 3)
    assert np.abs(frames.astype(int) - 200).max() < 6


@pytest.mark.slow
def test_too_large_pictures_are_refused(tmp_path):
    path = tmp_path / "huge.mov"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=1, options={"compression_level": "1"})
        stream.height, stream.width, stream.pix_fmt = 8193, 8193, "gray"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((8193, 8193), np.uint8), format="gray")))
        out.mux(stream.encode(None))
    for read in (media.probe, lambda p: media.read_frames(p, 1, 16)):
        with pytest.raises(MediaError, match="8193x8193 are too large"):
            read(path)


def test_three_hours_are_streamed_or_refused(tmp_path):
    hours = 3 * 3600
    path = encode(tmp_path / "long.mp4", levels(109, 16, 16, 2), range(0, hours + 200, 100), Fraction(1))
    with pytest.raises(MediaError, match="need more than 1024 MB"):
        media.read_frames(path, 9.6, 64)
    assert numbers(media.read_frames(path, 1 / 600, 16), 2) == list(range(0, 108, 6))
    assert numbers(media.read_frames(path, 1.0, 16, start_s=hours - 150, duration_s=100), 2)[::50] == [106, 107]


# ---------------------------------------------------------------- real files


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared media are not here")
@pytest.mark.parametrize(("name", "seconds", "size"), [("dog.mp4", 5.0, (256, 256)), ("sample.mp4", 5.1, (720, 1280))])
def test_real_videos(tmp_path, name, seconds, size):
    info = media.probe(SHARED / name)
    assert (info.height, info.width) == size
    assert info.duration_s == pytest.approx(seconds)
    assert media.read_frames(SHARED / name, 9.6, 64).shape == (round(seconds * 9.6), 64, 64, 3)
    path = media.mux(SHARED / name, click(9.0, 0.5), RATE, tmp_path / name)
    assert video_bytes(path) == video_bytes(SHARED / name)
    assert media.read_audio(path).shape[1] == round(seconds * RATE)


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_through_aac_stays_in_time(channels):
    rate = 32000
    t = np.arange(rate) / rate
    x = np.stack([0.4 * np.sin(2 * np.pi * f * t) * (t > 0.5) for f in (440.0, 660.0)[:channels]]).astype(np.float32)
    y = media.through_aac(x, rate, 128000)
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert np.abs(y - x).mean() < 0.01
    assert np.abs(y[:, : rate // 2 - 2048]).max() < 0.01, "silent until the tone begins"


def test_sound_that_cannot_be_coded_is_refused():
    with pytest.raises(ValueError, match="one or two channels"):
        media.through_aac(np.zeros((3, 100), np.float32), 32000, 64000)
    with pytest.raises(MediaError, match="NaN or infinite"):
        media.through_aac(np.full((1, 100), np.nan, np.float32), 32000, 64000)
