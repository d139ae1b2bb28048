"""Sound as a lossy coder leaves it."""

import io

import av
import numpy as np

from vmas.media.write import AUDIO_BIT_RATE, add_audio, audio_packets, check_audio


def through_aac(audio, sample_rate: int, bit_rate: int = AUDIO_BIT_RATE) -> np.ndarray:
    """float32 [C,N] of `audio` [C,N] in [-1,1], coded as AAC with `bit_rate` bits a second and decoded, in time.

    The default is what our files have. ffmpeg's own coder, which treats few bits a second as a wish. Raises MediaError
    for NaN or infinite samples, ValueError for another shape.
    """
    x = check_audio(audio, "sound")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = add_audio(out, "aac", sample_rate, len(x), bit_rate)
        for packet in audio_packets(stream, x, sample_rate):
            out.mux(packet)
    file.seek(0)
    with av.open(file, "r") as coded:  # what a coder puts before time 0 is left out by the container
        y = np.concatenate([frame.to_ndarray() for frame in coded.decode(audio=0)], axis=1)
    return np.pad(y, ((0, 0), (0, max(0, x.shape[1] - y.shape[1]))))[:, : x.shape[1]].astype(np.float32)
