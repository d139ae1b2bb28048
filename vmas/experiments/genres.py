"""How far do the genres of the mini corpus overlap? What can tell them apart, from the music and from the picture.

Every attribute of a clip comes from its genre or, with probability `corpus.genre_mix`, from a neighbouring one, so that
genres overlap. Three answers, on clips that none of them has seen:

    random forest   over the true attributes of the music, or of the picture, which no listener is told
    strong tagger   twice as wide and trained five times as long as the committed one, on originals alone, with the
                    further music of the decoder's first stage besides the training clips
    committed tagger   the judge of every table, which is small and has learnt to bear the codec and damage

Nothing else uses the strong tagger: a judge that had never heard the codec would judge the codec and not the music.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.experiments import fig5
from vmas.pools import cores
from vmas.records import Record, Row

if TYPE_CHECKING:
    from torch import Tensor

    from vmas.corpus.spec import ClipSpec

TARGET = "genres"
TITLE = "How far do the genres overlap?"
MUSIC, PICTURE = "Random forest, attributes of the music", "Random forest, attributes of the picture"
STRONG, COMMITTED = "Strong tagger", "Committed tagger"
SYSTEMS = (MUSIC, STRONG, COMMITTED, PICTURE)
METRIC = "genre accuracy"
SPLITS = {"val": "corpus, validation", "test": "corpus, test", "shifted": "corpus, shifted style"}
LONGER, WIDER = 5, 2  # of the strong tagger's training and width, against the committed one's
TREES = 300
STAGES = ("tagger", "genres")


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the numbers depend on."""
    from vmas.corpus import data_sha256

    about = {k: v for k, v in plain(profile).items() if k in ("clip", "corpus", "eval")}
    tagger = checkpoint.shas(paths.checkpoints(profile.name), "tagger")
    return sha256(TARGET, about, data_sha256(profile), tagger, seed, versions.of(*STAGES), LONGER, WIDER, TREES)


def specs(profile: Profile, split: str, numbers: range) -> list["ClipSpec"]:
    """The truth of some clips of a split."""
    from vmas.corpus import sample_spec

    return [sample_spec(split, i, profile.corpus, profile.clip.seconds) for i in numbers]


def music_attributes(spec: "ClipSpec") -> list[float]:
    """What is true of a clip's music: tempo, mode, instruments, drum pattern, harmony; never its genre."""
    from vmas.corpus.spec import BASS, CHORDS, DRUMS, KIT, MELODY

    beats = max(len(spec.beats_s), 1)
    by_channel = {c: [n for n in spec.notes if n[0] == c] for c in (BASS, CHORDS, MELODY, KIT)}
    chords: dict[float, int] = {}
    for note in by_channel[CHORDS]:
        chords[note[2]] = chords.get(note[2], 0) + 1
    drums = [[] for _ in range(len(DRUMS))]
    places = {pitch: k for k, pitch in enumerate(DRUMS.values())}
    for _, pitch, start, _, _ in by_channel[KIT]:
        if pitch in places:
            drums[places[pitch]].append((start - spec.beats_s[0]) * spec.tempo_bpm / 60 if spec.beats_s else 0.0)
    pattern = []
    for hits in drums:  # where in a beat a drum falls, and how often on each of four beats
        at = np.asarray(hits, float)
        pattern += (np.histogram(np.mod(at + 0.05, 1.0), bins=6, range=(0, 1))[0] / beats).tolist()
        pattern += (np.histogram(np.mod(np.round(at), 4), bins=4, range=(0, 4))[0] / beats).tolist()
    return [
        spec.tempo_bpm,
        float(spec.mode == "minor"),
        *map(float, spec.programs),
        *pattern,
        sum(n == 4 for n in chords.values()) / max(len(chords), 1),
        len(by_channel[MELODY]) / beats,
        len(spec.chords) / beats,
    ]


def picture_attributes(spec: "ClipSpec") -> list[float]:
    """What is true of a clip's picture: colours, texture, figure, and the tempo at which it moves; never its genre."""
    from vmas.corpus import SCENES

    scene = [float(SCENES[k].index(getattr(spec, k))) for k in ("texture", "figure")]
    return [spec.tempo_bpm, *scene, *(x for colour in spec.palette for x in colour)]


def forest(
    train: Sequence["ClipSpec"], held_out: Sequence["ClipSpec"], attributes: Callable, seed: int = 0
) -> np.ndarray:
    """Genres [N] that a random forest, grown on the attributes of `train`, says of `held_out`."""
    from sklearn.ensemble import RandomForestClassifier

    grown = RandomForestClassifier(TREES, random_state=seed, n_jobs=cores())
    grown.fit(np.array([attributes(s) for s in train]), [s.genre for s in train])
    return grown.predict(np.array([attributes(s) for s in held_out]))


def strong_tagger(profile: Profile, wavs: np.ndarray, genres: np.ndarray, seed: int = 0, progress: bool = True):
    """A tagger trained on `wavs` [N,samples] with `genres` int [N], and on the corpus's further music.

    Returns the `MiniTagger` and the number of clips it has heard.
    """
    import torch

    from vmas.corpus import GENRES
    from vmas.embedders import tagger_train
    from vmas.embedders.tagger import MiniTagger, TaggerConfig
    from vmas.features import render_music

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        t, e = tagger_train, profile.eval
        sizes = (profile.clip.sample_rate, t.N_MELS, t.N_FFT, t.HOP, WIDER * e.tagger_width)
        tagger = MiniTagger(TaggerConfig(*sizes, tuple(GENRES)))
        heard: list[Tensor] = [t.spectra(tagger, wavs, progress=progress)]
        labels = [torch.as_tensor(np.asarray(genres), dtype=torch.long)]
        for some, waves in render_music(profile, progress=progress):
            heard.append(t.spectra(tagger, waves))
            labels.append(torch.tensor([GENRES.index(s.genre) for s in specs(profile, "music", some)]))
        clean, known = torch.cat(heard), torch.cat(labels)
        t.normalise(tagger, clean)
        g = torch.Generator().manual_seed(seed)
        nothing = clean[:0], known[:0]
        t.fit(tagger, (clean, known), nothing, LONGER * e.tagger_steps, g, spoil=False, progress=progress)
    return tagger.eval().requires_grad_(False), len(known)


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """The three answers on the clips held out, with intervals over clips. Raises DataError in profile paper."""
    from vmas.corpus import GENRES, data_sha256
    from vmas.embedders.tagger import load_tagger
    from vmas.features import load_split

    start = time.monotonic()
    if profile.name == "paper":
        raise DataError("genres asks about the procedural corpus; there is none at paper scale")
    root = pipeline.parts(profile, seed, progress, say=say)
    named = np.array(GENRES)

    say("strong tagger: training")
    train = load_split(profile, "train", progress=progress)
    strong, heard = strong_tagger(profile, train.waveforms, train.genres, seed, progress)
    taggers = {STRONG: strong, COMMITTED: load_tagger(root / "tagger")}
    drawn, table = specs(profile, "train", range(len(train))), []
    for split, dataset in SPLITS.items():
        found = load_split(profile, split, progress=progress)
        clips = specs(profile, split, range(len(found)))
        true, waves = named[found.genres], found.waveform(slice(0, len(found)))
        said = {name: named[tagger.logits(waves).argmax(1).numpy()] for name, tagger in taggers.items()}
        for name, attributes in ((MUSIC, music_attributes), (PICTURE, picture_attributes)):
            said[name] = forest(drawn, clips, attributes, seed)
        table += rows(said, true, dataset, profile, seed)
    command = f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}"
    weights = checkpoint.read_manifest(root / "tagger")["sha256"]
    prov = records.provenance(command, time.monotonic() - start, sha256(profile), data_sha256(profile), weights)
    extra: dict[str, Any] = {
        "note": profile.note,
        "clips_heard": {STRONG: heard, COMMITTED: len(train)},
        "genre_mix": profile.corpus.genre_mix,
    }
    return Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(table), prov, extra)


def rows(said: dict[str, np.ndarray], true: np.ndarray, dataset: str, profile: Profile, seed: int = 0) -> list[Row]:
    """How often each of `said` (system → genres [N]) is right; chance: the same answers dealt out at random."""
    boot = {"seed": seed, "n": profile.eval.bootstrap}
    return [fig5.accuracy(system, dataset, said[system], true, METRIC, profile, boot) for system in SYSTEMS]
