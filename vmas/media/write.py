"""Write mp4 clips, and give an existing video new audio without touching its pictures."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vmas.errors import MediaError
from vmas.media.read import opened, video_stream

AUDIO_BIT_RATE = 128_000
AAC_FRAME = 1024


@contextlib.contextmanager
def aside(path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and removed otherwise.

    Failures of the file system and of the encoder become a MediaError about `path`.
    """
    path = Path(path)
    if path.is_dir():
        raise MediaError(path, "is a folder", "name a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
    except OSError as e:
        raise MediaError(path, f"cannot be written: {e.strerror}", "choose another place with -o") from e
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except (av.error.FFmpegError, OSError) as e:
        raise MediaError(path, f"cannot be written: {e.strerror}") from e
    finally:
        temporary.unlink(missing_ok=True)


def _fraction(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _even(frames: np.ndarray) -> np.ndarray:
    """Repeat the last row or column where a side is odd: 4:2:0 chroma needs even sides."""
    h, w = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge") if h % 2 or w % 2 else frames


def _check_audio(audio, path) -> np.ndarray:
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 2 or audio.shape[0] not in (1, 2):
        raise ValueError(f"audio must be [C,N] with one or two channels, got {audio.shape}")
    if not np.isfinite(audio).all():
        raise MediaError(path, "the audio to write holds NaN or infinite samples")
    return audio


def _add_audio(out, codec: str, sample_rate: int, channels: int):
    stream = out.add_stream(codec, rate=sample_rate, layout="mono" if channels == 1 else "stereo")
    stream.bit_rate = AUDIO_BIT_RATE
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    return stream


def _audio_packets(stream, audio: np.ndarray, sample_rate: int):
    """Encoded packets of float32 [C,N], from time 0."""
    layout = "mono" if audio.shape[0] == 1 else "stereo"
    step = stream.codec_context.frame_size or AAC_FRAME
    for at in range(0, audio.shape[1], step):
        block = np.ascontiguousarray(np.clip(audio[:, at : at + step], -1.0, 1.0))
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate = sample_rate
        frame.pts = at
        frame.time_base = Fraction(1, sample_rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def write_clip(
    path,
    frames: np.ndarray,
    fps: float,
    audio: np.ndarray | None = None,
    sample_rate: int = 32000,
    crf: int = 23,
    preset: str = "veryfast",
) -> Path:
    """Write frames uint8 [T,H,W,3] (and audio float32 [C,N] in [-1,1]) as H.264 4:2:0 + AAC.

    Equal input gives equal bytes (one thread, no dates or versions in the container). An odd side
    is extended by one repeated row or column. The file appears whole or not at all.
    Raises MediaError when it cannot be written or the audio holds NaN.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T,H,W,3] with T ≥ 1, got {frames.dtype} {frames.shape}")
    frames = np.ascontiguousarray(_even(frames))
    audio = None if audio is None else _check_audio(audio, path)
    rate = _fraction(fps)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with aside(path) as temporary, av.open(str(temporary), "w", options=options) as out:
        video = out.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": preset})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        sound = None if audio is None else _add_audio(out, "aac", sample_rate, audio.shape[0])
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, 1 / rate
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None:
            for packet in _audio_packets(sound, audio, sample_rate):
                out.mux(packet)
    return Path(path)


def video_seconds(path):
    raise NotImplementedError


def mux(video_path, audio, sample_rate, out_path):
    raise NotImplementedError
