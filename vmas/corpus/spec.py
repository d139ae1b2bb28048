"""The ground truth of one clip, drawn from (corpus seed, split, index) and nothing else."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from vmas.config import CorpusConfig
from vmas.corpus.genres import (
    GENRES,
    NEIGHBOURS,
    PROGRAM_NAMES,
    SHIFTED_FIGURE,
    SHIFTED_KIT,
    SHIFTED_PROGRAM,
    SHIFTED_TEXTURE,
    TABLE,
    Genre,
)
from vmas.errors import UsageError, nearest

SPLITS = ("train", "val", "test", "shifted")
DRAWS = (*SPLITS, "music")  # "music": further clips of which only the music is made, for the decoder's first stage
KEYS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
ATTRIBUTES = ("tempo", "lead", "chords", "bass", "drums", "harmony", "palette", "texture")
# How far a clip's three colours (HSV) are spread around its genre's, and where they are cut off.
HUE_SD, SATURATION_SD, VALUE_SD = 0.03, 0.12, 0.06
SATURATIONS, VALUES = (0.1, 1.0), (0.12, 1.0)
VALUE_STEPS = (0.55, 1.0, 1.25)  # from the darkest colour to the brightest, of the genre's value
LEAD_S = 0.010  # the picture's pulse is centred this long before its beat
DRUMS = {"kick": 36, "snare": 38, "hat": 42}

FAR = 1_000_003  # how far from a mismatched clip's index its music is drawn
MUSIC = (
    "genre",
    "tempo_bpm",
    "key",
    "mode",
    "chords",
    "beats_s",
    "onsets_s",
    "programs",
    "kit",
    "notes",
    "vocal",
    "caption",
)

Note = tuple[int, int, float, float, int]  # channel, pitch, start s, end s, velocity
OFF_BEAT_VELOCITY = 38  # soft: notes between the beats, which no picture shows, must not drown the beats
MELODY, CHORDS, BASS, VOICE, KIT = 0, 1, 2, 3, 9


@dataclass(frozen=True)
class ClipSpec:
    """Everything that is true of a clip. Times are in seconds from its start.

    `genre` and all that follows to `onsets_s` speak of the music, `scene_genre` of the picture: they
    differ only where the pair is mismatched. `shown[i]` says whether the picture shows `beats_s[i]`;
    `video_events_s` are all its jumps or cuts, `spurious_s` those without a beat. `sound_of` is the id
    of the draw that the music comes from (the clip's own unless mismatched or repeated), and
    `duplicate_of` the id of the clip that it repeats, or None. `programs` are General MIDI numbers of
    lead, chords and bass, `kit` that of the drums. `notes` are (channel, pitch, start,
    end, velocity), `palette` three colours (HSV in [0,1]), `amount` the size of a jump in pixels.
    """

    id: str
    split: str
    index: int
    seed: int
    genre: str
    tempo_bpm: float
    key: str
    mode: str
    chords: tuple[str, ...]
    seconds: float
    beats_s: tuple[float, ...]
    onsets_s: tuple[float, ...]
    shown: tuple[bool, ...]
    spurious_s: tuple[float, ...]
    video_events_s: tuple[float, ...]
    programs: tuple[int, int, int]
    kit: int
    notes: tuple[Note, ...]
    palette: tuple[tuple[float, float, float], ...]
    scene: str
    scene_genre: str
    texture: str
    figure: str
    cuts: bool
    amount: float
    static: bool
    near_static: bool
    vocal: bool
    mismatched: bool
    sound_of: str
    duplicate_of: str | None
    fps: float
    size: int
    caption: str


def clip_id(split: str, index: int) -> str:
    """`test-00017`."""
    return f"{split}-{index:05d}"


def parse_id(name: str) -> tuple[str, int]:
    """Split and index of a clip id. Raises UsageError."""
    split, _, number = name.rpartition("-")
    if split not in DRAWS or not number.isdecimal() or clip_id(split, int(number)) != name:
        raise UsageError(f"{name!r} is no clip id: write for example test-00017")
    return split, int(number)


def _rng(cfg: CorpusConfig, split: str, index: int, part: int) -> np.random.Generator:
    return np.random.default_rng([cfg.seed, DRAWS.index(split), index, part])


def sample_spec(split: str, index: int, cfg: CorpusConfig, seconds: float) -> ClipSpec:
    """The clip number `index` of `split`. Raises UsageError for an unknown split or a negative index."""
    if split not in DRAWS:
        raise UsageError(f"unknown split {split!r}: {nearest(split, DRAWS)}")
    if index < 0:
        raise UsageError(f"clip index {index} is negative")
    first = index
    while first and _flags(cfg, split, first)[4] < cfg.duplicate_share:
        first -= 1
    if first != index:
        twin = sample_spec(split, first, cfg, seconds)
        return dataclasses.replace(twin, id=clip_id(split, index), index=index, duplicate_of=twin.id)
    spec = _draw(split, index, cfg, seconds)
    flags = _flags(cfg, split, index)
    if flags[3] < cfg.mismatched_share:
        # The music of a draw that no split holds: its beats and genre have nothing to do with the picture.
        other = _draw(split, index + FAR, cfg, seconds)
        spec = dataclasses.replace(
            spec,
            mismatched=True,
            sound_of=other.id,
            shown=(False,) * len(other.beats_s),
            spurious_s=spec.video_events_s,
            **{k: getattr(other, k) for k in MUSIC},
        )
    static, near_static = bool(flags[0] < cfg.static_share), bool(flags[1] < cfg.near_static_share)
    if static or near_static:
        still = {"video_events_s": (), "spurious_s": (), "shown": (False,) * len(spec.beats_s), "cuts": False}
        spec = dataclasses.replace(spec, static=static, near_static=near_static and not static, **still)
    return spec


def _flags(cfg: CorpusConfig, split: str, index: int) -> np.ndarray:
    """Uniform draws that decide which exceptions a clip is; the same draws whatever the shares are."""
    return _rng(cfg, split, index, 2).random(5)


def _draw(split: str, index: int, cfg: CorpusConfig, seconds: float) -> ClipSpec:
    rng = _rng(cfg, split, index, 0)
    genre = GENRES[int(rng.integers(len(GENRES)))]
    source = _sources(rng, genre, cfg)
    tempo = float(np.round(rng.uniform(*source["tempo"].tempo), 1))
    swing = source["drums"].swing
    programs = _programs(rng, source)
    texture, figure = source["texture"].texture, source["texture"].figure
    if split == "shifted":
        programs = [SHIFTED_PROGRAM[p] for p in programs]
        texture, figure = SHIFTED_TEXTURE[texture], SHIFTED_FIGURE[figure]
    beat = 60.0 / tempo
    phase = float(rng.uniform(0.0, beat))
    beats = np.arange(phase, seconds - 0.05, beat)
    key, mode = int(rng.integers(12)), source["harmony"].mode
    notes, chords, onsets = _score(rng, source, cfg, beats, beat, swing, seconds, key, mode)
    vocal = bool(_rng(cfg, split, index, 3).random() < cfg.vocal_share)
    if vocal:
        notes += _voice(_rng(cfg, split, index, 4), beats, beat, key, mode)

    view = _rng(cfg, split, index, 1)
    shown = view.random(len(beats)) < cfg.beat_share
    jitter = view.normal(0.0, cfg.jitter_s, len(beats)) if cfg.jitter_s else np.zeros(len(beats))
    rate = cfg.spurious_per_s if cfg.varies < 0 else cfg.varies
    spurious = np.sort(view.uniform(0.1, seconds - 0.1, view.poisson(rate * seconds)))
    if rate != cfg.spurious_per_s:
        spurious = _varied(_rng(cfg, split, index, 5), spurious, rate, cfg.spurious_per_s, seconds)
    events = np.sort(np.concatenate([(beats - LEAD_S + jitter)[shown], spurious]))
    palette = _palette(view, source["palette"])
    if split == "shifted":
        palette = tuple(_shifted_colour(*colour) for colour in palette)
    caption = _caption(genre, source["harmony"].mood, tempo, KEYS[key], mode, programs)
    return ClipSpec(
        id=clip_id(split, index),
        split=split,
        index=index,
        seed=cfg.seed,
        genre=genre,
        tempo_bpm=tempo,
        key=KEYS[key],
        mode=mode,
        chords=chords,
        seconds=seconds,
        beats_s=_seconds(beats),
        onsets_s=onsets,
        shown=tuple(bool(s) for s in shown),
        spurious_s=_seconds(spurious),
        video_events_s=_seconds(events),
        programs=(programs[0], programs[1], programs[2]),
        kit=SHIFTED_KIT if split == "shifted" else 0,
        notes=tuple(sorted(notes, key=lambda n: (n[2], n[0], n[1]))),
        palette=palette,
        scene=f"{figure} on {texture}",
        scene_genre=genre,
        texture=texture,
        figure=figure,
        cuts=bool(view.random() < cfg.cut_share),
        amount=float(np.round(view.uniform(7.0, 11.0), 3)),
        static=False,
        near_static=False,
        vocal=vocal,
        mismatched=False,
        sound_of=clip_id(split, index),
        duplicate_of=None,
        fps=cfg.fps,
        size=cfg.size,
        caption=caption + (", with voice." if vocal else "."),
    )


def music_again(spec: ClipSpec, genre: str, cfg: CorpusConfig, rng: np.random.Generator) -> ClipSpec:
    """`spec` with another piece of `genre` at the beats and in the tempo of its own; the picture stays.

    All else is drawn as for any clip of that genre, of which it thus has what the corpus knows of it given the tempo.
    It has no voice and is in the training style. Raises KeyError for an unknown genre.
    """
    source = _sources(rng, genre, cfg)
    programs, key, mode = _programs(rng, source), int(rng.integers(12)), source["harmony"].mode
    beats, beat, swing = np.array(spec.beats_s), 60.0 / spec.tempo_bpm, source["drums"].swing
    notes, chords, onsets = _score(rng, source, cfg, beats, beat, swing, spec.seconds, key, mode)
    return dataclasses.replace(
        spec,
        genre=genre,
        key=KEYS[key],
        mode=mode,
        chords=chords,
        onsets_s=onsets,
        programs=(programs[0], programs[1], programs[2]),
        kit=0,
        notes=tuple(sorted(notes, key=lambda n: (n[2], n[0], n[1]))),
        vocal=False,
        caption=_caption(genre, source["harmony"].mood, spec.tempo_bpm, KEYS[key], mode, programs) + ".",
    )


def _sources(rng: np.random.Generator, genre: str, cfg: CorpusConfig) -> dict[str, Genre]:
    """Where each attribute comes from: the genre itself or, with probability genre_mix, a neighbour."""
    source = {}
    for attribute in ATTRIBUTES:
        neighbour = NEIGHBOURS[genre][int(rng.integers(len(NEIGHBOURS[genre])))]
        source[attribute] = TABLE[neighbour if rng.random() < cfg.genre_mix else genre]
    return source


def _programs(rng: np.random.Generator, source: dict[str, Genre]) -> list[int]:
    return [int(rng.choice(p)) for p in (source["lead"].lead, source["chords"].chords, source["bass"].bass)]


def _caption(genre: str, mood: str, tempo: float, key: str, mode: str, programs: list[int]) -> str:
    described = ", ".join(dict.fromkeys(PROGRAM_NAMES[p] for p in programs))
    pace = "slow" if tempo < 90 else "mid-tempo" if tempo < 120 else "fast"
    return f"A {mood} {genre} piece, {pace} ({tempo:.0f} BPM), {key} {mode}, with {described}"


def _varied(rng: np.random.Generator, times: np.ndarray, rate: float, wanted: float, seconds: float) -> np.ndarray:
    """Events of another rate: the same ones thinned out, or with further ones among them."""
    if wanted < rate:
        return times[rng.random(len(times)) < wanted / rate]
    more = rng.uniform(0.1, seconds - 0.1, rng.poisson((wanted - rate) * seconds))
    return np.sort(np.concatenate([times, more]))


def _seconds(times: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(times, 6).tolist())


def _score(rng, source, cfg, beats, beat, swing, seconds, key, mode):
    """Notes, chord names and note onsets: everything strong falls on beats, the rest is quieter or rarer."""
    scale = SCALES[mode]
    progression = source["harmony"].progressions[int(rng.integers(len(source["harmony"].progressions)))]
    start_bar = int(rng.integers(4))
    notes: list[Note] = []
    names: list[str] = []

    def pitch(degree: int, base: int) -> int:
        return base + key + 12 * (degree // 7) + scale[degree % 7]

    for i, t in enumerate(beats):
        bar, in_bar = divmod(i + start_bar, 4)
        degree = progression[bar % len(progression)]
        name = f"{KEYS[(key + scale[degree % 7]) % 12]}{'m' if _is_minor(degree, scale) else ''}"
        if not names or names[-1] != name:
            names.append(name)
        accent = 100 if in_bar == 0 else 88
        notes.append((BASS, pitch(degree, 36), t, t + 0.9 * beat, accent))
        if in_bar in (0, 2) or rng.random() < 0.5:
            tones = [degree, degree + 2, degree + 4] + (
                [degree + 6] if rng.random() < source["harmony"].sevenths else []
            )
            notes += [(CHORDS, pitch(d, 60), t, t + 0.85 * beat, accent - 22) for d in tones]
        if rng.random() < 0.75:
            notes.append((MELODY, pitch(degree + int(rng.choice((0, 2, 4, 7))), 72), t, t + 0.7 * beat, accent - 6))
        # Off the beat: notes that no picture shows.
        off = t + 0.5 * beat * (1.0 + 0.33 * swing)
        if off < seconds - 0.05 and rng.random() < cfg.silent_note_share * 2 * source["lead"].lead_density:
            notes.append((MELODY, pitch(degree + int(rng.integers(8)), 72), off, off + 0.3 * beat, OFF_BEAT_VELOCITY))
        for step in range(4):
            place = (in_bar * 4 + step) % 16
            when = t + step * beat / 4 + (swing * beat / 12 if step % 2 else 0.0)
            if when >= seconds - 0.02:
                break
            for drum in ("kick", "snare", "hat"):
                if getattr(source["drums"], drum)[place] != "x":
                    continue
                loud = (
                    14 if drum == "hat" else (116 if step == 0 else 22)
                )  # beats stand out, hats and off-beats are soft
                notes.append((KIT, DRUMS[drum], when, when + 0.08, loud))
        if source["drums"].kick.count("x") == 0:
            notes.append((KIT, 69, t, t + 0.08, 45))  # a soft shaker keeps drumless styles on their beat
    onsets = sorted({round(float(n[2]), 4) for n in notes})
    return notes, tuple(names), tuple(onsets)


def _is_minor(degree: int, scale: tuple[int, ...]) -> bool:
    third = scale[(degree + 2) % 7] + 12 * ((degree + 2) // 7) - scale[degree % 7] - 12 * (degree // 7)
    return third == 3


def _voice(rng, beats, beat, key, mode) -> list[Note]:
    """A sung line (voice "oohs"), the stem that vocal removal must find."""
    scale = SCALES[mode]
    return [
        (VOICE, 60 + key % 12 + scale[int(rng.integers(7))], t, t + 0.95 * beat, 112)
        for t in beats
        if rng.random() < 0.8
    ]


def _shifted_colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """The faded, slightly turned colours of the shifted split."""
    return round((hue + 0.06) % 1.0, 4), round(0.65 * saturation, 4), round(0.28 + 0.62 * value, 4)


def _palette(rng, genre) -> tuple[tuple[float, float, float], ...]:
    """Three colours (HSV in [0,1]) around the genre's hues."""
    colours = []
    for step in VALUE_STEPS:
        hue = (float(rng.choice(genre.hues)) + rng.normal(0, HUE_SD)) % 1.0
        value = np.clip(genre.value * step + rng.normal(0, VALUE_SD), *VALUES)
        saturation = np.clip(genre.saturation + rng.normal(0, SATURATION_SD), *SATURATIONS)
        colours.append((round(hue, 4), round(float(saturation), 4), round(float(value), 4)))
    return tuple(colours)
