"""The music of a clip: its notes played by the General MIDI soundfont that pretty_midi ships."""

import functools
from pathlib import Path

import numpy as np

from vmas.corpus.spec import BASS, CHORDS, KIT, MELODY, VOICE, ClipSpec

VOICE_PROGRAM = 53  # voice oohs
RELEASE_S = 0.25  # how long a note of another clip could still ring: silence is rendered between clips
LEVEL = 0.12  # target root mean square, about -18 dBFS
PEAK = 0.95


@functools.lru_cache(maxsize=2)
def _synth(sample_rate: int):
    """One synthesiser per process and rate: reading the soundfont takes longer than playing a clip."""
    import pretty_midi
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=sample_rate, gain=-6.0)
    return synth, synth.sfload(str(Path(pretty_midi.__file__).with_name("TimGM6mb.sf2")))


def render_audio(spec: ClipSpec, sample_rate: int = 32000, only_voice: bool = False) -> np.ndarray:
    """float32 [samples] mono in [-1,1]; `only_voice` renders the vocal stem alone, at the level it has in the mix."""
    mix = _play(spec, spec.notes, sample_rate)
    gain = _gain(mix)
    if not only_voice:
        return (mix * gain).astype(np.float32)
    return (_play(spec, [n for n in spec.notes if n[0] == VOICE], sample_rate) * gain).astype(np.float32)


def _gain(wav: np.ndarray) -> float:
    rms, peak = float(np.sqrt(np.mean(wav**2))), float(np.abs(wav).max())
    if peak < 1e-6:
        return 0.0
    return min(LEVEL / max(rms, 1e-9), PEAK / peak)


def _play(spec: ClipSpec, notes, sample_rate: int) -> np.ndarray:
    synth, font = _synth(sample_rate)
    synth.notes_off()
    synth.sounds_off()
    for channel, program in zip((MELODY, CHORDS, BASS), spec.programs, strict=True):
        synth.program_select(channel, font, 0, program)
    synth.program_select(VOICE, font, 0, VOICE_PROGRAM)
    synth.program_select(KIT, font, 128, spec.kit, True)
    total = round(spec.seconds * sample_rate)
    events = sorted(
        [(round(n[2] * sample_rate), 1, n) for n in notes]
        + [(min(round(n[3] * sample_rate), total - 1), 0, n) for n in notes],
        key=lambda e: (e[0], e[1], e[2][0], e[2][1]),
    )
    parts, now = [], 0
    for when, start, (channel, pitch, _, _, velocity) in events:
        if when > now:
            parts.append(_stereo(synth, when - now))
            now = when
        if start:
            synth.noteon(channel, pitch, velocity)
        else:
            synth.noteoff(channel, pitch)
    if now < total:
        parts.append(_stereo(synth, total - now))
    synth.sounds_off()
    synth.generate(round(RELEASE_S * sample_rate))
    return np.concatenate(parts)[:total].mean(1)


def _stereo(synth, samples: int) -> np.ndarray:
    """The next samples, float32 [samples,2]; copied, since the synthesiser reuses its buffer."""
    return np.frombuffer(bytes(synth.generate(samples)), np.float32).reshape(-1, 2)
