"""Frames and waveforms of media files, at exactly the asked rates."""

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vmas.errors import MediaError

MAX_BYTES = 1 << 30  # largest array that one call returns
MAX_PIXELS = 8192 * 8192  # largest picture that is decoded; 8K (7680x4320) is half of it
THREADED_PIXELS = 1280 * 720  # from here on, decoding in threads is worth starting them
# Large pictures are shrunk by swscale to twice the wanted size while they become RGB, and by area from there:
# at 720p → 64 this takes 1.2 ms a picture instead of 13 ms and differs by 0.6 levels on average.
SHRINK_PIXELS, SHRINK_RATIO = 640 * 360, 4
# Matroska rounds timestamps to 1 ms; a frame this little late still counts as shown.
TIME_SLACK = 1e-3
# The last picture may start this long before the declared end before the file counts as truncated.
TRUNCATION_SLACK = 0.5


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. `width` and `height` are as displayed, i.e. after `rotation`.

    `rotation` is in degrees counter-clockwise, `duration_s` that of the video stream (of the audio
    stream where there is no video), `frames` the container's count or 0 where it has none,
    `audio_end_s` where the audio ends on the video's clock, None where the container does not say.
    """

    path: Path
    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int
    frames: int
    has_video: bool
    has_audio: bool
    sample_rate: int
    channels: int
    comment: str = ""
    audio_end_s: float | None = None


@contextlib.contextmanager
def opened(path) -> Iterator[Any]:
    """Open `path` for reading; every expected failure inside becomes a MediaError about `path`."""
    p = Path(path)
    if not p.exists():
        raise MediaError(path, "no such file")
    if p.is_dir():
        raise MediaError(path, "is a folder, not a media file", "name the files in it")
    if p.is_file() and p.stat().st_size == 0:
        raise MediaError(path, "the file is empty")
    if not os.access(p, os.R_OK):
        raise MediaError(path, "cannot be read", "check its permissions")
    try:
        # An absolute path, so that a name such as "a:b.mp4" is not taken for a protocol.
        with av.open(str(p.absolute()), "r", metadata_errors="replace") as container:
            if container.format.name == "tty":  # any text file, drawn as pictures
                raise MediaError(path, "is a text, not a media file")
            yield container
    except av.error.PermissionError as e:
        raise MediaError(path, "cannot be read", "check its permissions") from e
    except (av.error.InvalidDataError, av.error.EOFError) as e:
        raise MediaError(path, "is not a media file, or it is truncated") from e
    except av.error.FFmpegError as e:
        raise MediaError(path, f"cannot be decoded: {e.strerror}") from e


def video_stream(container, path):
    """The first stream of moving pictures; cover art does not count. Raises MediaError."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    what = "only cover art" if container.streams.video else "no video stream"
    raise MediaError(path, f"holds {what}", "a video with moving pictures is needed")


def stream_seconds(container, stream) -> float | None:
    """Declared duration of a stream in seconds, or None where the container keeps none for it."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska: "00:00:05.000000000"
    with contextlib.suppress(ValueError):
        h, m, s = tag.split(":")
        # Matroska counts from the file's time 0, not from the stream's first packet.
        end = int(h) * 3600 + int(m) * 60 + float(s)
        return max(0.0, end - start_seconds(stream))
    return None


def start_seconds(stream) -> float:
    return 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)


def check_complete(path, end: float, declared: float | None, pictures: int, longest: float) -> None:
    """Raise MediaError when pictures that end at `end` stop far before the declared end.

    The last picture may be on screen for long, above all in a slide show, and Matroska does not
    store for how long: `longest` is the longest time between two pictures so far.
    """
    if declared and pictures > 1 and declared - end > max(TRUNCATION_SLACK, 1.5 * longest):
        raise MediaError(path, f"is truncated: {end:.2f} s of {declared:.2f} s can be read")


def _origin(container, fallback) -> float:
    """Time 0 of the file in the container's seconds."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return start_seconds(stream)
    return start_seconds(fallback)


def _end(container, stream) -> float | None:
    """Where a stream ends in the file's seconds, None where the container does not say or only guesses."""
    if not any(name in container.format.name for name in ("mp4", "matroska")):
        return None
    declared = stream_seconds(container, stream)
    return None if declared is None else start_seconds(stream) - _origin(container, stream) + declared


def _matrix(frame) -> tuple[int, int, int, int]:
    """Signs (a, b, c, d) of the display matrix: x' = a x + c y, y' = b x + d y, with y downward."""
    for side in frame.side_data:
        if side.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            m = np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]].astype(np.float64)
            if np.abs(m).max() > 0:
                a, b, c, d = (int(v) for v in np.round(m / np.abs(m).max()))
                return a, b, c, d
    return 1, 0, 0, 1


def _upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Apply a display matrix of right angles and mirrors to [H,W,3]."""
    a, b, c, d = matrix
    if b and c:
        image, flip_x, flip_y = image.transpose(1, 0, 2), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _check_pixels(path, stream) -> None:
    if stream.width * stream.height > MAX_PIXELS:
        raise MediaError(path, f"pictures of {stream.width}x{stream.height} are too large", "scale the video down")


def probe(path) -> MediaInfo:
    """Describe a file; the first picture is decoded to learn its rotation.

    Raises MediaError when the file cannot be opened or holds neither video nor audio.
    """
    with opened(path) as container:
        audio = container.streams.audio[0] if container.streams.audio else None
        try:
            video = video_stream(container, path)
        except MediaError:
            if audio is None:
                raise
            video = None
        main = audio if video is None else video
        seconds = stream_seconds(container, main)
        if seconds is None:
            seconds = (container.duration or 0) / av.time_base
        width = height = rotation = 0
        if video is not None:
            _check_pixels(path, video)
            width, height = video.width, video.height
            first = next(container.decode(video), None)
            if first is not None:
                _, b, c, _ = _matrix(first)
                rotation = first.rotation % 360
                if b and c:
                    width, height = height, width
        return MediaInfo(
            path=Path(path),
            duration_s=seconds,
            fps=float(video.average_rate or video.guessed_rate or 0) if video is not None else 0.0,
            width=width,
            height=height,
            rotation=rotation,
            frames=video.frames if video is not None else 0,
            has_video=video is not None,
            has_audio=audio is not None,
            sample_rate=audio.rate if audio is not None else 0,
            channels=audio.channels if audio is not None else 0,
            audio_end_s=None if audio is None else _end(container, audio),
            comment=container.metadata.get("comment") or container.metadata.get("COMMENT", ""),
        )


def _decode(container, stream) -> Iterator[Any]:
    """Frames of a stream; a packet that cannot be decoded is passed over, as players do."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except (av.error.InvalidDataError, av.error.EOFError):
            continue


def _picture(frame, size: int | None, aspect: float) -> np.ndarray:
    """uint8 RGB [H,W,3], upright, of a decoded frame. `aspect` is a pixel's width divided by its height.

    With `size` the shorter side is scaled to it and the centre square is cut.
    """
    import cv2

    # One thread: swscale's own threads cost more to start than such small pictures take.
    if size is None:
        return _upright(frame.to_ndarray(format="rgb24", threads=1), _matrix(frame))
    h, w = frame.height, frame.width
    scale = size / min(h, w * aspect)
    new_h, new_w = max(size, round(h * scale)), max(size, round(w * aspect * scale))
    if scale * SHRINK_RATIO <= 1 and w * h >= SHRINK_PIXELS:
        image = frame.to_ndarray(format="rgb24", width=2 * new_w, height=2 * new_h, interpolation="AREA", threads=1)
    else:
        image = frame.to_ndarray(format="rgb24", threads=1)
    if (new_h, new_w) != image.shape[:2]:
        shrinks = new_h <= image.shape[0] and new_w <= image.shape[1]
        image = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    image = _upright(image, _matrix(frame))
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def iter_frames(
    path, fps: float, size: int | None, start_s: float = 0.0, duration_s: float | None = None
) -> Generator[np.ndarray, None, None]:
    """Yield uint8 [H,W,3] frames one by one; see `read_frames`. Only one picture is held at a time."""
    yield from _sample(path, fps, size, start_s, duration_s, None)


def _sample(path, fps, size, start_s, duration_s, max_bytes) -> Iterator[np.ndarray]:
    if fps <= 0 or start_s < 0 or (duration_s is not None and duration_s <= 0):
        raise ValueError("fps and duration_s must be positive, start_s must not be negative")
    with opened(path) as container:
        stream = video_stream(container, path)
        _check_pixels(path, stream)
        many = stream.width * stream.height >= THREADED_PIXELS
        stream.codec_context.thread_count = min(4, os.cpu_count() or 1) if many else 1
        if many:
            stream.thread_type = "AUTO"
        origin = start_seconds(stream)
        declared = stream_seconds(container, stream)
        if declared is not None and start_s >= declared > 0:
            raise MediaError(path, f"is {declared:.2f} s long, it has no second {start_s:g}")
        aspect = float(stream.sample_aspect_ratio or 1)
        wanted = None if duration_s is None else max(1, round(duration_s * fps))
        if wanted is None and declared:
            wanted = max(1, round((declared - start_s) * fps))
        if start_s:
            container.seek(int((start_s + origin) / stream.time_base), stream=stream, backward=True)
        base, usual = float(stream.time_base), float(1 / (stream.average_rate or 25))
        # Picture on screen, since when, until when, index of the next sample.
        shown, since, end, i = None, 0.0, 0.0, 0
        image, seen, longest = None, 0, 0.0

        def shown_image():
            out = _picture(shown, size, aspect)
            if max_bytes is not None and out.nbytes * max(wanted or 0, i + 1) > max_bytes:
                hint = "read a shorter part or a smaller size"
                raise MediaError(path, f"its frames need more than {max_bytes >> 20} MB", hint)
            return out

        for frame in _decode(container, stream):
            t = end if frame.pts is None else frame.pts * base - origin
            if shown is not None:
                while (wanted is None or i < wanted) and start_s + i / fps < t - TIME_SLACK:
                    image = shown_image() if image is None else image
                    yield image
                    i += 1
                if i == wanted:
                    return
            longest = max(longest, t - since) if seen else 0.0
            shown, image, since, end, seen = frame, None, t, t + (frame.duration * base or usual), seen + 1
        if shown is None:
            raise MediaError(path, "holds no picture that can be decoded", "it is truncated or damaged")
        if declared and (duration_s is None or end < start_s + duration_s):
            check_complete(path, end, declared, seen, longest)
        if wanted is None:
            wanted = max(i + 1, round((end - start_s) * fps))
        image = shown_image() if image is None else image
        for _ in range(i, wanted):
            yield image


def read_frames(
    path, fps: float, size: int | None, start_s: float = 0.0, duration_s: float | None = None
) -> np.ndarray:
    """Frames uint8 [T,H,W,3] (RGB) of a video, sampled at `fps`.

    Sample i is the picture shown at start_s + i/fps (sample and hold, so variable frame rates keep
    their timing); T = round(duration·fps), at least 1, and the last picture is held where the
    video ends earlier. Rotation and mirroring from the display matrix and the pixels' aspect ratio
    are applied. With `size` the shorter side is scaled to it and the centre square is cut
    (appendix B: 224); None keeps the stored size.

    Raises MediaError when the file has no video, is truncated or damaged, starts after `start_s`,
    or when the result would exceed MAX_BYTES.
    """
    return np.stack(list(_sample(path, fps, size, start_s, duration_s, MAX_BYTES)))


def _samples(container, stream, origin: float, first: int, stop: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """Decoded float32 [C,n] pieces between samples `first` and `stop` of the file, each with where it ends."""
    to_float = av.AudioResampler(format="fltp")
    position = None
    for frame in _decode(container, stream):
        if position is None:
            position = 0 if frame.pts is None else round((float(frame.pts * frame.time_base) - origin) * stream.rate)
            late = (position if stop is None else min(position, stop)) - first
            if late > 0:  # audio that starts after the picture
                if late * 4 > MAX_BYTES:
                    raise MediaError(container.name, "its audio starts far too late", "the timestamps are damaged")
                yield first + late, np.zeros((stream.channels, late), np.float32)
        for piece in to_float.resample(frame):
            x = piece.to_ndarray()
            lo, hi = max(0, first - position), x.shape[1] if stop is None else max(0, stop - position)
            position += x.shape[1]
            if x[:, lo:hi].size:
                yield min(position, stop or position), x[:, lo:hi]
        if stop is not None and position >= stop:
            return


def read_audio(
    path, sample_rate: int = 32000, mono: bool = True, start_s: float = 0.0, duration_s: float | None = None
) -> np.ndarray:
    """Waveform float32 [C,N] in [-1,1] of the first audio stream at `sample_rate`; C = 1 when `mono`.

    With `duration_s` N = round(duration_s·sample_rate) exactly, with silence where the file ends
    earlier; else N runs to the end of the audio. Mono is the mean of the channels. Resampling by soxr.

    Raises MediaError when there is no audio, when it holds NaN or infinite samples, starts after
    `start_s`, or when the result would exceed MAX_BYTES.
    """
    import soxr

    with opened(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "has no audio")
        stream = container.streams.audio[0]
        rate = stream.rate
        origin = _origin(container, stream)
        if start_s:
            # A little early: lossy codecs need a few frames to settle after a seek.
            container.seek(int((max(0.0, start_s - 0.25) + origin) / stream.time_base), stream=stream, backward=True)
        first = round(start_s * rate)
        stop = None if duration_s is None else round((start_s + duration_s) * rate)
        parts: list[np.ndarray] = []
        resample = soxr.ResampleStream(rate, sample_rate, 1 if mono else stream.channels, dtype="float32")
        size = 0
        position = first
        for position, x in _samples(container, stream, origin, first, stop):  # noqa: B007
            if not np.isfinite(x).all():
                raise MediaError(path, "its audio holds NaN or infinite samples", "export the audio again")
            x = x.mean(0, keepdims=True) if mono else x
            if rate != sample_rate:
                x = resample.resample_chunk(np.ascontiguousarray(x.T)).T
            parts.append(x)
            size += x.nbytes
            if size > MAX_BYTES:
                raise MediaError(path, f"its audio needs more than {MAX_BYTES >> 20} MB", "read a shorter part")
        if not parts:
            what = f"ends before second {start_s:g}" if start_s else "cannot be decoded"
            raise MediaError(path, f"its audio {what}", "it may be truncated or damaged")
        end = _end(container, stream)
        if end is not None:
            asked = end if stop is None else min(end, stop / rate)
            if position / rate < asked - TRUNCATION_SLACK:
                raise MediaError(path, f"is truncated: {position / rate:.2f} s of {end:.2f} s of audio can be read")
            if stop is None and position > round(end * rate):
                duration_s = end - start_s  # the last packet of a lossy codec is padded
        if rate != sample_rate:
            parts.append(resample.resample_chunk(np.zeros((0, parts[0].shape[0]), np.float32), last=True).T)
    wav = np.concatenate(parts, axis=1)
    n = wav.shape[1] if duration_s is None else round(duration_s * sample_rate)
    return np.ascontiguousarray(np.pad(wav, ((0, 0), (0, max(0, n - wav.shape[1]))))[:, :n])
