"""Do the metrics see damage? Real music of the test split, spoilt more and more, judged as any system is.

    noise     white noise, at 40 … 0 dB of signal over noise
    low-pass  everything above 8 … 1 kHz taken away
    mixing    another clip's music on top, at -20 … 0 dB
    genre     a quarter … all of the clips get music of one genre, the first of the list
    shuffled  cut into pieces of 2.5 … .1 s, which are put together in random order
    AAC       coded with 128 … 32 kbit/s and decoded

A metric that is to rank systems must get worse with the damage that it is meant to hear. FAD and KL look at sound and
genre and not at time; MV Align is not meant to hear noise. Which curve rises is computed, never typed.

The onsets' F measure is the one by which our codec is judged. What it asks for is seen beside: our codec spends 1.6
kbit/s, and stands in a row of its own.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.records import Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TARGET = "damage"
TITLE = "Do the metrics see damage?"
SPLIT, CLIPS = "test", 200  # so many keep it within a few minutes on two cores
STAGES = ("codec", "flow", "fad", "kl", "mv_align", "tagger", "evaluation", "damage")
# What is done → (unit of the level, levels from the least damage to the most).
KINDS: dict[str, tuple[str, tuple[float, ...]]] = {
    "noise": ("dB of signal over noise", (40.0, 20.0, 10.0, 0.0)),
    "low-pass": ("kHz kept", (8.0, 4.0, 2.0, 1.0)),
    "mixing": ("dB of the other music over this", (-20.0, -10.0, -5.0, 0.0)),
    "genre": ("share of clips with one genre's music", (0.25, 0.5, 0.75, 1.0)),
    "shuffled": ("s, length of the pieces", (2.5, 1.0, 0.5, 0.1)),
    "AAC": ("kbit/s", (128.0, 64.0, 48.0, 32.0)),
}
WHOLE, CODED = "Real music", "Real music, through the codec"
ONSET_F = "Onset F (50 ms)"


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the numbers depend on."""
    from vmas.corpus import data_sha256

    about = {k: v for k, v in plain(profile).items() if k in ("clip", "corpus", "codec", "eval")}
    return sha256(TARGET, about, data_sha256(profile), _weights(profile), seed, versions.of(*STAGES), KINDS, CLIPS)


def _weights(profile: Profile) -> dict[str, str]:
    return checkpoint.shas(paths.checkpoints(profile.name), "codec", "tagger")


def rms(x: np.ndarray) -> np.ndarray:
    """Root mean square of every clip, [N,1] of [N,samples]; never 0."""
    return np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True)) + 1e-9


def noise(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """White noise added, `level` dB below each clip. `x` float32 [N,samples], as below."""
    return x + rng.standard_normal(x.shape, np.float32) * rms(x) * 10 ** (-level / 20)


def low_pass(x: np.ndarray, level: float, sample_rate: int) -> np.ndarray:
    """Butterworth of order 8, both ways (no delay), at `level` kHz."""
    from scipy import signal

    sos = signal.butter(8, 1000 * level, fs=sample_rate, output="sos")
    return signal.sosfiltfilt(sos, x, axis=-1).astype(np.float32)


def mixing(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    """Another clip's music added, `level` dB over each clip's own."""
    other = np.roll(np.arange(len(x)), 1 + int(rng.integers(len(x) - 1)))
    return x + x[other] * (rms(x) / rms(x[other])) * 10 ** (level / 20)


def one_genre(x: np.ndarray, level: float, genres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A share `level` of the clips gets the music of clips of the first genre. `genres` int [N]."""
    source = np.flatnonzero(genres == genres.min())
    out = x.copy()
    chosen = rng.permutation(len(x))[: round(level * len(x))]
    out[chosen] = x[source[np.arange(len(chosen)) % len(source)]]
    return out


def shuffled(x: np.ndarray, level: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Pieces of `level` seconds in random order, drawn for each clip; a rest at the end stays where it is."""
    size = round(level * sample_rate)
    count = x.shape[1] // size
    out = x.copy()
    for row in out:
        pieces = row[: count * size].reshape(count, size)
        row[: count * size] = pieces[rng.permutation(count)].ravel()
    return out


def aac(x: np.ndarray, level: float, sample_rate: int) -> np.ndarray:
    """AAC with `level` kbit/s, and back."""
    from vmas import media

    return np.concatenate([media.through_aac(one[None], sample_rate, round(1000 * level)) for one in x])


def spoil(kind: str, x: np.ndarray, level: float, genres: np.ndarray, sample_rate: int, seed: int = 0) -> np.ndarray:
    """float32 [N,samples] with one damage done to all of `x`; the loudest sample is brought back to 1 at most.

    Raises KeyError for an unknown kind, DataError for fewer than two clips.
    """
    if len(x) < 2:
        raise DataError("damage takes from other clips: it needs at least 2")
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    made = {
        "noise": lambda: noise(x, level, rng),
        "low-pass": lambda: low_pass(x, level, sample_rate),
        "mixing": lambda: mixing(x, level, rng),
        "genre": lambda: one_genre(x, level, genres, rng),
        "shuffled": lambda: shuffled(x, level, sample_rate, rng),
        "AAC": lambda: aac(x, level, sample_rate),
    }[kind]()
    peak = np.abs(made).max(axis=-1, keepdims=True)
    return (made / np.maximum(peak, 1.0)).astype(np.float32)


def name(kind: str, level: float) -> str:
    """The row's name: "noise, 20 dB of signal over noise"."""
    return f"{kind}, {level:g} {KINDS[kind][0]}"


def onset_times(waves: np.ndarray, profile: Profile, pool=None) -> list[np.ndarray]:
    """Times of the music beats P_a of waveforms [N,samples], in seconds: one array a clip."""
    from vmas.beats import audio_onsets

    hop, rate = profile.codec.hop, profile.clip.sample_rate
    work = partial(audio_onsets, sample_rate=rate, hop=hop)
    found = pool.map(work, waves, chunksize=8) if pool else map(work, waves)
    return [one * hop / rate for one in found]


def onset_row(system: str, own: list[np.ndarray], heard: list[np.ndarray], profile: Profile) -> Row:
    """Mean F measure over the clips of onsets `heard` against the clips' `own`, as `vmas.codec.codec_report` has it."""
    from vmas.codec import f_measure
    from vmas.metrics import intervals

    scores = np.array([f_measure(a, b) for a, b in zip(own, heard, strict=True)])
    s = intervals.summarise(scores, n=profile.eval.bootstrap)
    ci = (s.lo, s.hi) if np.isfinite(s.lo) else None
    return Row(system, SPLIT, ONSET_F, "up", s.mean, ci, len(scores), status=profile.status)


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """All metrics of the test split's music, whole and damaged. Raises DataError in profile paper."""
    from tqdm.auto import tqdm

    from vmas.codec import load_codec
    from vmas.corpus import data_sha256
    from vmas.embedders.tagger import load_tagger
    from vmas.experiments import evaluate, references

    start = time.monotonic()
    if profile.name == "paper":
        raise DataError(
            "damage at paper scale needs the real test clips; this version reads the procedural corpus only"
        )
    root = pipeline.parts(profile, seed, progress, say=say, splits=pipeline.TEST_SPLITS)
    limited = replace(profile, eval=replace(profile.eval, clips=min(CLIPS, profile.eval.clips or CLIPS)))
    hide = None if progress else True
    with evaluate.Evaluator(load_tagger(root / "tagger"), profile.clip.sample_rate) as judge:
        codec = load_codec(root / "codec")
        found = references.load(limited, SPLIT, SPLIT, codec, judge, progress)
        own = found.split.waveform(slice(0, found.n))
        onsets = onset_times(own, profile, judge.pool)

        def judged(system: str, analysis: evaluate.Analysis, waves: np.ndarray) -> list[Row]:
            heard = onset_times(waves, profile, judge.pool)
            rows = evaluate.rows(system, SPLIT, [analysis], found.reference, profile)
            return [*rows, onset_row(system, onsets, heard, profile)]

        assert found.split.tokens is not None  # the codec was given
        back = references.through_codec(codec, found.split.tokens[: found.n], profile.clip.num_samples)
        table = judged(WHOLE, found.reference.real, own) + judged(CODED, found.coded, back / np.float32(32767))
        total = found.n * sum(len(levels) for _, levels in KINDS.values())
        with tqdm(total=total, desc=TARGET, unit="clip", disable=hide) as bar:
            for kind, (_, levels) in KINDS.items():
                for level in levels:
                    bar.set_postfix_str(name(kind, level))
                    waves = spoil(kind, own, level, found.split.genres[: found.n], profile.clip.sample_rate, seed)
                    table += judged(name(kind, level), judge.analyse(waves, bar.update), waves)
    command = f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}"
    weights = _weights(profile)["tagger"]
    prov = records.provenance(command, time.monotonic() - start, sha256(profile), data_sha256(profile), weights)
    extra = {"note": profile.note, "kinds": {k: [unit, list(levels)] for k, (unit, levels) in KINDS.items()}}
    return Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(table), prov, extra)


def curves(record: Record, metric: str) -> Iterator[tuple[str, list[float], list[tuple[float, float] | None]]]:
    """(kind, values, intervals) from the whole music to the most damage."""
    whole = record.row(WHOLE, SPLIT, metric)
    for kind, (_, levels) in record.extra["kinds"].items():
        rows = [whole, *(record.row(name(kind, level), SPLIT, metric) for level in levels)]
        yield kind, [float("nan") if r.value is None else r.value for r in rows], [r.ci95 for r in rows]


def verdicts(record: Record, metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    """One dict a kind and metric: is every step worse than the one before ("each step"), or the last than the whole
    with intervals apart ("in the end"), or neither ("not seen")? Computed from the record."""
    out = []
    for metric in metrics:
        up = record.row(WHOLE, SPLIT, metric).direction == "up"
        for kind, values, cis in curves(record, metric):
            worse = -np.diff(values) if up else np.diff(values)
            first, last = (cis[0] or (values[0],) * 2), (cis[-1] or (values[-1],) * 2)
            apart = last[1] < first[0] if up else last[0] > first[1]
            seen = "each step" if (worse > 0).all() and apart else "in the end" if apart else "not seen"
            out.append({"damage": kind, "metric": metric, "seen": seen, "whole": values[0], "most": values[-1]})
    return out


def figure(record: Record) -> "Figure":
    """One panel a kind and metric: the value against the damage, whole music first, intervals as bands."""
    import seaborn as sns
    from matplotlib.figure import Figure

    from vmas.report import palette

    align = next(r.metric for r in record.rows if r.metric.startswith("MV Align"))
    shown = {
        "FAD (real)": ("squared distance", "#D55E00"),
        "KL": ("nats", "#0072B2"),
        align: ("IoU", "#009E73"),
        ONSET_F: ("share", "#CC79A7"),
    }
    kinds = record.extra["kinds"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        fig = Figure(figsize=(12, 7.6), layout="constrained")
        axes = fig.subplots(len(shown), len(kinds), sharey="row")
        for row, (metric, (unit, colour)) in zip(axes, shown.items(), strict=True):
            for ax, (kind, values, cis) in zip(row, curves(record, metric), strict=True):
                x = range(len(values))
                lo, hi = zip(*(c or (v, v) for v, c in zip(values, cis, strict=True)), strict=True)
                ax.fill_between(x, lo, hi, color=colour, alpha=0.2, lw=0)
                ax.plot(x, values, "o-", color=colour, ms=4, lw=1.2)
                ax.set_xticks(x, ["whole", *(f"{level:g}" for level in kinds[kind][1])])
                if metric == "FAD (real)":
                    ax.set_title(kind, loc="left", fontsize=9)
                if metric == ONSET_F:
                    coded = record.row(CODED, SPLIT, metric).value
                    ax.axhline(coded, color=palette.colour(CODED), lw=1, ls="--", label="through our codec")
                    ax.set_xlabel(kinds[kind][0].replace(" of the other", "\nof the other"), fontsize=8)
                sns.despine(ax=ax)
            if metric == ONSET_F:
                row[0].legend(fontsize=7, frameon=False, loc="lower left")
            row[0].set_ylabel(f"{metric.replace(' (2025', chr(10) + '(2025')},{chr(10)}{unit}")
    r = record.row(WHOLE, SPLIT, "KL")
    head = f"{record.title} ({r.status}, {SPLIT} split, N = {r.n}; bands: 95% intervals; damage grows to the right)"
    fig.suptitle(head, fontsize=9, x=0.01, ha="left")
    return fig
