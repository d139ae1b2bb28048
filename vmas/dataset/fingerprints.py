"""What a video looks and sounds like in a few kilobytes, comparable where one starts later than the other.

Sound: a 32-bit word 16 times a second over the first minute, the signs of energy differences between neighbouring
bands and moments (Haitsma and Kalker 2002, with a coarser step). Pictures: 64 bits each (signs of low DCT
coefficients, "pHash") of the pictures that frame similarity decodes anyway, four a second from a short video and the
keyframes of a long one, with their times, and 64 more for each less a margin. A re-upload with an intro, or without
its first seconds, holds the same words at other times; so two videos are laid over each other at every offset, and
must agree over a good part.

The two must have `OVERLAP` of the shorter one in common. A picture that lost up to an eighth of its side on every edge
is found through the hashes of the cut pictures. One that lost more, or not the same everywhere, or that is mirrored,
is another one, and so is music played faster or in another key. How many of the dirty corpus's pairs of other content
are called equal stands in table 1's record.
"""

import base64
import tempfile
from dataclasses import dataclass, field

import numpy as np

SOUND_S, SOUND_RATE = 60.0, 11025
WORDS_S = 16  # words of sound a second
WINDOW, BANDS, LOW, HIGH = 4096, 33, 300.0, 2000.0  # samples (0.37 s), bands from LOW to HIGH Hz
QUIET = 1e-3  # root mean square of a window below which it has no word
NEAR_SOUND = 0.22  # share of bits that may differ; chance: 0.5; same content between two steps: up to 0.15
LEAST_SOUND_S = 2.0
PICTURES_S = 4  # pictures a second of a short video
NEAR_PICTURE, MOST_OTHER = 8, 0.5  # bits of 64, and share of the pictures that may differ more
LEAST_PICTURES, LEAST_PICTURES_S = 4, 1.0  # pictures that agree, and the time from the first to the last
MARGINS = (1 / 32, 2 / 32, 3 / 32, 4 / 32)  # of the side, cut off every edge: a hash bears a step of half of that
FLAT = 2.0  # grey levels: a picture that varies less has no hash
OVERLAP = 0.25  # share of the shorter video that the two must have in common
APART_S = 2.0  # keyframes of two encodings lie apart by up to so much
TRIED = 8  # offsets of two videos' pictures that are tried, those with most equal pictures first
SIDE = 32
PACKED = ("pictures", "inner", "sound")  # names of fingerprints in a record


def picture_hash(frame: np.ndarray) -> int:
    """64 bits of a frame uint8 [H,W,3], 0 for a picture without structure."""
    import cv2

    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < FLAT:
        return 0
    low = cv2.dct(small)[:8, :8].ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


def inner_hashes(frame: np.ndarray) -> list[int]:
    """`picture_hash` of a frame uint8 [H,W,3] without each of the `MARGINS`."""
    h, w = frame.shape[:2]
    cuts = [(round(m * h), round(m * w)) for m in MARGINS]
    return [picture_hash(frame[y : h - y, x : w - x]) for y, x in cuts]


def sound_words(wav: np.ndarray) -> np.ndarray:
    """uint32 [n] of a waveform float [N] at `SOUND_RATE`, `WORDS_S` a second; 0 stands for silence."""
    import scipy.fft

    hop = SOUND_RATE // WORDS_S
    if len(wav) < WINDOW + hop:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wav, np.float32), WINDOW)[::hop]
    edges = np.round(np.geomspace(LOW, HIGH, BANDS + 1) * WINDOW / SOUND_RATE).astype(int)
    window = np.hanning(WINDOW)
    energy, loud = [], []
    for part in np.array_split(frames, max(1, len(frames) // 64)):  # a minute at once would be 30 MB
        power = np.abs(scipy.fft.rfft(part * window, axis=1)) ** 2
        energy.append(np.add.reduceat(power, edges, axis=1)[:, :BANDS])
        loud.append(np.sqrt(np.mean(np.square(part, dtype=np.float64), axis=1)) >= QUIET)
    bits = np.diff(np.diff(np.concatenate(energy), axis=1), axis=0) > 0
    words = np.packbits(bits, axis=1).view(">u4").ravel().astype(np.uint32)
    return np.where(np.concatenate(loud)[1:], words, np.uint32(0))


@dataclass(frozen=True, eq=False)
class Prints:
    """Of one video: `times` uint32 [n] ms from its start and `hashes` uint64 [n] of its pictures, `words` uint32 [m] of
    its sound, `inner` uint64 [n,len(MARGINS)] of the cut pictures. Empty where a stage was left out."""

    times: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    words: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    inner: np.ndarray = field(default_factory=lambda: np.zeros((0, len(MARGINS)), np.uint64))

    def pack(self) -> dict[str, str]:
        """As text for a record: "pictures" (16 characters a picture), "inner" (43) and "sound" (85 a second)."""
        pictures = self.hashes.astype("<u8").tobytes() + self.times.astype("<u4").tobytes()
        inner, sound = self.inner.astype("<u8").tobytes(), self.words.astype("<u4").tobytes()
        return {"pictures": _text(pictures), "inner": _text(inner), "sound": _text(sound)}

    @classmethod
    def unpack(cls, known: dict) -> "Prints":
        """Of what `pack` gave; a missing entry is empty."""
        pictures = base64.b64decode(known.get("pictures", ""))
        n = len(pictures) // 12
        hashes, times = np.frombuffer(pictures, "<u8", n), np.frombuffer(pictures, "<u4", n, 8 * n)
        words = np.frombuffer(base64.b64decode(known.get("sound", "")), "<u4")
        inner = np.frombuffer(base64.b64decode(known.get("inner", "")), "<u8").reshape(-1, len(MARGINS))
        return cls(*(x.astype(x.dtype.newbyteorder("=")) for x in (times, hashes, words, inner)))

    def views(self) -> list[np.ndarray]:
        """Hashes uint64 [n] of the whole pictures, and of the pictures less each margin."""
        return [self.hashes, *(self.inner.T if len(self.inner) == len(self.hashes) else ())]

    def picture_keys(self, inner: bool = False) -> np.ndarray:
        """uint64 [k], each once: the halves of the hashes, by which an index finds a picture that is nearly equal."""
        h = np.concatenate(self.views()) if inner else self.hashes
        h = h[h != 0]
        low = np.uint64(0xFFFFFFFF)
        return np.unique(np.concatenate([h & low, (h >> np.uint64(32)) | np.uint64(1 << 32)]))

    def sound_keys(self) -> np.ndarray:
        """uint64 [k]: the words of the sound, each once."""
        return np.unique(self.words[self.words != 0]).astype(np.uint64)


class Shelf:
    """The fingerprints of many videos in a file of `folder` that has no name: in memory are their places alone."""

    def __init__(self, folder=None):
        self.file, self.places = tempfile.TemporaryFile(dir=folder), dict[str, tuple[int, int, int, int]]()
        self.end, self.data = 0, np.zeros(0, np.uint8)

    def close(self) -> None:
        """Give the disk back; what was read stays readable."""
        self.file.close()

    def put(self, name: str, known: dict) -> dict:
        """`known` of a video without what `Prints.pack` gave, which is put away."""
        p = Prints.unpack(known)
        data = b"".join(x.tobytes() for x in (p.hashes, p.inner, p.times, p.words))
        data += bytes(-len(data) % 8)
        self.places[name] = self.end, len(p.hashes), len(p.inner), len(p.words)
        self.file.write(data)
        self.end += len(data)
        return {k: v for k, v in known.items() if k not in PACKED}

    def __getitem__(self, name: str) -> Prints:
        at, n, m, words = self.places[name]
        if len(self.data) < self.end:
            self.file.flush()
            self.data = np.memmap(self.file, np.uint8, "r", shape=self.end)

        def take(count: int, dtype) -> np.ndarray:
            nonlocal at
            start, at = at, at + count * np.dtype(dtype).itemsize
            return np.frombuffer(self.data, dtype, count, start) if count else np.zeros(0, dtype)

        hashes, inner = take(n, np.uint64), take(m * len(MARGINS), np.uint64).reshape(-1, len(MARGINS))
        times, sound = take(n, np.uint32), take(words, np.uint32)
        return Prints(times, hashes, sound, inner)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def same_sound(a: Prints, b: Prints) -> bool:
    """Whether some offset brings the sounds together."""
    return sound_distance(a, b) <= NEAR_SOUND


def sound_distance(a: Prints, b: Prints) -> float:
    """Least share of bits that differ, over all offsets with enough sound in common; 1 where there is none."""
    x, y = a.words, b.words
    n, m = len(x), len(y)
    least = max(round(LEAST_SOUND_S * WORDS_S), round(OVERLAP * min(n, m)))
    if min(n, m) < least:
        return 1.0
    both = (x != 0)[:, None] & (y != 0)[None]
    differ = np.where(both, np.bitwise_count(x[:, None] ^ y[None]), 0)
    pairs = _diagonals(both)
    enough = pairs >= least
    return float((_diagonals(differ)[enough] / (32 * pairs[enough])).min()) if enough.any() else 1.0


def _diagonals(x: np.ndarray) -> np.ndarray:
    """int64 [n+m-1]: sums of [n,m] along its diagonals, made columns by shifting every row by one."""
    n, m = x.shape
    wide = np.zeros((n, n + m), np.uint8)
    wide[:, :m] = x[::-1]
    return wide.ravel()[: n * (n + m - 1)].reshape(n, n + m - 1).sum(0, dtype=np.int64)


def same_picture(a: Prints, b: Prints) -> bool:
    """Whether some offset brings the pictures together, whole or one of them less a margin: where both have one, at
    least half are nearly equal, over a good part of the shorter video."""
    if len(a.hashes) > len(b.hashes):
        a, b = b, a
    if len(a.hashes) < LEAST_PICTURES:
        return False
    whole, *cut = a.views()
    pairs = [(whole, h) for h in b.views()] + [(h, b.hashes) for h in cut]
    return any(_aligned(a.times, x, b.times, y) for x, y in pairs)


def _aligned(a_times: np.ndarray, a: np.ndarray, b_times: np.ndarray, b: np.ndarray) -> bool:
    """`same_picture` of one hash for every picture of two videos."""
    near = (np.bitwise_count(a[:, None] ^ b[None]) <= NEAR_PICTURE) & (a != 0)[:, None]
    i, j = np.nonzero(near & (b != 0)[None])
    if len(np.unique(i)) < LEAST_PICTURES:
        return False
    x, y = (t.astype(np.int64) for t in (a_times, b_times))
    # the sparser the pictures, the less exact is the time of one that is equal
    apart = int(1000 * min(APART_S, max(_step(x), _step(y)) / 2000))
    found, votes = np.unique(np.round((x[i] - y[j]) / apart).astype(np.int64), return_counts=True)
    tried = found[np.argsort(-votes, kind="stable")[:TRIED]] * apart
    return any(_agree(a, b, x, y, near, int(offset), apart) for offset in tried)


def _step(times: np.ndarray) -> float:
    """Median time in ms between two pictures."""
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def _agree(
    a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, near: np.ndarray, offset: int, apart: int
) -> bool:
    """`_aligned` at one offset in ms: every picture of `a` beside the picture of `b` nearest in time."""
    want = x - offset
    right = np.clip(np.searchsorted(y, want), 1, len(y) - 1)
    j = np.where(np.abs(y[right - 1] - want) <= np.abs(y[right] - want), right - 1, right)
    pair = (np.abs(y[j] - want) <= apart) & (a != 0) & (b[j] != 0)
    hit = pair & near[np.arange(len(x)), j]
    shorter = min(x[-1] - x[0], y[-1] - y[0])
    if hit.sum() < max(LEAST_PICTURES, (1 - MOST_OTHER) * pair.sum()):
        return False
    span = x[hit][-1] - x[hit][0]
    return bool(span >= max(1000 * LEAST_PICTURES_S, OVERLAP * shorter))
