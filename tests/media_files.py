"""Small media files that the media tests write with PyAV."""

from fractions import Fraction

import av
import numpy as np

RATE = 32000


def levels(t: int, h: int = 32, w: int = 32, step: int = 5) -> np.ndarray:
    """Frames whose grey level is 20 + step·index, so that a frame tells its own number."""
    return np.broadcast_to((20 + step * np.arange(t, dtype=np.uint8))[:, None, None, None], (t, h, w, 3)).copy()


def numbers(frames: np.ndarray, step: int = 5) -> list[int]:
    return np.round((frames.mean((1, 2, 3)) - 20) / step).astype(int).tolist()


def click(seconds: float, *at: float) -> np.ndarray:
    wav = np.zeros((1, round(seconds * RATE)), np.float32)
    for t in at:
        wav[0, round(t * RATE) : round(t * RATE) + 100] = 0.8
    return wav


def encode(path, frames, times=None, base=Fraction(1, 1000), codec="libx264", rotate=None, pix="yuv420p", **options):
    """Write frames shown at `times` (in units of `base`), the last entry being the end."""
    times = range(0, (len(frames) + 1) * 100, 100) if times is None else times
    lengths = {times[i]: times[i + 1] - times[i] for i in range(len(frames))}

    def timed(packets):
        for p in packets:
            p.duration = round(lengths[round(p.pts * p.time_base / base)] * base / p.time_base)
            yield p

    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix
        stream.time_base = stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        if rotate is not None:
            stream.set_display_rotation(*rotate)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = times[i], base
            out.mux(list(timed(stream.encode(frame))))
        out.mux(list(timed(stream.encode(None))))
    return path


def wav_file(path, wav, codec="pcm_f32le", rate=RATE):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono" if len(wav) == 1 else "stereo")
        data = np.ascontiguousarray(wav.T.reshape(1, -1).astype(np.float32))
        frame = av.AudioFrame.from_ndarray(data, format="flt", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def video_bytes(path) -> list[bytes]:
    with av.open(str(path)) as c:
        return [bytes(p) for p in c.demux(c.streams.video[0]) if p.size]
