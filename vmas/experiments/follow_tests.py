"""The five tests of `follow`, each on a model and the clips of one split.

Every test compares the same clips under two conditions and draws the same random numbers for a clip in both, so
that its intervals are those of paired differences. `follow` names the tests and reads their answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmas.config import Profile
from vmas.errors import DataError
from vmas.experiments import evaluate, follow_stimuli, likelihood
from vmas.experiments.evaluate import Analysis, Evaluator, Reference
from vmas.metrics import intervals, mv_align
from vmas.metrics.intervals import MeanCI
from vmas.records import Row

SHIFTS = range(-8, 9)  # frames
FAR = 3  # from so many frames on a shift counts as a wrong time: a match reaches one frame
ROW_SHIFTS = range(-4, 5)  # rows of X_v, two frames each
SPEEDS = (0.75, 0.5)
PARTNER_SEED = 70  # which other videos are shown

SWAP, SHIFT, CUT, SLOW, STILL = "swapped video", "shifted video", "cut video", "slowed video", "frozen video"
OURS, REAL, CODEC = "VMAs", "Real music", "Real music, through the codec"
OWN, SAME, OTHER, NONE = (
    "VMAs, the clip's own video", "VMAs, another video of its genre", "VMAs, a video of another genre",
    "VMAs, no video",
)  # fmt: skip
JOINED, FIRST, SECOND, TAIL = (
    "VMAs, cut from the first to the second", "VMAs, the first video uncut", "VMAs, the second video uncut",
    "Real music of the second video",
)  # fmt: skip
FROZEN = "VMAs, the first picture only"
EXTRA, NLL = "extra NLL", "NLL"
AT, LOST, BEST = "at the right time", "lost by a shift of 3 frames or more", "shift of the maximum, frames"
ODDS, MOVED, TAGGED = "log-odds of the second genre", "log-odds moved by the cut", "tagged as the second genre"
MORE = "after more than before"
RATE, TEMPO, FOLLOWED = "onsets per second", "tempo, BPM", "share of the slow-down followed"
PEAKS = "motion peaks per second"
STRETCHED = "The real music, slowed as much as the video."
ITSELF = f"{OURS} slowed itself"  # the music for the video at speed 1, played as slowly as the other video
HEARD = "The music for the video at its own speed, slowed as much: what the measure gives to this music if it follows."
OVER, BY_FREEZING, ONSETS = "over chance", "lost by freezing", "Onsets per clip"


def windows(seconds: float) -> dict[str, tuple[float, float]]:
    """Name → (from, to) in seconds: before anything is heard, while the piece is found, and afterwards."""
    return {
        "whole clip": (0.0, seconds),
        "first 0.2 s": (0.0, 0.2),
        "first second": (0.0, 1.0),
        "after the first second": (1.0, seconds),
    }


@dataclass(frozen=True)
class Found:
    """What a test gives: its rows, and what a figure draws of it."""

    rows: list[Row]
    extra: dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A model and N clips. `frames` uint8 [N,T,H,W,3], `tokens` int [N,K,t_a], `genres` int [N], `waves` int16
    [N,samples], `files` the clips themselves; `reference` and `coded` as in `references.TestSet`.

    `split` names the clips in the rows; `seed` is the sampling seed; `done` is told of every clip that is through.
    """

    model: Any
    profile: Profile
    judge: Evaluator
    split: str
    frames: np.ndarray
    tokens: np.ndarray
    genres: np.ndarray
    waves: np.ndarray
    files: Sequence[Path]
    reference: Reference
    coded: Analysis
    seed: int = 0
    done: Callable[[int], Any] = lambda _: None

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def metric(self) -> str:
        return f"MV Align ({self.profile.eval.mv_align_version}, {self.profile.clip.fps:g} fps)"

    @property
    def peaks(self) -> list[np.ndarray]:
        """Times of the video peaks of each clip, in seconds."""
        return self.reference.video[self.profile.clip.fps]

    def music(self, show: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Music int16 [N,samples] for the frames that `show` gives for rows [n]; every clip has its random numbers."""
        out = np.empty((len(self), self.profile.clip.num_samples), np.int16)
        size = self.profile.sampling.batch_size
        for i in range(0, len(self), size):
            rows = np.arange(i, min(i + size, len(self)))
            made = self.model.generate_waveform(show(rows), seed=self.seed, first=i)
            out[rows] = np.round(np.clip(made, -1, 1) * 32767)
            self.done(len(rows))
        return out

    def row(self, part: str, system: str, metric: str, ci: MeanCI, direction="none", chance=None, note="") -> list[Row]:
        """One row, or none where no clip has a value."""
        if not np.isfinite(ci.mean):
            return []
        interval = (ci.lo, ci.hi) if np.isfinite([ci.lo, ci.hi]).all() else None
        more = f"{ci.left_out} clips without a value left out." if ci.left_out else ""
        text = " ".join(x for x in (note, more) if x)
        chance = float(chance) if chance is not None and np.isfinite(chance) else None
        dataset, status = f"{self.split}: {part}", self.profile.status
        return [Row(system, dataset, metric, direction, ci.mean, interval, ci.n, 1, chance, None, status, text)]

    def mean(self, values: np.ndarray) -> MeanCI:
        return intervals.summarise(values, n=self.profile.eval.bootstrap)

    def gap(self, a: np.ndarray, b: np.ndarray) -> MeanCI:
        return intervals.paired_difference(a, b, n=self.profile.eval.bootstrap)


def point(ci: MeanCI, **about) -> dict[str, Any]:
    """A mean and its interval as a figure's data; None where there is none (JSON knows no NaN)."""
    found = {"mean": ci.mean, "lo": ci.lo, "hi": ci.hi}
    return {**about, **{k: v if np.isfinite(v) else None for k, v in found.items()}}


def token_nats(bench: Bench, X_v, conditioned: bool = True) -> np.ndarray:
    """-log p of the clips' own music, float64 [N,t_a] (sum over codebooks), given X_v [N,T_v,d] or no video."""
    size = bench.profile.sampling.batch_size
    return likelihood.token_nats(bench.model, bench.tokens, X_v, conditioned, size, bench.done)


def encoded(bench: Bench):
    """X_v [N,T_v,d] of every clip's video."""
    return likelihood.encoded(bench.model, bench.frames, bench.profile.sampling.batch_size)


def swap(bench: Bench, X_v) -> tuple[Found, np.ndarray]:
    """How many nats a clip's own music costs more when the decoder sees another video, or none.

    Returns the rows, and the nats with the own video, float64 [N,t_a].
    """
    rate, own = bench.profile.codec.frame_rate, token_nats(bench, X_v)
    spans = {n: slice(round(a * rate), round(b * rate)) for n, (a, b) in windows(bench.profile.clip.seconds).items()}
    rows, drawn = [], []
    for name, span in spans.items():
        rows += bench.row(SWAP, OWN, f"{NLL}, {name}", bench.mean(own[:, span].sum(1)))
    for system, same in ((SAME, True), (OTHER, False), (NONE, None)):
        if same is None:
            nats = token_nats(bench, X_v, conditioned=False)
        else:
            partner = follow_stimuli.other_video(bench.genres, same, PARTNER_SEED)
            nats = token_nats(bench, X_v[partner])
            nats[partner < 0] = np.nan
        for name, span in spans.items():
            ci = bench.gap(nats[:, span].sum(1), own[:, span].sum(1))
            rows += bench.row(SWAP, system, f"{EXTRA}, {name}", ci, "up")
            drawn.append(point(ci, system=system, window=name))
    return Found(rows, {"nats": drawn}), own


def best_shift(scores: np.ndarray, shifts: range, n: int = 2000, seed: int = 0) -> MeanCI:
    """The shift at which the mean of scores [shifts,N] is largest, with the interval of it over resampled clips."""
    valid = ~np.isnan(scores)
    times = intervals.resamples(scores.shape[1], n, seed)
    count = times @ valid.T
    curves = np.divide(times @ np.where(valid, scores, 0).T, count, out=np.full(count.shape, -np.inf), where=count > 0)
    drawn = np.asarray(shifts)[curves.argmax(1)]
    lo, hi = np.quantile(drawn, [0.025, 0.975], method="closest_observation")
    mean = np.nanmean(scores, axis=1)
    return MeanCI(float(shifts[int(mean.argmax())]), float(lo), float(hi), scores.shape[1], 0)


def shift(bench: Bench, X_v, own_nats: np.ndarray, onsets: list[np.ndarray]) -> Found:
    """MV Align against peaks at a wrong time, for `onsets` of the generated music; NLL with X_v at a wrong time."""
    import torch

    e, clip, b = bench.profile.eval, bench.profile.clip, bench.profile.eval.bootstrap
    far = [i for i, k in enumerate(SHIFTS) if abs(k) >= FAR]
    rows, curves = [], {}
    for system, heard in ((OURS, onsets), (REAL, bench.reference.real.onsets), (CODEC, bench.coded.onsets)):
        scores = follow_stimuli.shift_scores(
            heard, bench.peaks, SHIFTS, clip.fps, clip.num_frames, e.mv_align_version
        )  # fmt: skip
        at, away = scores[SHIFTS.index(0)], scores[far].mean(0)
        wrong = f"chance: the same clips, their own peaks {FAR} frames off or more."
        rows += bench.row(SHIFT, system, f"{bench.metric} {AT}", bench.mean(at), "up", np.nanmean(away), wrong)
        rows += bench.row(SHIFT, system, f"{bench.metric} {LOST}", bench.gap(at, away), "up")
        rows += bench.row(SHIFT, system, BEST, best_shift(scores, SHIFTS, b))
        cis = [bench.mean(s) for s in scores]
        curves[system] = [point(c, shift=k) for k, c in zip(SHIFTS, cis, strict=True)]
    nats: list[np.ndarray] = []
    whole = own_nats.sum(1)
    for k in ROW_SHIFTS:
        nats.append(token_nats(bench, torch.roll(X_v, k, dims=1)).sum(1) - whole if k else np.zeros(len(bench)))
    for name, chosen in (("one row off", [1]), ("two to four rows off", [2, 3, 4])):
        mean = np.mean([n for k, n in zip(ROW_SHIFTS, nats, strict=True) if abs(k) in chosen], axis=0)
        rows += bench.row(SHIFT, OURS, f"{EXTRA}, X_v {name}", bench.mean(mean), "up")
    cis = [bench.mean(n) for n in nats]
    by_row = [point(c, shift=k) for k, c in zip(ROW_SHIFTS, cis, strict=True)]
    return Found(rows, {"curves": curves, "nats": by_row})


def tag_logs(judge: Evaluator, waves: np.ndarray) -> np.ndarray:
    """Log-probabilities float64 [N,L] that the tagger gives the labels for waveforms int16 [N,samples]."""
    import torch

    out = []
    for i in range(0, len(waves), evaluate.CHUNK):
        part = torch.from_numpy(np.asarray(waves[i : i + evaluate.CHUNK], np.float32) / 32767.0)
        with torch.inference_mode():
            logits = judge.tagger.classify(judge.tagger.embed(part).to(judge.tagger.mean.device))
        out.append(torch.log_softmax(logits.double(), -1).cpu().numpy())
    return np.concatenate(out)


def cut(bench: Bench, own_music: np.ndarray) -> Found:
    """Half of one video, then half of one of another genre: does the genre of the music change with the picture?

    Judged by the tagger on the music before and after the cut; the controls are the same two videos uncut. A player
    who hears of the second genre from the start moves the odds before the cut too, so what counts is how much more
    they move after it.
    """
    clip = bench.profile.clip
    partner = follow_stimuli.other_video(bench.genres, False, PARTNER_SEED)
    if (partner < 0).any():
        raise DataError("the cut test needs clips of two genres at least")
    at = clip.num_frames // 2
    sample = round(at / clip.fps * clip.sample_rate)
    joined = bench.music(lambda i: follow_stimuli.cut(bench.frames[i], bench.frames[partner[i]], at))
    rows, drawn = [], []
    second, clips = bench.genres[partner], np.arange(len(bench))
    moved = {}
    for when, span in (("before", slice(0, sample)), ("after", slice(sample, None))):
        odds = {}
        for system, waves, order in (
            (JOINED, joined, clips),
            (FIRST, own_music, clips),
            (SECOND, own_music, partner),
            (TAIL, bench.waves, partner),
        ):
            logs = tag_logs(bench.judge, waves[:, span])[order]
            odds[system] = logs[clips, second] - logs[clips, bench.genres]
            ci = bench.mean(odds[system])
            rows += bench.row(CUT, system, f"{ODDS}, {when}", ci)
            drawn.append(point(ci, system=system, when=when))
            if when == "after":
                rows += bench.row(CUT, system, f"{TAGGED}, {when}", bench.mean((logs.argmax(1) == second) * 1.0))
        moved[when] = odds[JOINED] - odds[FIRST]
        rows += bench.row(CUT, JOINED, f"{MOVED}, {when}", bench.mean(moved[when]), "up")
    rows += bench.row(CUT, JOINED, f"{MOVED}, {MORE}", bench.gap(moved["after"], moved["before"]), "up")
    return Found(rows, {"odds": drawn, "at_s": at / clip.fps})


def at_speed(speed: float) -> str:
    """How a speed is called in the rows."""
    return {1.0: "speed 1", 0.75: "speed 3/4", 0.5: "speed 1/2"}.get(speed, f"speed {speed:g}")


def slow(bench: Bench, own_music: np.ndarray, onsets: list[np.ndarray]) -> Found:
    """Does the music slow down with the video? 1 would be as much as the video, 0 not at all.

    `onsets` are those of `own_music`, the music for the videos at speed 1.
    """
    clip, pool, b = bench.profile.clip, bench.judge.pool, bench.profile.eval.bootstrap
    seconds, real = clip.seconds, bench.reference.real.onsets
    normal = {
        RATE: np.array([len(o) / seconds for o in onsets]),
        TEMPO: follow_stimuli.tempi(own_music, clip.sample_rate, pool),
    }
    true = follow_stimuli.tempi(bench.waves, clip.sample_rate, pool)
    notes = {REAL: f"{STRETCHED} What the measure gives to one who follows wholly.", ITSELF: HEARD}
    rows, drawn = [], []
    for speed in (1.0, *SPEEDS):
        if speed == 1:
            seen, heard = bench.peaks, normal
        else:
            frames, seen = follow_stimuli.slow(list(bench.files), bench.profile, speed, pool)
            music = bench.music(lambda i, frames=frames: frames[i])
            counts = [len(o) for o in bench.judge.analyse(music).onsets]
            heard = {
                RATE: np.array(counts) / seconds,
                TEMPO: follow_stimuli.tempi(music, clip.sample_rate, pool),
            }
        played = [(o < speed * seconds).sum() / seconds for o in real]
        for system, metric, values in (
            (f"{OURS}, {at_speed(speed)}", RATE, heard[RATE]),
            (f"{OURS}, {at_speed(speed)}", TEMPO, heard[TEMPO]),
            (f"{REAL}, {at_speed(speed)}", RATE, np.array(played)),
            (f"Picture, {at_speed(speed)}", PEAKS, np.array([len(p) / seconds for p in seen])),
        ):
            ci = bench.mean(values)
            note = "The real music's onsets, stretched with the video." if system.startswith(REAL) else ""
            rows += bench.row(SLOW, system, metric, ci, note=note)
            drawn.append(point(ci, system=system.split(", ")[0], speed=speed, metric=metric))
        if speed == 1:
            rows += bench.row(SLOW, f"{REAL}, {at_speed(1.0)}", TEMPO, bench.mean(true))
            continue
        ceiling, itself = (
            follow_stimuli.tempi(follow_stimuli.stretched(waves, speed, clip.sample_rate), clip.sample_rate, pool)
            for waves in (bench.waves, own_music)
        )
        rows += bench.row(SLOW, f"{REAL}, {at_speed(speed)}", TEMPO, bench.mean(ceiling), note=STRETCHED)
        for system, metric, slower, before in (
            (OURS, RATE, heard[RATE], normal[RATE]),
            (OURS, TEMPO, heard[TEMPO], normal[TEMPO]),
            (REAL, TEMPO, ceiling, true),
            (ITSELF, TEMPO, itself, normal[TEMPO]),
        ):
            r = intervals.ratio(slower, before, n=b)
            value, lo, hi = ((1 - x) / (1 - speed) for x in (r.mean, r.hi, r.lo))
            share = MeanCI(value, lo, hi, r.n, r.left_out)
            name = f"{FOLLOWED}, {'onsets' if metric == RATE else 'tempo'}"
            rows += bench.row(SLOW, f"{system}, {at_speed(speed)}", name, share, "up", note=notes.get(system, ""))
    return Found(rows, {"rates": drawn})


def still(bench: Bench, onsets: list[np.ndarray]) -> Found:
    """The first picture for the whole clip: what is left of MV Align against the video's own peaks is chance."""
    e, fps = bench.profile.eval, bench.profile.clip.fps
    music = bench.music(lambda i: follow_stimuli.freeze(bench.frames[i]))
    frozen = bench.judge.analyse(music).onsets
    rows, drawn, scores, counts = [], [], {}, {}
    for system, heard in ((OWN, onsets), (FROZEN, frozen)):
        s = mv_align.score(heard, bench.peaks, fps, e.mv_align_version, evaluate.SHUFFLES)
        scores[system], counts[system] = s.per_clip, np.array([len(o) for o in heard], float)
        ci = bench.mean(s.per_clip)
        rows += bench.row(STILL, system, bench.metric, ci, "up", s.chance)
        rows += bench.row(STILL, system, f"{bench.metric} {OVER}", bench.gap(s.per_clip, s.chance_per_clip), "up")
        rows += bench.row(STILL, system, ONSETS, bench.mean(counts[system]))
        drawn.append(point(ci, system=system, chance=s.chance if np.isfinite(s.chance) else None))
    rows += bench.row(STILL, OWN, f"{bench.metric} {BY_FREEZING}", bench.gap(scores[OWN], scores[FROZEN]), "up")
    rows += bench.row(STILL, OWN, f"{ONSETS} {BY_FREEZING}", bench.gap(counts[OWN], counts[FROZEN]))
    return Found(rows, {"align": drawn})
