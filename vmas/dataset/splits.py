"""Videos held out for validation and testing: chosen by quality, and without a relative in any other split.

The paper "manually selected 1,120 and 1,086 videos with high-quality video-music correspondence" (section 3). Here
a score selects (`Options.quality`): how far the pictures move (1 - frame similarity), or `correspondence`, how much
better the motion meets this music than the same music shifted in time. Relatives are videos of one source or track,
and near-equal pictures or sound.

`dedupe.compare` finds relatives by equal pieces of their fingerprints, which is near linear and misses the pairs that
differ in every piece. For training that costs nothing; for a held-out video it would be a leak. So every held-out
video is compared with every other one in full (2,206 of 2.2M: some minutes), and what is found joins their groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmas.dataset import dedupe
from vmas.dataset.dedupe import NEAR_PICTURE, NEAR_SOUND, PICTURES, Known

QUALITIES = ("similarity", "correspondence")
SHIFTS = 9  # shifts of the music that make up chance


def correspondence(flow: np.ndarray, onsets: np.ndarray, fps: float, seconds: float) -> float:
    """How well one clip's motion and music go together: MV Align less its mean over shifts of the music in time.

    `flow` float [T-1] pixels a frame at `fps`, `onsets` float [A] s, `seconds` the clip's length. In [-1, 1], near 0
    where they have nothing to do with each other, and 0 without a peak on either side.
    """
    from vmas.metrics.mv_align import iou, video_peaks

    video, onsets = video_peaks(flow, fps), np.asarray(onsets, float)
    if not len(video) or not len(onsets):
        return 0.0
    shifts = seconds * np.arange(1, SHIFTS + 1) / (SHIFTS + 1)
    chance = [iou((onsets + s) % seconds, video, fps) for s in shifts]
    return float(iou(onsets, video, fps) - np.mean(chance))


@dataclass(frozen=True)
class Leak:
    """Two relatives in different splits: their indices, and what they share ("video", "track", "picture", "sound")."""

    held: int
    other: int
    by: str


def leaks(known: Sequence[Known], splits: Sequence[str]) -> list[Leak]:
    """Every relative that a held-out video has in another split, by exhaustive comparison; [] for a clean division.

    `splits[i]` is "train", "val", "test", or "" for a video that no split holds.
    """
    here = np.array([i for i, s in enumerate(splits) if s], int)
    if not len(here):
        return []
    split = np.array([splits[i] for i in here])
    pictures = np.array([[*known[i].pictures, *[0] * PICTURES][:PICTURES] for i in here], np.uint64)
    sound = np.array([known[i].sound for i in here], np.uint64)
    names = {kind: np.array([getattr(known[i], kind) for i in here], object) for kind in ("video", "track")}
    out = []
    for n in map(int, np.flatnonzero(split != "train")):
        # a pair of two held-out videos once, not twice
        other = (split != split[n]) & ((split == "train") | (np.arange(len(here)) > n))
        related = {kind: (x == x[n]) & (x != "") for kind, x in names.items()}
        related["picture"] = _near_pictures(pictures, n)
        related["sound"] = (sound != 0) & (sound[n] != 0) & (np.bitwise_count(sound ^ sound[n]) <= NEAR_SOUND)
        for by, found in related.items():
            out += [Leak(int(here[n]), int(here[j]), by) for j in np.flatnonzero(found & other)]
    return out


def _near_pictures(pictures: np.ndarray, n: int) -> np.ndarray:
    """bool [N] of uint64 [N,8]: `dedupe.same_picture` of video n with all at once."""
    both = (pictures != 0) & (pictures[n] != 0)
    enough = np.flatnonzero(both.sum(1) >= PICTURES // 2)
    differ = np.where(both[enough], np.bitwise_count(pictures[enough] ^ pictures[n]), np.nan)
    out = np.zeros(len(pictures), bool)
    out[enough] = np.nanmedian(differ, axis=1) <= NEAR_PICTURE if len(enough) else False
    return out


def select(known: Sequence[Known], group: Sequence[int], val: int, test: int) -> list[str]:
    """Split of each video as `dedupe.hold_out` has it, after which `leaks` finds none.

    Relatives that the groups did not join are joined and the choice is made again, until nothing leaks.
    """
    group = list(group)
    while True:
        splits = dedupe.hold_out(known, group, val, test)
        found = leaks(known, splits)
        if not found:
            return splits
        for leak in found:
            a, b = sorted((group[leak.held], group[leak.other]))
            group = [a if g == b else g for g in group]
