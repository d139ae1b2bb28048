"""Two kinds of frame features beside each other on the same videos: what the threshold of one is on the scale of the
other. The paper's 0.7 is meant for its own features, which are not named; the cheap embedding and CLIP differ in scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmas.dataset.frames import FrameEmbedder, sample_frames, similarity
from vmas.errors import DataError
from vmas.metrics.similarity import THRESHOLD


@dataclass(frozen=True)
class Calibration:
    """`first`, `second` float [N]: frame similarity by either; `rank`: Spearman's correlation of the two, NaN where one
    is constant; `matched`: the threshold of the second that keeps as many videos as `threshold` of the first;
    `agreement`: share of videos that the two then decide alike, `unmatched`: with one threshold for both."""

    first: np.ndarray
    second: np.ndarray
    threshold: float
    rank: float
    matched: float
    agreement: float
    unmatched: float


def calibrate(videos: Sequence, a: FrameEmbedder, b: FrameEmbedder, threshold: float = THRESHOLD) -> Calibration:
    """`b` against `a` on the files `videos` (paths). Raises DataError for fewer than two, MediaError."""
    first, second = (np.array([similarity(sample_frames(path, e.size), e) for path in videos]) for e in (a, b))
    return compare(first, second, threshold)


def compare(first: np.ndarray, second: np.ndarray, threshold: float = THRESHOLD) -> Calibration:
    """Of frame similarities float [N] of the same videos."""
    from scipy.stats import spearmanr

    if len(first) < 2 or len(first) != len(second):
        raise DataError(f"a calibration needs two videos or more, got {len(first)} and {len(second)} similarities")
    varied = min(np.ptp(first), np.ptp(second)) > 0
    rank = float(spearmanr(first, second).statistic) if varied else float("nan")
    kept = int((first < threshold).sum())
    ordered = np.sort(second)
    # between the last one kept and the first one left out
    edges = np.concatenate([[ordered[0] - 1e-6], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1e-6]])
    matched = float(edges[kept])
    alike = [float(((first < threshold) == (second < t)).mean()) for t in (matched, threshold)]
    return Calibration(first, second, threshold, rank, matched, *alike)
