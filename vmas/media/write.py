"""Write mp4 clips, and give an existing video new audio without touching its pictures."""

import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from vmas.errors import MediaError
from vmas.media.read import check_complete, opened, stream_seconds, video_stream

AUDIO_BIT_RATE = 128_000
AAC_FRAME = 1024
CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
OPUS_RATE = 48000  # WebM holds no AAC; Opus knows no 32 kHz


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


@functools.cache
def _x264_params() -> dict[str, str]:
    """Keep x264 to AVX2 where the processor has it.

    Its AVX-512 version of the macroblock tree reads what was not written: equal pictures then give other bytes from
    one call to the next. Without AVX2 (old processors, ARM) it chooses for itself.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {"x264-params": "asm=avx2"} if re.search(r"\bavx2\b", flags) else {}


def _even(frames: np.ndarray) -> np.ndarray:
    """Repeat the last row or column where a side is odd: 4:2:0 chroma needs even sides."""
    h, w = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge") if h % 2 or w % 2 else frames


def check_audio(audio, path) -> np.ndarray:
    """`audio` as float32 [C,N], C 1 or 2. Raises ValueError for another shape, MediaError for NaN or infinity."""
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 2 or audio.shape[0] not in (1, 2):
        raise ValueError(f"audio must be [C,N] with one or two channels, got {audio.shape}")
    if not np.isfinite(audio).all():
        raise MediaError(path, "the audio to write holds NaN or infinite samples")
    return audio


def add_audio(out, codec: str, sample_rate: int, channels: int, bit_rate: int = AUDIO_BIT_RATE):
    """A stream of `out` for sound, one thread, the same bytes every time."""
    stream = out.add_stream(codec, rate=sample_rate, layout="mono" if channels == 1 else "stereo")
    stream.bit_rate = bit_rate
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    return stream


def audio_packets(stream, audio: np.ndarray, sample_rate: int):
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
    audio = None if audio is None else check_audio(audio, path)
    rate = _fraction(fps)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with aside(path) as temporary, av.open(str(temporary), "w", options=options) as out:
        video = out.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": preset, **_x264_params()})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        sound = None if audio is None else add_audio(out, "aac", sample_rate, audio.shape[0])
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, 1 / rate
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None and audio is not None:
            for packet in audio_packets(sound, audio, sample_rate):
                out.mux(packet)
    return Path(path)


def _packets(container, stream, path) -> Iterator[av.Packet]:
    """Packets of one stream, still encoded. A failure to read is about `path`, whoever consumes them."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as e:
        raise MediaError(path, f"cannot be read to its end: {e.strerror}") from e


class _Row(NamedTuple):
    """Times of one packet in its stream's time base."""

    shown: int
    length: int
    dropped: bool
    dts: int | None


@dataclass(frozen=True)
class _Span:
    """The part of a video stream that is copied, in its time base."""

    start: int  # first picture on screen
    end: int  # end of the last one
    packets: int  # how many to copy, in decoding order
    first_dts: int | None
    leading: tuple[int, ...]  # decoding times of the first packets where the container (Matroska) keeps none
    base: Fraction

    @property
    def seconds(self) -> Fraction:
        return (self.end - self.start) * self.base


def _span(path, limit_s: float | None) -> _Span:
    """What to copy of the video of `path`; reads its packets and decodes nothing."""
    with opened(path) as container:
        stream = video_stream(container, path)
        base = stream.time_base
        usual = int(1 / (stream.average_rate or 25) / base)
        rows: list[_Row] = []
        for p in _packets(container, stream, path):
            at = p.dts if p.pts is None else p.pts
            if at is not None:
                rows.append(_Row(at, p.duration or usual, p.is_discard, p.dts))
        shown = sorted(row.shown for row in rows if not row.dropped)
        if not shown:
            raise MediaError(path, "holds no picture", "it is truncated or damaged")
        declared = stream_seconds(container, stream)
    start = shown[0]
    end = max(row.shown + row.length for row in rows)
    if declared:
        longest = float(max((b - a for a, b in pairwise(shown)), default=0) * base)
        check_complete(path, float((end - start) * base), declared, len(shown), longest)
        # Where only the stream knows how long the last picture stays (Matroska).
        end = max(end, start + round(declared / base))
    keep = len(rows)
    if limit_s is not None and (end - start) * base > limit_s:
        # Up to the last packet, in decoding order, that is shown before the limit: none of its references is lost.
        keep = 1 + max(i for i, row in enumerate(rows) if row.shown == start or (row.shown - start) * base < limit_s)
        if keep < len(rows):
            end = max(row.shown + row.length for row in rows[:keep])
    known = next(((i, row.dts) for i, row in enumerate(rows) if row.dts is not None), None)
    leading: list[int] = []
    if known is not None:
        first, dts = known
        for row in reversed(rows[:first]):
            dts -= row.length
            leading.insert(0, dts)
    return _Span(start, end, keep, leading[0] if leading else rows[0].dts, tuple(leading), base)


def video_seconds(path, limit_s: float | None = None) -> float:
    """Exact length in seconds of the video that `mux` would write, from its packets' timestamps.

    `limit_s` cuts the video; it ends with the first whole picture at or after it (up to a few
    pictures later, where pictures are stored out of order). Raises MediaError.
    """
    return float(_span(path, limit_s).seconds)


def _set_last_duration(packet: av.Packet, span: _Span, last: bool, by_dts: bool) -> None:
    """Let the copy end where `span` does: mp4 adds up decoding times, Matroska takes the latest end on screen."""
    if by_dts and last and packet.dts is not None and span.first_dts is not None:
        packet.duration = max(packet.duration or 0, (span.end - span.start) - (packet.dts - span.first_dts))
    elif not by_dts and last and packet.pts is not None:
        packet.duration = max(packet.duration or 0, span.end - packet.pts)


def mux(
    video_path, audio: np.ndarray, sample_rate: int, out_path, limit_s: float | None = None, comment: str = ""
) -> Path:
    """Copy the video stream of `video_path` to `out_path`, without encoding it again, with `audio` float32 [C,N].

    The audio replaces what the file had; it is cut, or continued by silence, to the exact length of
    the video (`video_seconds`) and stored as AAC (as Opus in .webm, which holds no AAC). Rotation is
    kept; subtitles and other streams are not. `comment` goes into the metadata. Equal input gives
    equal bytes. Arguments `limit_s` as in `video_seconds`.

    Raises MediaError when the video cannot be read, when the container of `out_path` does not take
    its codec, when `out_path` is the input, or when it cannot be written.
    """
    out_path = Path(out_path)
    suffix = out_path.suffix.lower()
    audio = check_audio(audio, out_path)
    if suffix not in CONTAINERS:
        raise MediaError(out_path, "unknown kind of video file", f"end the name in {', '.join(CONTAINERS)}")
    if out_path.exists() and os.path.samefile(video_path, out_path):
        raise MediaError(out_path, "would overwrite its own input", "give another name with -o")
    span = _span(video_path, limit_s)
    if suffix == ".webm" and sample_rate != OPUS_RATE:
        import soxr

        audio = soxr.resample(audio.T, sample_rate, OPUS_RATE).astype(np.float32).T
        sample_rate = OPUS_RATE
    n = round(span.seconds * sample_rate)
    audio = np.pad(audio, ((0, 0), (0, max(0, n - audio.shape[1]))))[:, :n]
    options = {"fflags": "+bitexact"} | ({} if suffix in (".mkv", ".webm") else {"movflags": "+faststart"})
    with opened(video_path) as source, aside(out_path) as temporary:
        video = video_stream(source, video_path)
        codec = video.codec_context.codec.canonical_name
        with av.open(str(temporary), "w", options=options) as out:
            refused = MediaError(
                out_path, f"{suffix} files cannot hold the {codec} video of {video_path}", "name the output .mkv"
            )
            if codec not in out.supported_codecs:
                raise refused
            pictures = out.add_stream_from_template(video)
            sound = add_audio(out, "libopus" if suffix == ".webm" else "aac", sample_rate, audio.shape[0])
            if comment:
                out.metadata["comment"] = comment
            try:
                out.start_encoding()
            except (av.error.ArgumentError, av.error.InvalidDataError) as e:
                raise refused from e
            coming = audio_packets(sound, audio, sample_rate)
            waiting = next(coming, None)
            for i, packet in enumerate(_packets(source, video, video_path)):
                if i == span.packets:
                    break
                if i < len(span.leading):
                    packet.dts = span.leading[i]
                _set_last_duration(packet, span, last=i == span.packets - 1, by_dts=suffix not in (".mkv", ".webm"))
                if packet.pts is not None:
                    packet.pts -= span.start
                if packet.dts is not None:
                    packet.dts -= span.start
                    # Audio up to the same moment first, so that the muxer has nothing to hold back.
                    while waiting is not None and waiting.dts * waiting.time_base <= packet.dts * span.base:
                        out.mux(waiting)
                        waiting = next(coming, None)
                packet.stream = pictures
                out.mux(packet)
            while waiting is not None:
                out.mux(waiting)
                waiting = next(coming, None)
    return out_path
