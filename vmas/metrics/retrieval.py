"""Video-to-music retrieval (Table 7): is a video's own music among the K most similar?

Similarity is the cosine. A tie counts against us, so that a model that gives everything one embedding
scores 0 and not by luck. R@K depends on the pool: it is never given without its size and chance.
"""

from dataclasses import dataclass

import numpy as np

from vmas.errors import DataError

TIE = 1e-9  # cosines from embeddings are equal up to this; rounding must not break ties


@dataclass(frozen=True)
class Retrieval:
    """Recall at each K with what it must be read beside; `ranks` int [N], 1 = first."""

    recall: dict[int, float]
    chance: dict[int, float]
    pool: int
    median_rank: float
    ranks: np.ndarray


def ranks(similarity: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """Rank of the true candidate, int64 [N], from `similarity` [N queries, M ≥ N candidates], truth on the diagonal.

    1 + the number of other candidates that are at least as similar (within `tolerance`).
    Raises DataError for another shape or non-finite values.
    """
    s = np.asarray(similarity, np.float64)
    if s.ndim != 2 or s.shape[0] == 0 or s.shape[1] < s.shape[0]:
        raise DataError(f"similarity must be [queries,candidates] with a candidate for each query, got {list(s.shape)}")
    if not np.isfinite(s).all():
        raise DataError("similarity holds NaN or infinite values")
    return (s >= np.diag(s)[:, None] - tolerance).sum(axis=1)  # the true one counts itself: 1 + others


def cosine_similarity(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosines float64 [N,M] of rows [N,D] and [M,D]. Raises DataError for zero or non-finite rows."""
    return _unit(queries, "query") @ _unit(candidates, "candidate").T


def recall_at(similarity: np.ndarray, ks: tuple[int, ...] = (1, 5, 10), tolerance: float = 0.0) -> Retrieval:
    """R@K, chance K/pool and median rank; arguments as in `ranks`."""
    found = ranks(similarity, tolerance)
    pool = np.shape(similarity)[1]
    return Retrieval(
        recall={k: float((found <= k).mean()) for k in ks},
        chance={k: min(1.0, k / pool) for k in ks},
        pool=pool,
        median_rank=float(np.median(found)),
        ranks=found,
    )


def retrieve(videos: np.ndarray, music: np.ndarray, ks: tuple[int, ...] = (1, 5, 10)) -> Retrieval:
    """Retrieval from embeddings: `videos` [N,D] against `music` [M,D], row i of both belonging together."""
    return recall_at(cosine_similarity(videos, music), ks, TIE)


def _unit(x: np.ndarray, what: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise DataError(f"{what} embeddings must be finite [N,D], got shape {list(x.shape)}")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if (norm == 0).any():
        raise DataError(f"a {what} embedding is zero, its cosine is not defined")
    return x / norm
