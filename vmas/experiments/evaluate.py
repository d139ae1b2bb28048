"""One evaluator for every system: analyse waveforms once, then FAD, KL and MV Align with intervals and chance.

Used by every target and by `vmas evaluate`. An `Analysis` holds what the metrics need of a set of
waveforms; a `Reference` what they are compared with. Nothing here knows how the music was made.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vmas.config import Profile
from vmas.memory import keep_freed
from vmas.metrics import fad as fad_metric
from vmas.metrics import intervals, mv_align
from vmas.metrics.kl import kl
from vmas.pools import cores, processes
from vmas.records import Row

CHUNK = 16  # clips of one length through the embedder or the codec at a time: more fill the caches
MAX_WORKERS = 8
SHUFFLES = 10  # pairings with other clips behind every chance
SAME_SET = 1e-6  # a FAD below it is rounding: both sides hold the same clips
FAD_RESAMPLES = 500  # each one costs an eigenvalue problem; the other metrics take the profile's number


@dataclass(frozen=True)
class Analysis:
    """N waveforms as the metrics see them: embeddings [N,D], tagger logits [N,L], onset times in seconds."""

    embeddings: np.ndarray
    logits: np.ndarray
    onsets: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.onsets)

    def take(self, order: Sequence[int] | np.ndarray) -> "Analysis":
        """The same music in another order (for shuffled pairs)."""
        order = np.asarray(order)
        return Analysis(self.embeddings[order], self.logits[order], [self.onsets[i] for i in order])


@dataclass(frozen=True)
class Reference:
    """What a system is compared with: the clips' own music, its reconstruction by the codec, and the pictures.

    `codec` and `genres` (int [N]) are None where there is no such thing; `video` maps a frame rate to the
    times of the video peaks of each clip.
    """

    real: Analysis
    codec: Analysis | None
    genres: np.ndarray | None
    video: dict[float, list[np.ndarray]]


def _floats(wav: np.ndarray) -> np.ndarray:
    return wav.astype(np.float32) / 32767.0 if wav.dtype == np.int16 else np.asarray(wav, np.float32)


def _peaks(wav: np.ndarray, sample_rate: int) -> np.ndarray:
    return mv_align.audio_peaks(_floats(wav), sample_rate)


class Evaluator:
    """Analyses waveforms; onsets are taken in worker processes that live as long as the `with` block.

    Args:
        tagger: `.embed` [B,N] → [B,D] and `.classify` [B,D] → logits [B,L] (`vmas.embedders.tagger`).
        sample_rate: of all waveforms, Hz.
        workers: processes; None is one per core.
    """

    def __init__(self, tagger: Any, sample_rate: int, workers: int | None = None):
        self.tagger, self.sample_rate = tagger, sample_rate
        self.workers = min(MAX_WORKERS, workers or cores())
        self.pool: ProcessPoolExecutor | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Evaluator":
        keep_freed()
        if self.workers > 1:
            self.pool = self._open.enter_context(processes(self.workers))
        return self

    def __exit__(self, *_) -> None:
        self._open.close()
        self.pool = None

    def analyse(self, waves: Sequence[np.ndarray] | np.ndarray, done: Callable[[], Any] | None = None) -> Analysis:
        """Embeddings, logits and onsets of waveforms, float32 in [-1,1] or int16, [N,samples] or N of any length.

        `done` is called once per waveform. Raises DataError for NaN, infinity or an empty waveform.
        """
        import torch

        work = partial(_peaks, sample_rate=self.sample_rate)
        found = self.pool.map(work, waves, chunksize=4) if self.pool else map(work, waves)
        same = len({len(w) for w in waves}) == 1
        embeddings, logits = [], []
        for i in range(0, len(waves), CHUNK if same else 1):
            part = np.stack([_floats(w) for w in waves[i : i + (CHUNK if same else 1)]])
            e = self.tagger.embed(torch.from_numpy(part))
            embeddings.append(e.cpu().numpy())
            with torch.inference_mode():
                logits.append(self.tagger.classify(e.to(self.tagger.mean.device)).cpu().numpy())
        onsets = []
        for one in found:
            onsets.append(one)
            if done:
                done()
        whole = [np.concatenate(x).astype(np.float64) for x in (embeddings, logits)]
        return Analysis(whole[0], whole[1], onsets)


def video_peaks(flow: np.ndarray, fps: float, version: str) -> list[np.ndarray]:
    """Times of the video peaks of each clip from flow [N,T-1]."""
    return [mv_align.video_peaks(np.asarray(one), fps, version) for one in flow]


def fad_floor(analysis: Analysis, splits: int = 20, seed: int = 0) -> float:
    """Mean FAD between random halves of one set: what sampling alone costs at N/2 clips."""
    rng = np.random.default_rng(seed)
    half = len(analysis) // 2
    scores = []
    for _ in range(splits):
        order = rng.permutation(len(analysis))
        x = analysis.embeddings
        scores.append(fad_metric.fad_from_embeddings(x[order[:half]], x[order[half : 2 * half]]))
    return float(np.mean(scores))


@dataclass(frozen=True)
class Scores:
    """One metric of single clips: values [N], a mean over the draws, what chance scores, and a word about it."""

    values: np.ndarray
    direction: str
    chance: float | None = None
    note: str = ""


def scores(draws: Sequence[Analysis], ref: Reference, profile: Profile, shuffles: int = SHUFFLES) -> dict[str, Scores]:
    """KL, MV Align at each frame rate, accuracy and onsets of every clip, under the names that rows have.

    Chance is the same music judged against other clips, `shuffles` times: their music (KL), their pictures (MV
    Align), their genres (accuracy). FAD belongs to a set and is not here.
    """
    others = mv_align.derangements(len(draws[0]), shuffles)
    real = ref.real.logits
    chance = float(np.mean([kl(d.logits, real[o]).mean() for d in draws for o in others]))
    out = {"KL": Scores(np.mean([kl(d.logits, real) for d in draws], axis=0), "down", chance)}
    for fps, peaks in ref.video.items():
        found = [mv_align.score(d.onsets, peaks, fps, profile.eval.mv_align_version, shuffles) for d in draws]
        values, empty = np.mean([s.per_clip for s in found], axis=0), max(s.both_empty for s in found)
        chance = float(np.mean([s.chance for s in found]))
        note = f"Lift over chance {np.nanmean(values) - chance:+.3f}."
        note += f" {empty} clips without any peak left out." if empty else ""
        out[found[0].name] = Scores(values, "up", chance, note)
    if ref.genres is not None:
        hits = np.mean([d.logits.argmax(1) == ref.genres for d in draws], axis=0)
        chance = float(np.mean([d.logits.argmax(1) == ref.genres[o] for d in draws for o in others]))
        out["Tagger accuracy"] = Scores(hits, "up", chance)
    out["Onsets per clip"] = Scores(np.mean([[len(o) for o in d.onsets] for d in draws], axis=0), "none")
    return out


def per_clip(draws: Sequence[Analysis], ref: Reference, profile: Profile) -> dict[str, np.ndarray]:
    """Scores of every clip [N] by metric, as `scores`, whose means are the values of `rows`."""
    return {name: s.values for name, s in scores(draws, ref, profile, 1).items()}


def rows(
    system: str, dataset: str, draws: Sequence[Analysis], ref: Reference, profile: Profile, note: str = ""
) -> list[Row]:
    """All metrics of one system on one dataset, each with its 95% bootstrap interval over clips.

    Chance is that of `scores`: what does not beat it was not made for its own video.

    `draws` are analyses of the same clips, one per sampling seed; a clip's score is its mean over them, and
    FAD, which belongs to a set, is the mean of the draws' own FADs at N clips each.
    """
    b, status = profile.eval.bootstrap, profile.status
    n, count = len(draws[0]), len(draws)
    out: list[Row] = []

    def row(metric, direction, value, ci=None, chance=None, more="") -> None:
        interval = None
        if ci is not None and np.isfinite(ci).all():
            interval = (min(float(x) for x in ci), max(float(x) for x in ci))
        chance = None if chance is None else float(chance)
        text = " ".join(x for x in (note, more) if x)
        out.append(
            Row(system, dataset, metric, direction, float(value), interval, n, count, chance, None, status, text)
        )

    for name, what, other in (("codec", "codec-reconstructed", ref.codec), ("real", "real", ref.real)):
        if other is None:
            continue
        more = f"Mini embedder, {what} reference, N = {n}."
        values = [fad_metric.fad_from_embeddings(d.embeddings, other.embeddings) for d in draws]
        if max(values) < SAME_SET:
            row(f"FAD ({name})", "down", 0.0, more=f"{more} The same set as the reference, so 0 by definition.")
            continue
        cis = [fad_metric.bootstrap_fad(d.embeddings, other.embeddings, n=min(b, FAD_RESAMPLES)) for d in draws]
        row(f"FAD ({name})", "down", np.mean(values), np.mean(cis, axis=0), more=more)
    for name, s in scores(draws, ref, profile).items():
        itself = name == "KL" and all(d.logits is ref.real.logits for d in draws)
        ci = None if itself else intervals.mean_ci(s.values, n=b)
        row(name, s.direction, np.nanmean(s.values), ci, s.chance, s.note)
    return out
