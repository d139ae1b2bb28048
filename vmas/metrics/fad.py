"""Fréchet Audio Distance (section 5.2; Kilgour et al. 2019) between two sets of embeddings.

FAD = |μ1-μ2|² + tr Σ1 + tr Σ2 - 2 tr (Σ1Σ2)^½, float64, covariances with ddof=1. Lower is better.
The finite sample adds a large positive bias (N(0,I) of 128 dimensions against itself gives 9 at
N = 500), so a FAD means something only beside its N; `fad_inf` extrapolates it away. Which embedding
was used belongs to the metric's name.
"""

from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits  # comes with librosa's scikit-learn

from vmas.errors import DataError

# The matrices are small: on a busy machine BLAS threads that wait for each other cost up to twenty times the work.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")

EIG_CUT = 1e-12  # relative to the largest eigenvalue; below is rounding


@dataclass
class GaussianStats:
    """Count n, mean μ [D] and scatter Σ(x-μ)(x-μ)ᵀ [D,D] of embeddings, float64, grown batch by batch.

    Batches and processes are joined by Chan's update; FADs of processes must never be averaged.
    """

    n: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def of(cls, embeddings: np.ndarray) -> "GaussianStats":
        """Statistics of embeddings [N,D]. Raises DataError as `add` does."""
        return cls().add(embeddings)

    def add(self, embeddings: np.ndarray) -> "GaussianStats":
        """Take in a batch [N,D] (or one row [D]) and return self. Raises DataError for NaN, inf or another D."""
        x = np.atleast_2d(np.asarray(embeddings, np.float64))
        if x.ndim != 2 or x.shape[1] == 0:
            raise DataError(f"embeddings must be [N,D], got {list(np.shape(embeddings))}")
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x).all(axis=1)).sum())
            raise DataError(f"{bad} of {len(x)} embeddings hold NaN or infinite values; FAD is not defined on them")
        if len(x) == 0:
            return self
        mean = x.mean(axis=0)
        centred = x - mean
        return self.merge(GaussianStats(len(x), mean, centred.T @ centred))

    def merge(self, other: "GaussianStats") -> "GaussianStats":
        """Take in the statistics of other rows (another process, say) and return self."""
        if other.n == 0:
            return self
        if self.n == 0:
            self.n, self.mean, self.scatter = other.n, other.mean.copy(), other.scatter.copy()
            return self
        _same_width(self, other)
        n = self.n + other.n
        step = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(step, step) * (self.n * other.n / n)
        self.mean = self.mean + step * (other.n / n)
        self.n = n
        return self

    @property
    def cov(self) -> np.ndarray:
        """Σ [D,D] with ddof=1. Raises DataError for fewer than two rows."""
        if self.n < 2:
            raise DataError(f"FAD needs at least 2 embeddings on each side, got {self.n}")
        return self.scatter / (self.n - 1)


def frechet(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Fréchet distance of two Gaussians, means [D] and covariances [D,D]; 0 or more."""
    step = np.asarray(mean1, np.float64) - mean2
    value = step @ step + np.trace(cov1) + np.trace(cov2) - 2 * _trace_sqrt(_sqrt(np.asarray(cov1, np.float64)), cov2)
    return max(0.0, float(value))  # equal Gaussians may round to -1e-14


@_one_thread
def fad(generated: GaussianStats, reference: GaussianStats) -> float:
    """FAD of two streamed sets. Raises DataError for fewer than 2 rows or differing D."""
    cov1, cov2 = generated.cov, reference.cov
    _same_width(generated, reference)
    return frechet(generated.mean, cov1, reference.mean, cov2)


@_one_thread
def fad_from_embeddings(generated: np.ndarray, reference: np.ndarray) -> float:
    """FAD of embeddings [N,D] and [M,D]; raises DataError (NaN, fewer than 2 rows, differing D)."""
    return fad(GaussianStats.of(generated), GaussianStats.of(reference))


@dataclass(frozen=True)
class FadInf:
    """FAD extrapolated to N = ∞: `value` the intercept, `slope` against 1/N, and the points of the fit."""

    value: float
    slope: float
    sizes: np.ndarray
    scores: np.ndarray


@_one_thread
def fad_inf(
    generated: np.ndarray,
    reference: np.ndarray | GaussianStats,
    points: int = 15,
    smallest: int | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> FadInf:
    """FAD-inf (Chong & Forsyth 2020; Gui et al. 2024): FAD is linear in 1/N, so fit subsets and take 1/N → 0.

    `generated` [N,D]; subset sizes run evenly from `smallest` (default N/4, at least 2) to N. Subsets are
    drawn WITHOUT replacement: with replacement the fit returns to the plain FAD. The value may be
    slightly negative; the reference's own finite-sample bias stays in it.
    """
    x = np.asarray(generated, np.float64)
    ref = reference if isinstance(reference, GaussianStats) else GaussianStats.of(reference)
    whole = GaussianStats.of(x)
    fad(whole, ref)  # the errors of a plain FAD
    low = max(2, len(x) // 4 if smallest is None else smallest)
    if points < 2 or low >= len(x):
        raise DataError(f"FAD-inf needs several subset sizes below N = {len(x)}, got {points} from {low} on")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(low, len(x), points).round().astype(int)
    root, ref_cov = _sqrt(ref.cov), ref.cov
    scores = np.empty(points)
    for i, size in enumerate(sizes):
        draws = []
        for _ in range(1 if size == len(x) else repeats):
            s = GaussianStats.of(x[rng.choice(len(x), size, replace=False)])
            step = s.mean - ref.mean
            draws.append(step @ step + np.trace(s.cov) + np.trace(ref_cov) - 2 * _trace_sqrt(root, s.cov))
        scores[i] = np.mean(draws)
    slope, value = np.polyfit(1 / sizes, scores, 1)
    return FadInf(float(value), float(slope), sizes, scores)


@_one_thread
def bootstrap_fad(
    emb_gen: np.ndarray,
    emb_ref: np.ndarray,
    n: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
    method: str = "centred",
) -> tuple[float, float]:
    """Interval (lo, hi) of FAD over generated clips, the reference held fixed.

    `emb_gen` is [N,D], one row a clip, or [N,P,D] with P rows a clip, or [rows,D] with `groups` [rows]
    naming each row's clip: whole clips are resampled, since rows of one clip are not independent.
    A resample repeats clips, which adds FAD's small-sample bias once more; its plain percentiles
    ("percentile") can lie wholly above the FAD itself. "centred" (default) takes out that shift, the
    mean of the resamples minus the FAD, so the interval speaks of the FAD at this N.
    """
    if method not in ("centred", "percentile"):
        raise DataError(f"bootstrap method must be 'centred' or 'percentile', got {method!r}")
    x = np.asarray(emb_gen, np.float64)
    if x.ndim == 3:
        groups = np.repeat(np.arange(x.shape[0]), x.shape[1])
        x = x.reshape(-1, x.shape[2])
    stats, ref = GaussianStats.of(x), GaussianStats.of(emb_ref)
    point = fad(stats, ref)
    clip = np.arange(len(x)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(clip) != len(x):
        raise DataError(f"{len(clip)} group labels do not fit {len(x)} embeddings")
    clips = int(clip.max()) + 1
    if clips < 2:
        raise DataError("an interval of FAD needs at least 2 clips")
    # The mean is near 0 in every resample, so the one-pass moments below are safe. tr (Σ1Σ2)^½ needs only the
    # covariance of rows mapped by Σ2^½, tr Σ1 only their squared lengths: one product and one eigvalsh a resample.
    centred = x - stats.mean
    ref_mean, ref_trace = ref.mean - stats.mean, np.trace(ref.cov)
    mapped, length = centred @ _sqrt(ref.cov), (centred**2).sum(axis=1)
    rng = np.random.default_rng(seed)
    scores = np.empty(n)
    for b in range(n):
        times = np.bincount(rng.integers(clips, size=clips), minlength=clips)[clip]
        rows = times > 0
        w, y = times[rows].astype(np.float64), mapped[rows]
        total = w.sum()
        mean, y_mean = w @ centred[rows] / total, w @ y / total
        trace = (w @ length[rows] - total * mean @ mean) / (total - 1)
        inner = ((y * w[:, None]).T @ y - total * np.outer(y_mean, y_mean)) / (total - 1)
        step = mean - ref_mean
        scores[b] = step @ step + trace + ref_trace - 2 * _sum_sqrt(inner)
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(scores, [tail, 1 - tail])
    shift = scores.mean() - point if method == "centred" else 0.0
    return max(0.0, float(lo - shift)), max(0.0, float(hi - shift))


def _sqrt(cov: np.ndarray) -> np.ndarray:
    """Symmetric root of a covariance through eigh; scipy.linalg.sqrtm is neither stable nor symmetric here."""
    w, V = np.linalg.eigh(cov)
    w = np.where(w > EIG_CUT * max(w[-1], 0.0), w, 0.0)
    return (V * np.sqrt(w)) @ V.T


def _trace_sqrt(root: np.ndarray, cov: np.ndarray) -> float:
    """tr (Σ1Σ2)^½ with `root` = Σ1^½: the eigenvalues of Σ1^½ Σ2 Σ1^½ are those of Σ1Σ2."""
    inner = root @ cov @ root
    return _sum_sqrt((inner + inner.T) / 2)


def _sum_sqrt(symmetric: np.ndarray) -> float:
    """Sum of the roots of the eigenvalues, those below rounding left out."""
    w = np.linalg.eigvalsh(symmetric)
    return float(np.sqrt(w[w > EIG_CUT * max(w[-1], 0.0)]).sum())


def _same_width(a: GaussianStats, b: GaussianStats) -> None:
    if a.mean.shape != b.mean.shape:
        raise DataError(f"embeddings differ in width: {a.mean.size} and {b.mean.size}; use one embedder for both sides")
