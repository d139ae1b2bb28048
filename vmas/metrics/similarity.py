"""Intra-video frame similarity, the data filter of section 3: how much a video stays the same picture.

Mean cosine over all pairs of frames; a video is kept when it is below 0.7. The paper names neither
the features (CLIP image embeddings are likely) nor the frame rate (this project: 1 fps).
"""

import numpy as np

from vmas.errors import DataError

THRESHOLD = 0.7


def frame_similarity(features: np.ndarray) -> float:
    """Mean cosine over the pairs i < j of frame features [T,D], in [-1/(T-1), 1].

    Closed form (‖Σf‖² - T) / (T(T-1)) of unit vectors f: linear in T where the pairs are quadratic.
    Raises DataError for fewer than two frames, or zero or non-finite features.
    """
    f = np.asarray(features, np.float64)
    if f.ndim != 2 or len(f) < 2:
        raise DataError(f"frame similarity needs features [T,D] of at least 2 frames, got {list(f.shape)}")
    norm = np.linalg.norm(f, axis=1, keepdims=True)
    if not np.isfinite(f).all() or (norm == 0).any():
        raise DataError("frame features hold zero, NaN or infinite rows")
    total = (f / norm).sum(axis=0)
    n = len(f)
    return float((total @ total - n) / (n * (n - 1)))


def keep(features: np.ndarray, threshold: float = THRESHOLD) -> bool:
    """Whether a video passes the filter: its frame similarity is below `threshold`."""
    return frame_similarity(features) < threshold
