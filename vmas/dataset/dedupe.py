"""Which videos are the same in picture or sound, and which are held out without leaving a relative in training.

Fingerprints (`vmas.dataset.fingerprints`) are compared in full only where an inverted index over their parts finds at
least `HITS` in common: the words of the sound, and the halves of the pictures' hashes. The index is one sorted array,
so that the cost stays near linear; a video has up to 8 KB in it, on disk. Cut pictures are compared but not
indexed: a cropped copy is met by its sound, and of a held-out video by that video's own cut pictures (`splits`).
"""

import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vmas.dataset.fingerprints import Prints, Shelf, same_picture, same_sound

if TYPE_CHECKING:
    from vmas.dataset.manifest import Video

CROWD = 200  # in a larger bucket each is compared with so many before it: its members are alike anyway
OWNER = np.uint64(31)  # bits of a video's number in an index, below those of the key
LAST = (np.uint64(1) << OWNER) - np.uint64(1)
CHUNK = 1 << 22  # keys of an index that are in memory at a time
HITS = 2  # equal parts from which on two videos are compared; one happens by chance


@dataclass(frozen=True)
class Known:
    """What is compared of one video. `quality` ranks the held-out ones, higher first.

    `where` are its fingerprints, or the shelf on which they lie under its id: arrays of millions of videos, each with
    its head of some hundred bytes, would fill the memory again.
    """

    id: str
    video: str
    track: str  # artist and track, "" where unknown
    where: Prints | Shelf = field(default_factory=Prints)
    quality: float = 0.0

    @property
    def prints(self) -> Prints:
        return self.where if isinstance(self.where, Prints) else self.where[self.id]


def known_of(video: "Video", found: dict, prints: Prints | Shelf) -> Known:
    """Of a video, what `stages.fingerprint` found of it, and its fingerprints."""
    quality = found.get("quality", 1 - found.get("similarity", 0.0))
    return Known(video.id, video.video, track_key(video.artist, video.track), prints, quality)


def track_key(artist: str, track: str) -> str:
    """One name for a track whatever its spelling in capitals and signs; "" without a track."""
    words = re.sub(r"[\W_]+", " ", f"{artist} | {track}".casefold()).strip()
    return words if track.strip() else ""


class Index:
    """Which of N videos share keys; `keys` yields those of each video, uint64 below 2**33, each once.

    It lies in a file of `folder` that has no name, 8 bytes a key: the key above the video's number, sorted.
    """

    def __init__(self, keys: Iterable[np.ndarray], folder=None):
        self.videos = size = 0
        with tempfile.TemporaryFile(dir=folder) as file:
            for i, k in enumerate(keys):
                file.write(((k << OWNER) | np.uint64(i)).tobytes())
                self.videos, size = i + 1, size + len(k)
            file.flush()
            self.sorted = np.memmap(file, np.uint64, "r+", shape=size) if size else np.zeros(0, np.uint64)
        self.sorted.sort()

    def _owners(self, places: np.ndarray) -> np.ndarray:
        return (self.sorted[places] & LAST).astype(np.int64)

    def pairs(self) -> np.ndarray:
        """int64 [P,2], i < j: videos that share `HITS` keys; in a bucket each with the `CROWD` before it."""
        found = []
        for start in range(0, len(self.sorted), CHUNK):
            keys = np.asarray(self.sorted[start : start + CHUNK + CROWD]) >> OWNER
            for lag in range(1, CROWD + 1):
                here = min(CHUNK, len(keys) - lag)
                same = start + np.flatnonzero(keys[lag : lag + max(here, 0)] == keys[: max(here, 0)])
                if not len(same):
                    break
                found.append(self._owners(same) * self.videos + self._owners(same + lag))
        if not found:
            return np.zeros((0, 2), np.int64)
        codes, hits = np.unique(np.concatenate(found), return_counts=True)
        return np.stack(np.divmod(codes[hits >= HITS], self.videos), axis=1)

    def near(self, keys: np.ndarray) -> np.ndarray:
        """int [K]: videos with at least `HITS` keys that equal one of uint64 [k] or differ from it in one of the low
        32 bits; however large their buckets are."""
        flips = np.uint64(1) << np.arange(32, dtype=np.uint64)
        ball = np.unique(np.concatenate([keys, (keys[:, None] ^ flips).ravel()]))
        start = np.searchsorted(self.sorted, ball << OWNER)
        end = np.searchsorted(self.sorted, (ball << OWNER) | LAST, "right")
        some = end > start
        places = np.concatenate([np.zeros(0, int), *map(np.arange, start[some], end[some])])
        return np.flatnonzero(np.bincount(self._owners(places), minlength=self.videos) >= HITS)


def compare(known: Sequence[Known], folder=None) -> tuple[dict[int, int], list[int]]:
    """(duplicates, group): index of a duplicate → the earlier video with its picture AND sound; for every video the
    first index of its group: videos linked by source video, track, near-equal pictures or near-equal sound. The
    indexes lie on the disk of `folder` (default: the system's for temporary files)."""
    parent = list(range(len(known)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    def join(i: int, j: int) -> None:
        a, b = sorted((root(i), root(j)))
        parent[b] = a

    first: dict[tuple[str, str], int] = {}
    for i, k in enumerate(known):
        for kind, name in (("video", k.video), ("track", k.track)):
            if name:
                join(first.setdefault((kind, name), i), i)
    duplicates: dict[int, int] = {}
    keys = ((k.prints.picture_keys() for k in known), (k.prints.sound_keys() for k in known))
    found = [Index(k, folder).pairs() for k in keys]
    for i, j in np.unique(np.concatenate(found), axis=0).tolist():
        a, b = known[i].prints, known[j].prints
        picture, sound = same_picture(a, b), same_sound(a, b)
        if picture or sound:
            join(i, j)
        if picture and sound:
            duplicates[j] = min(i, duplicates.get(j, i))
    return duplicates, [root(i) for i in range(len(known))]


@dataclass(frozen=True)
class Before:
    """What a folder held before an update: `splits` id → "train", "val" or "test", and the numbers of held-out videos
    that had been asked for."""

    splits: Mapping[str, str] = field(default_factory=dict)
    val: int = 0
    test: int = 0


def hold_out(
    known: Sequence[Known], group: Sequence[int], val: int, test: int, before: Before | None = None
) -> list[str]:
    """Split of each video: "train", "val", "test", or "" for relatives of a held-out video, which no split may hold.

    The groups are ranked by their best member; its best alone is held out, to val and test in turn until both are
    full. Ties are broken by the id's sha256, so that the order of the manifest has no say.

    What was held out `before` stays so: of one group that was in both splits the split of its best member, and of
    more than are asked for the best. What else is asked for comes from groups of which no video was in train; only a
    number that is raised is filled from all.
    """
    before = before or Before()
    was = [before.splits.get(k.id, "") for k in known]
    ranks = [(-k.quality, hashlib.sha256(k.id.encode()).hexdigest()) for k in known]
    order = sorted(range(len(known)), key=ranks.__getitem__)
    left = {"val": val, "test": test}
    raised = {"val": val > before.val, "test": test > before.test}
    chosen: dict[int, str] = {}  # group → split
    held: set[int] = set()
    for i in order:
        split = was[i]
        if split in left and left[split] and chosen.setdefault(group[i], split) == split:
            left[split] -= 1
            held.add(i)
    trained = {group[i] for i in order if was[i] == "train"}
    n = 0
    for i in order:
        open_ones = [s for s in left if left[s] and (raised[s] or group[i] not in trained)]
        if group[i] in chosen or not open_ones:
            continue
        chosen[group[i]] = split = open_ones[n % len(open_ones)]
        left[split] -= 1
        held.add(i)
        n += 1
    return [chosen[g] if i in held else "" if g in chosen else "train" for i, g in enumerate(group)]
