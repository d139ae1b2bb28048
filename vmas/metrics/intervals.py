"""Confidence intervals of means by the bootstrap (scipy.stats), the same for every table.

NaN marks a clip without a value (MV Align with no peak on either side); it is left out and counted.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from vmas.errors import DataError, UsageError

METHODS = {"percentile": "percentile", "bca": "BCa"}


@dataclass(frozen=True)
class MeanCI:
    """Mean with its interval [lo, hi], over `n` values; `left_out` values were NaN."""

    mean: float
    lo: float
    hi: float
    n: int
    left_out: int


def mean_ci(
    values: np.ndarray, seed: int = 0, n: int = 2000, confidence: float = 0.95, method: str = "percentile"
) -> tuple[float, float]:
    """Bootstrap interval (lo, hi) of the mean of `values` [N]; `n` resamples, deterministic by `seed`.

    NaN values are left out. Equal values give (c, c). Fewer than two values give (nan, nan): one value
    says nothing about its own spread. `method` is "percentile" or "bca". Raises DataError for infinite values.
    """
    ci = summarise(values, seed, n, confidence, method)
    return ci.lo, ci.hi


def summarise(
    values: np.ndarray, seed: int = 0, n: int = 2000, confidence: float = 0.95, method: str = "percentile"
) -> MeanCI:
    """As `mean_ci`, with the mean and the counts."""
    if method not in METHODS:
        raise UsageError(f"interval method must be one of {', '.join(METHODS)}, got {method!r}")
    x, left_out = _kept(np.asarray(values, np.float64).ravel())
    mean = float(x.mean()) if x.size else float("nan")
    if x.size < 2:
        return MeanCI(mean, float("nan"), float("nan"), x.size, left_out)
    if np.ptp(x) == 0:
        return MeanCI(float(x[0]), float(x[0]), float(x[0]), x.size, left_out)
    ci = stats.bootstrap(
        (x,), np.mean, n_resamples=n, batch=256, confidence_level=confidence, method=METHODS[method],
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return MeanCI(mean, float(ci.low), float(ci.high), x.size, left_out)


def paired_difference(
    a: np.ndarray, b: np.ndarray, seed: int = 0, n: int = 2000, confidence: float = 0.95, method: str = "percentile"
) -> MeanCI:
    """Mean of a - b over the same clips [N] and its interval; a pair with a NaN on either side is left out."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise DataError(
            f"paired differences need the same clips on both sides, got {list(a.shape)} and {list(b.shape)}"
        )
    return summarise(a - b, seed, n, confidence, method)


def ratio(a: np.ndarray, b: np.ndarray, seed: int = 0, n: int = 2000, confidence: float = 0.95) -> MeanCI:
    """mean(a) / mean(b) over the same clips [N], and its bootstrap interval (clips drawn with both their values).

    A pair with a NaN on either side is left out. All NaN where mean(b) is 0; resamples whose mean(b) is 0 are left out.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(f"a ratio needs the same clips on both sides, got {list(a.shape)} and {list(b.shape)}")
    ok = ~(np.isnan(a) | np.isnan(b))
    a, b, left_out = a[ok], b[ok], int((~ok).sum())
    if not a.size or b.sum() == 0:
        return MeanCI(float("nan"), float("nan"), float("nan"), a.size, left_out)
    if a.size < 2:
        return MeanCI(float(a[0] / b[0]), float("nan"), float("nan"), 1, left_out)
    times = resamples(a.size, n, seed)
    above, below = times @ a, times @ b
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(above[below != 0] / below[below != 0], [tail, 1 - tail])
    return MeanCI(float(a.sum() / b.sum()), float(lo), float(hi), a.size, left_out)


def resamples(size: int, n: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each of `size` clips is drawn in each of `n` bootstrap resamples, float64 [n,size], read only."""
    return _resamples(size, n, seed)[0]


@lru_cache(maxsize=8)
def _resamples(size: int, n: int, seed: int) -> tuple[np.ndarray, dict]:
    """The resamples, and the generator's state after them: a table asks for the same ones some hundred times."""
    rng = np.random.default_rng(seed)
    times = rng.multinomial(size, np.full(size, 1 / size), size=n).astype(np.float64)
    times.flags.writeable = False
    return times, dict(rng.bit_generator.state)


def stratified(values: np.ndarray, seed: int = 0, n: int = 2000, confidence: float = 0.95) -> MeanCI:
    """Mean of `values` [seeds, clips] with an interval that counts both as drawn by chance.

    Every resample draws one set of clips for all seeds (the seeds were evaluated on the same clips, so they are
    crossed and not nested) and takes the mean of the seeds' own means, so a seed with more NaN weighs no less. To
    it is added how far the mean over the seeds may lie from that over all seeds there could be: Student's t times
    the seeds' standard error. Drawing a few seeds again instead gives intervals that are too narrow (two seeds:
    83% of them hold the truth where 95% are asked for). With one seed only the clips vary.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"stratified intervals need values [seeds,clips], got {list(x.shape)}")
    _, left_out = _kept(x.ravel())
    seeds, clips = x.shape
    valid = ~np.isnan(x)
    if not valid.any(axis=1).all():
        raise DataError("a seed has no valid clip at all")
    mean = float(np.mean([row[ok].mean() for row, ok in zip(x, valid, strict=True)]))
    if clips < 2:
        return MeanCI(mean, float("nan"), float("nan"), x.size - left_out, left_out)
    times, state = _resamples(clips, n, seed)
    total, count = times @ np.where(valid, x, 0).T, times @ valid.T.astype(np.float64)
    per_seed = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    ok = ~np.isnan(per_seed).any(axis=1)
    drawn = per_seed[ok].mean(axis=1)
    if seeds > 1:
        means = np.array([row[good].mean() for row, good in zip(x, valid, strict=True)])
        rng = np.random.default_rng()
        rng.bit_generator.state = state
        # t's quantiles in random order: drawn freely, the wide tails of two seeds would make the ends a lottery
        t = stats.t.ppf((rng.permutation(drawn.size) + 0.5) / drawn.size, seeds - 1)
        drawn = drawn + means.std(ddof=1) / np.sqrt(seeds) * t
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(drawn, [tail, 1 - tail])
    return MeanCI(mean, float(lo), float(hi), x.size - left_out, left_out)


def over_seeds(values: np.ndarray, confidence: float = 0.95) -> MeanCI:
    """Mean of one number a training seed [S] with Student's t interval; (nan, nan) for one seed."""
    x, left_out = _kept(np.asarray(values, np.float64).ravel())
    mean = float(x.mean()) if x.size else float("nan")
    if x.size < 2:
        return MeanCI(mean, float("nan"), float("nan"), x.size, left_out)
    half = stats.t.ppf((1 + confidence) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return MeanCI(mean, float(mean - half), float(mean + half), x.size, left_out)


def seeds_and_clips(values: np.ndarray, within: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Interval (lo, hi) of the mean over training seeds of a score that belongs to a whole set, as FAD does.

    `values` [S] of the seeds, `within` [S,2] their own intervals over clips. Student's t over the seeds, and the mean
    of the clips' intervals, since all seeds were judged on the same clips: taken as independent, the distances from the
    mean are added in quadrature. What clips do to each seed is thereby counted twice, which widens the interval; seeds
    that share sampling seeds narrow it. One seed has its own interval. NaN intervals give (nan, nan). Raises DataError.
    """
    x, ci = np.asarray(values, np.float64), np.asarray(within, np.float64)
    if x.ndim != 1 or not x.size or ci.shape != (x.size, 2):
        raise DataError(f"seeds' scores and their intervals do not fit: {list(x.shape)} and {list(ci.shape)}")
    if not np.isfinite(x).all():
        raise DataError("a seed's score is not a number")
    if x.size == 1:
        return float(ci[0, 0]), float(ci[0, 1])
    seeds = over_seeds(x, confidence)
    half, (below, above) = seeds.hi - seeds.mean, np.abs(ci - x[:, None]).mean(axis=0)
    return float(seeds.mean - np.hypot(below, half)), float(seeds.mean + np.hypot(above, half))


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share; `successes` may be a half (ties counted half). (nan, nan) for n = 0."""
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} is not a share")
    if n == 0:
        return float("nan"), float("nan")
    if float(successes).is_integer():
        ci = stats.binomtest(int(successes), n).proportion_ci(confidence, method="wilson")
        return float(ci.low), float(ci.high)
    z, p = stats.norm.ppf((1 + confidence) / 2), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(centre - half), float(centre + half)


def _kept(x: np.ndarray) -> tuple[np.ndarray, int]:
    if np.isinf(x).any():
        raise DataError("a mean over infinite values has no interval")
    kept = x[~np.isnan(x)]
    return kept, x.size - kept.size
