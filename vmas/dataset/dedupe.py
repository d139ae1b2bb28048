"""Which videos are the same in picture or sound, and which are held out without leaving a relative in training.

Fingerprints are 64-bit hashes: one per picture for eight pictures (signs of low DCT coefficients, "pHash"), one for
the first half minute of sound (signs of energy differences across bands and time, after Haitsma and Kalker 2002).
Candidates are found by equal 16-bit pieces and compared in full, so that the cost stays near linear.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vmas import compiled

PICTURES = 8
NEAR_PICTURE, NEAR_SOUND = 8, 6  # bits of 64 that may differ (median over the pictures); chance differs in 32 ± 4
PIECES = 4
CROWD = 200  # in a larger bucket each is compared with so many before it: its members are alike anyway
SOUND_S, SOUND_RATE = 30.0, 11025
FLAT = 2.0  # grey levels: a picture that varies less has no fingerprint


def picture_hashes(frames: np.ndarray) -> list[int]:
    """Eight 64-bit hashes of frames uint8 [T,H,W,3] spread over the video, 0 for pictures without structure."""
    import cv2

    out = []
    for i in np.linspace(0, len(frames) - 1, PICTURES).round().astype(int):
        grey = cv2.cvtColor(frames[i], cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        if small.std() < FLAT:
            out.append(0)
            continue
        low = cv2.dct(small)[:8, :8].ravel()
        out.append(_bits(low > np.median(low[1:])))
    return out


def sound_hash(wav: np.ndarray, sample_rate: int) -> int:
    """64-bit hash of a waveform float [N], 0 for silence: changes of 9 band energies over 9 stretches of time."""
    librosa = compiled.librosa()

    if len(wav) < sample_rate // 2 or float(np.abs(wav).max()) < 1e-3:
        return 0
    mel = librosa.feature.melspectrogram(y=wav, sr=sample_rate, n_fft=1024, hop_length=512, n_mels=9, fmin=100)
    E = np.stack([np.log(part.mean(1) + 1e-9) for part in np.array_split(mel, 9, axis=1)])
    return _bits((np.diff(np.diff(E, axis=0), axis=1) > 0).ravel())


def _bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags).tobytes(), "big")


def _differ(a: int, b: int) -> int:
    return (a ^ b).bit_count()


def same_picture(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two videos' picture hashes agree: the median difference over pictures that both have structure."""
    differ = [_differ(x, y) for x, y in zip(a, b, strict=True) if x and y]
    return len(differ) >= PICTURES // 2 and float(np.median(differ)) <= NEAR_PICTURE


def same_sound(a: int, b: int) -> bool:
    return bool(a and b) and _differ(a, b) <= NEAR_SOUND


@dataclass(frozen=True)
class Known:
    """What is compared of one video. `quality` ranks the held-out ones, higher first."""

    id: str
    video: str
    track: str  # artist and track, "" where unknown
    pictures: tuple[int, ...]
    sound: int
    quality: float


def track_key(artist: str, track: str) -> str:
    """One name for a track whatever its spelling in capitals and signs; "" without a track."""
    words = re.sub(r"[\W_]+", " ", f"{artist} | {track}".casefold()).strip()
    return words if track.strip() else ""


def _pairs(hashes: Iterable[tuple[int, object, int]]) -> Iterable[tuple[int, int]]:
    """Pairs of indices whose (place, hash) share a 16-bit piece; `hashes` holds (index, place, hash)."""
    buckets: dict[object, list[int]] = {}
    for i, place, h in hashes:
        for k in range(PIECES if h else 0):
            buckets.setdefault((place, k, h >> 16 * k & 0xFFFF), []).append(i)
    for members in buckets.values():
        for n, j in enumerate(members):
            for i in members[max(0, n - CROWD) : n]:
                if i != j:
                    yield i, j


def compare(known: Sequence[Known]) -> tuple[dict[int, int], list[int]]:
    """(duplicates, group): index of a duplicate → the earlier video with its picture AND sound; for every video the
    first index of its group: videos linked by source video, track, near-equal pictures or near-equal sound."""
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
    pictures = ((i, place, h) for i, k in enumerate(known) for place, h in enumerate(k.pictures))
    sounds = ((i, "sound", k.sound) for i, k in enumerate(known))
    for i, j in set(_pairs(pictures)) | set(_pairs(sounds)):
        i, j = min(i, j), max(i, j)
        picture = same_picture(known[i].pictures, known[j].pictures)
        sound = same_sound(known[i].sound, known[j].sound)
        if picture or sound:
            join(i, j)
        if picture and sound:
            duplicates[j] = min(i, duplicates.get(j, i))
    return duplicates, [root(i) for i in range(len(known))]


def hold_out(known: Sequence[Known], group: Sequence[int], val: int, test: int) -> list[str]:
    """Split of each video: "train", "val", "test", or "" for relatives of a held-out video, which no split may hold.

    The groups are ranked by their best member; its best alone is held out, to val and test in turn until both are
    full. Ties are broken by the id's sha256, so that the order of the manifest has no say.
    """
    best: dict[int, int] = {}

    def rank(i: int) -> tuple[float, str]:
        return -known[i].quality, hashlib.sha256(known[i].id.encode()).hexdigest()

    for i, g in enumerate(group):
        if g not in best or rank(i) < rank(best[g]):
            best[g] = i
    splits = ["train"] * len(known)
    left = {"val": val, "test": test}
    chosen: dict[int, tuple[int, str]] = {}
    for n, i in enumerate(sorted(best.values(), key=rank)):
        open_ones = [s for s in left if left[s]]
        if not open_ones:
            break
        split = open_ones[n % len(open_ones)]
        left[split] -= 1
        chosen[group[i]] = i, split
    for i, g in enumerate(group):
        if g in chosen:
            splits[i] = chosen[g][1] if chosen[g][0] == i else ""
    return splits
