"""What would a perfect generator score? Nothing is generated here: the corpus itself makes the music.

A trained model is held against real music through the codec. That music has two things which no generator has: it is
the clip's own, so FAD meets itself, and it knows the genre, which the picture tells only in part. Here the corpus draws
another piece for every test clip, at the clip's own beats, through the codec, judged as any system is; what is told of
the genre gets less from row to row:

    told the genre     the clip's own genre
    sees the picture   a genre drawn from P(genre | picture), exact (`vmas.corpus.posterior`)
    sees X_v           a genre drawn from what a probe reads off the committed model's X_v, and off the tempo
    likeliest by X_v   the same probe's first choice in place of a draw, which is what strong guidance tends to
    sees nothing       any genre, any tempo, any beats

The steps between the rows are what picture, encoder and video are worth; from the third row down to a trained model is
what the decoder leaves.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.experiments import evaluate, probe, references
from vmas.metrics import intervals
from vmas.records import Record, Row

if TYPE_CHECKING:
    from vmas.corpus.spec import ClipSpec

TARGET = "ideal"
TITLE = "What would a perfect generator score?"
SPLIT = "test"
STAGES = ("codec", "encoder", "flow", "fad", "kl", "mv_align", "tagger", "evaluation", "ideal")
CODED = "Real music, through the codec"
TOLD, SEEN, READ, LIKELIEST, BLIND = (
    f"Perfect, {what}"
    for what in ("told the genre", "sees the picture", "sees X_v", "likeliest by X_v", "sees nothing")
)
SYSTEMS = (CODED, TOLD, SEEN, READ, LIKELIEST, BLIND)
GENRE = "genre accuracy"  # of what was drawn, before any music
TAGGER = "Tagger accuracy"
OTHER = 7919  # added to the corpus's seed where a clip is to have nothing of another
CODERS = 16  # clips through the codec at a time


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the numbers depend on."""
    from vmas.corpus import data_sha256

    about = {k: v for k, v in plain(profile).items() if k in ("clip", "corpus", "codec", "encoder", "eval")}
    weights = checkpoint.shas(paths.checkpoints(profile.name), "codec", "tagger", f"vmas-seed{seed}")
    return sha256(TARGET, about, data_sha256(profile), weights, seed, versions.of(*STAGES))


def drawn(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of K for each row of `chances` [N,K], with these probabilities: int [N]."""
    return (chances.cumsum(1) < rng.random((len(chances), 1)) * chances.sum(1, keepdims=True)).sum(1)


def pieces(clips: Sequence["ClipSpec"], genres: np.ndarray, profile: Profile, draw: Sequence[int]) -> list["ClipSpec"]:
    """Every clip with another piece of `genres` int [N] at its own beats; `draw` names the random numbers."""
    from vmas.corpus import GENRES
    from vmas.corpus.spec import music_again

    return [
        music_again(c, GENRES[g], profile.corpus, np.random.default_rng([*draw, i]))
        for i, (c, g) in enumerate(zip(clips, genres, strict=True))
    ]


def strangers(profile: Profile, n: int, draw: int) -> list["ClipSpec"]:
    """`n` clips of the same knobs that have nothing to do with the test clips."""
    from vmas.corpus import sample_spec

    other = dataclasses.replace(profile.corpus, seed=profile.corpus.seed + OTHER + draw)
    return [sample_spec(SPLIT, i, other, profile.clip.seconds) for i in range(n)]


def sound(spec: "ClipSpec", profile: Profile) -> np.ndarray:
    """Its music as the corpus's files have it, through their AAC: float32 [samples]."""
    from vmas import media
    from vmas.corpus.sound import render_audio

    rate = profile.clip.sample_rate
    wav = media.through_aac(render_audio(spec, rate)[None], rate)[0]
    return np.round(np.clip(wav, -1, 1) * 32767) / np.float32(32767)


def through_codec(specs: Sequence["ClipSpec"], codec: Any, profile: Profile, pool=None) -> np.ndarray:
    """Their music through the codec: int16 [N,samples]."""
    import torch

    work, tokens = partial(sound, profile=profile), []
    for i in range(0, len(specs), CODERS):
        some = specs[i : i + CODERS]
        waves = np.stack(list(pool.map(work, some, chunksize=4) if pool else map(work, some)))
        with torch.inference_mode():
            codes = codec.encode(torch.from_numpy(waves)[:, None])[..., : profile.num_tokens]
        tokens.append(codes.cpu().numpy())
    return references.through_codec(codec, np.concatenate(tokens), profile.clip.num_samples)


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """All metrics of the perfect generators on the test split. Raises DataError in profile paper."""
    from tqdm.auto import tqdm

    from vmas.codec import load_codec
    from vmas.corpus import data_sha256, sample_spec
    from vmas.corpus.posterior import genre_posterior
    from vmas.embedders.tagger import load_tagger
    from vmas.features import load_split
    from vmas.model import VMAs

    start = time.monotonic()
    if profile.name == "paper":
        raise DataError("ideal asks the procedural corpus for further music; of web videos there is none")
    root = pipeline.ensure(profile, seed, device, progress, say=say)
    pipeline.parts(profile, seed, progress, say=say, splits=("train", "val"))
    codec = load_codec(root / "codec")
    model = VMAs.from_pretrained(root / f"vmas-seed{seed}", "cpu", codec)
    say("probe: what X_v tells of the genre")
    read = {s: load_split(profile, s, progress=progress) for s in ("train", "val", SPLIT)}
    known = {s: probe.summaries(model, split, progress) for s, split in read.items()}
    fitted = probe.fitted(known["train"], read["train"].genres)
    with evaluate.Evaluator(load_tagger(root / "tagger"), profile.clip.sample_rate) as judge:
        found = references.load(profile, SPLIT, SPLIT, codec, judge, progress)
        n, true = found.n, found.split.genres[: found.n]
        clips = [sample_spec(SPLIT, i, profile.corpus, profile.clip.seconds) for i in range(n)]
        exact = np.array([genre_posterior(c, profile.corpus) for c in clips])
        by_X_v = fitted.predict_proba(known[SPLIT][:n])
        of_one = np.eye(exact.shape[1])
        chances = {TOLD: of_one[true], SEEN: exact, READ: by_X_v, LIKELIEST: of_one[by_X_v.argmax(1)]}
        table = evaluate.rows(CODED, SPLIT, [found.coded], found.reference, profile)
        said: dict[str, list[np.ndarray]] = {system: [] for system in chances}
        draws = profile.eval.sweep_sampling_seeds
        total = n * draws * (len(chances) + 1)
        with tqdm(total=total, desc=TARGET, unit="clip", disable=None if progress else True) as bar:
            for k, system in enumerate((*chances, BLIND)):
                bar.set_postfix_str(system)
                heard = []
                for d in range(draws):
                    if system == BLIND:
                        specs = strangers(profile, n, d)
                    else:
                        genres = drawn(chances[system], np.random.default_rng([seed, k, d]))
                        said[system].append(genres)
                        specs = pieces(clips, genres, profile, (seed, k, d))
                    heard.append(judge.analyse(through_codec(specs, codec, profile, judge.pool), bar.update))
                table += evaluate.rows(system, SPLIT, heard, found.reference, profile)
    table += genre_rows(said, true, profile, seed)
    command = f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}"
    weights = checkpoint.read_manifest(root / f"vmas-seed{seed}")["sha256"]
    prov = records.provenance(command, time.monotonic() - start, sha256(profile), data_sha256(profile), weights)
    extra = {
        "note": profile.note,
        "probe": {s: _of_probe(fitted.predict_proba(known[s]), split.genres) for s, split in read.items()},
        "picture": {"likeliest is right": float((exact.argmax(1) == true).mean())},
    }
    return Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(table), prov, extra)


def _of_probe(chances: np.ndarray, genres: np.ndarray) -> dict[str, float]:
    found = probe.judged(chances, genres)
    return {"right": float(found[probe.ACCURACY].mean()), "log loss": float(found[probe.LOSS].mean())}


def genre_rows(said: dict[str, list[np.ndarray]], true: np.ndarray, profile: Profile, seed: int = 0) -> list[Row]:
    """How often the genre that was drawn is the clip's; a clip's score is the mean over its draws.

    Chance: the same genres, dealt out to the clips at random.
    """
    out = []
    for system, draws in said.items():
        hits = np.mean([d == true for d in draws], axis=0)
        chance = float(np.mean([(d[:, None] == true).mean() for d in draws]))
        ci = intervals.mean_ci(hits, n=profile.eval.bootstrap, seed=seed)
        count = (len(true), len(draws), chance)
        out.append(Row(system, SPLIT, GENRE, "up", float(hits.mean()), ci, *count, None, profile.status))
    return out


def reached(ideal: Record, trained: Record, metric: str = TAGGER) -> dict[str, dict[str, float]]:
    """System of a table's record → perfect row of `ideal` → its share of that on the test split."""
    from vmas.experiments import table3

    def values(record: Record, dataset: str) -> dict[str, float]:
        return {r.system: r.value for r in record.rows if (r.dataset, r.metric) == (dataset, metric) and r.value}

    top = values(ideal, SPLIT)
    mine = values(trained, table3.DATASETS[SPLIT])
    return {system: {s: value / top[s] for s in SYSTEMS[:-1]} for system, value in mine.items()}
