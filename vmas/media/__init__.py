"""Read and write clips with PyAV: frames at a given rate and size, waveforms, mp4 files, muxing.

Time 0 of a file is the first picture of its video stream (or the first sample where there is no
video), so that frames and waveform read from one file stay in step. Everything is decoded as a
stream; what a call would return is bounded by `MAX_BYTES`, so a long or large file is refused with
one line (MediaError) instead of filling the memory.
"""

from vmas.media.lossy import through_aac
from vmas.media.read import MAX_BYTES, MAX_PIXELS, MediaInfo, iter_frames, probe, read_audio, read_frames
from vmas.media.write import CONTAINERS, aside, mux, video_seconds, write_clip

__all__ = [
    "CONTAINERS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MediaInfo",
    "aside",
    "iter_frames",
    "mux",
    "probe",
    "read_audio",
    "read_frames",
    "through_aac",
    "video_seconds",
    "write_clip",
]
