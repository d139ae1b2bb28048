"""Videos held out for validation and testing: chosen by quality, and without a relative in any other split.

The paper "manually selected 1,120 and 1,086 videos with high-quality video-music correspondence" (section 3). Here
a score selects (`Options.quality`): how far the pictures move (1 - frame similarity), or `correspondence`, how much
better the motion meets this music than the same music shifted in time. Relatives are videos of one source or track,
and near-equal pictures or sound.

An update of a build keeps its choice (`dedupe.Before`): what is held out stays so, and a video that was in train is
never held out later, since a model may have been trained on it. New videos fill what is missing, and a new relative of
a held-out video goes to no split. Only when the numbers are changed are videos moved: a larger one is filled from
train too, a smaller one gives its worst back. A video that was in train and turns out to be a relative leaves it.

`dedupe.compare` finds relatives by parts of their fingerprints that are equal, and not where a part is very common. For
training a missed pair costs nothing; for a held-out video it would be a leak. So every held-out video is looked up
once more, by parts that differ in one bit too and however common they are, and what is found joins their groups.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmas.dataset import dedupe
from vmas.dataset.dedupe import Before, Index, Known
from vmas.dataset.fingerprints import same_picture, same_sound

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


class Relatives:
    """Looks up the relatives of single videos among `known`."""

    def __init__(self, known: Sequence[Known], folder=None):
        self.known = known
        self.names = {kind: np.array([getattr(k, kind) for k in known], object) for kind in ("video", "track")}
        self.pictures = Index((k.prints.picture_keys() for k in known), folder)
        self.sounds = Index((k.prints.sound_keys() for k in known), folder)
        self._found: dict[int, dict[str, np.ndarray]] = {}

    def of(self, n: int) -> dict[str, np.ndarray]:
        """ "video", "track", "picture", "sound" → indices of the videos that share it with video n, in order."""
        if n not in self._found:
            mine = self.known[n].prints
            names = {kind: np.flatnonzero((x == x[n]) & (x != "")) for kind, x in self.names.items()}
            looked_up = (
                ("picture", self.pictures.near(mine.picture_keys(inner=True)), same_picture),
                ("sound", self.sounds.near(mine.sound_keys()), same_sound),
            )
            alike = {
                by: np.array([j for j in near if j != n and same(mine, self.known[j].prints)], int)
                for by, near, same in looked_up
            }
            self._found[n] = names | alike
        return self._found[n]


def leaks(known: Sequence[Known], splits: Sequence[str], relatives: Relatives | None = None) -> list[Leak]:
    """Every relative that a held-out video has in another split; [] for a clean division.

    `splits[i]` is "train", "val", "test", or "" for a video that no split holds. `relatives` of `known` may be given
    where several divisions are looked at.
    """
    relatives = relatives or Relatives(known)
    split = np.array(splits, object)
    out = []
    for n in map(int, np.flatnonzero((split == "val") | (split == "test"))):
        for by, j in relatives.of(n).items():
            # a pair of two held-out videos once, not twice
            other = (split[j] != "") & (split[j] != split[n]) & ((split[j] == "train") | (j > n))
            out += [Leak(n, int(k), by) for k in j[other]]
    return out


def originals(known: Sequence[Known], duplicates: dict[int, int], before: Before) -> dict[int, int]:
    """Duplicate → the video that stays, as `dedupe.compare` has them, the other way round where a split held the
    duplicate and not the earlier one, or it was held out and that in train."""
    weight = {"": 0, "train": 1, "val": 2, "test": 2}
    out = dict(duplicates)
    for j, i in sorted(duplicates.items()):
        new, old = (weight[before.splits.get(known[k].id, "")] for k in (j, i))
        if new > old and out.get(j) == i and i not in out:
            out = {k: j if of == i else of for k, of in out.items() if k != j} | {i: j}
    return out


def moved(known: Sequence[Known], splits: Sequence[str], before: Before) -> str:
    """What an update has to move, in one line; "" where every video stays in its split."""
    ways = Counter[str]()
    for k, split in zip(known, splits, strict=True):
        if (was := before.splits.get(k.id, "")) and was != split:
            ways[f"{was} to {split or 'no split (a relative of a held-out video)'}"] += 1
    return ", ".join(f"{n} from {way}" for way, n in sorted(ways.items()))


def select(
    known: Sequence[Known], group: Sequence[int], val: int, test: int, before: Before | None = None, folder=None
) -> list[str]:
    """Split of each video as `dedupe.hold_out` has it, after which `leaks` finds none.

    Relatives that the groups did not join are joined and the choice is made again, until nothing leaks.
    """
    group = list(group)
    if not val + test:
        return dedupe.hold_out(known, group, val, test, before)
    relatives = Relatives(known, folder)
    while True:
        splits = dedupe.hold_out(known, group, val, test, before)
        found = leaks(known, splits, relatives)
        if not found:
            return splits
        for leak in found:
            a, b = sorted((group[leak.held], group[leak.other]))
            group = [a if g == b else g for g in group]
