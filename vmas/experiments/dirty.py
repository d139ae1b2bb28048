"""The dirty corpus: the faults of web videos put in on purpose, so that the builder's filters can be marked.

Section 3 filters 15.3M videos and cannot say what a filter missed, since nobody knows the truth of web videos. Here
it is known by construction: which pictures stand still or nearly, which music has a voice, whose picture and music
have nothing to do with each other, which file shows another's content again, and which borrows another's music.
None of these clips was seen in training: the corpus seed is another one.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vmas import corpus, paths, records
from vmas.config import Profile, sha256
from vmas.dataset.manifest import Video, read_manifest

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # raised when the same knobs give other files
CLIPS = {"smoke": 30, "mini": 160}
SPLIT = "train"
BORROW_EVERY = 10  # one further file per so many clips: the picture of one with the music of another
ALIGNED = ("same file", "compressed", "smaller, quieter", "cropped")  # how a duplicate differs, in turn
SHIFTED = ("trimmed", "intro")  # and in time: without its start, the last picture held; after a silent title
COPIES = (*ALIGNED, *SHIFTED)
CRF, SMALLER_PX, QUIETER, CROP, SHIFT = 35, 96, 0.5, 0.06, 0.26  # SHIFT: share of a clip
FAULTS = ("static", "near_static", "vocal", "mismatched")
MANIFEST, TRUTH = "videos.csv", "truth.parquet"
ADDRESS = "https://example.org/"
SOURCE, LICENCE = "procedural", "rendered with TimGM6mb (GPL-2)"


@dataclass(frozen=True)
class Recipe:
    """Which faults and how many: `clips` by profile (mini's for one not named), the share of clips with each fault,
    and `seed`, added to the corpus seed; `copies`: how duplicates differ, in turn."""

    clips: dict[str, int]
    static: float
    near_static: float
    vocal: float
    mismatched: float
    duplicate: float
    seed: int
    copies: tuple[str, ...] = ALIGNED

    def count(self, profile: str) -> int:
        return self.clips[profile if profile in self.clips else "mini"]

    def shares(self) -> dict[str, Any]:
        kinds = ("static", "near_static", "vocal", "mismatched", "duplicate")
        return {f"{k}_share": getattr(self, k) for k in kinds}


MARKED = Recipe(CLIPS, 0.15, 0.15, 0.4, 0.15, 0.5, 7000, COPIES)  # what Table 1 marks the filters on


@dataclass(frozen=True)
class Dirty:
    """`truth`: one row a file, in the order of the manifest.

    id, path; kind (clip, copy, borrowed) and how a copy was made; `picture` and `sound`: the clip and the draw that
    they come from; genre of the music; static, near_static, vocal, mismatched; url and track as the manifest says
    them ("" where it does not).
    """

    folder: Path
    truth: "pd.DataFrame"
    videos: list[Video]


def profile_of(profile: Profile, recipe: Recipe = MARKED) -> Profile:
    """`profile` with the dirty corpus's knobs."""
    counts = {s: 0 for s in corpus.SPLITS} | {SPLIT: recipe.count(profile.name)}
    knobs = dataclasses.replace(profile.corpus, seed=profile.corpus.seed + recipe.seed, **counts, **recipe.shares())
    return dataclasses.replace(profile, corpus=knobs)


def key(profile: Profile, recipe: Recipe = MARKED) -> str:
    """Hash of everything that the files depend on."""
    p = profile_of(profile, recipe)
    how = (recipe.copies, CRF, SMALLER_PX, QUIETER, CROP, BORROW_EVERY)
    how += (SHIFT,) if set(recipe.copies) & {*SHIFTED} else ()
    return sha256(VERSION, corpus.data_sha256(p), getattr(p.corpus, SPLIT), how)


def where(profile: Profile, recipe: Recipe = MARKED) -> Path:
    """Folder of the corpus, in the cache."""
    return paths.cache() / "corpus" / f"dirty-{profile.name}-{key(profile, recipe)[:12]}"


def make(profile: Profile, workers: int | None = None, progress: bool = True, recipe: Recipe = MARKED) -> Dirty:
    """The corpus in the cache, made where it is missing (MARKED: under a minute on two cores in profile mini).

    Leaves `videos.csv`, a manifest that `vmas dataset build` takes, and `truth.parquet`. Raises DataError.
    """
    import pandas as pd

    p = profile_of(profile, recipe)
    folder = where(profile, recipe)
    if not (folder / TRUTH).is_file():
        df = corpus.load_manifest(corpus.make(folder, p, (SPLIT,), workers, progress=progress).parent)
        truth = _borrowed(_files(df, recipe.copies), p.corpus.seed)
        for row in truth[truth.kind != "clip"].itertuples():
            _write(folder, row, truth, p)
        known = {"path": truth.path, "url": truth.url, "artist": truth.artist, "track": truth.track}
        manifest = pd.DataFrame({"id": truth.id, **known, "source": SOURCE, "licence": LICENCE})
        records.write_text(folder / MANIFEST, manifest.to_csv(index=False))
        aside = folder / f".{TRUTH}"
        truth.to_parquet(aside, index=False)
        aside.replace(folder / TRUTH)
    return Dirty(folder, pd.read_parquet(folder / TRUTH), read_manifest(folder / MANIFEST))


def _files(df: "pd.DataFrame", ways: tuple[str, ...]) -> "pd.DataFrame":
    """Rows of the truth for the clips; what repeats another becomes a file of its own, made in one of the ways."""
    import pandas as pd

    rows, copies = [], 0
    for r in cast(Iterable[Any], df.itertuples()):
        first = r.duplicate_of or r.id
        row = {"id": r.id, "path": r.path, "kind": "clip", "how": "", "picture": first, "sound": r.sound_of}
        row |= {"genre": r.genre, **{k: getattr(r, k) for k in FAULTS}}
        row |= {"url": ADDRESS + r.id, "artist": f"artist of {r.sound_of}", "track": f"Track {r.sound_of}"}
        if r.duplicate_of:
            how = ways[copies % len(ways)]
            copies += 1
            row |= {"kind": "copy", "how": how, "path": f"made/{r.id}.mp4", "url": "", "artist": "", "track": ""}
            # The manifest gives away two of the ways, by the address or by the track in another spelling.
            if how == "same file":
                row |= {"url": ADDRESS + first}
            if how == "compressed":
                row |= {"artist": f"ARTIST of {r.sound_of}", "track": f"track: {r.sound_of}!"}
        rows.append(row)
    return pd.DataFrame(rows)


def _borrowed(truth: "pd.DataFrame", seed: int) -> "pd.DataFrame":
    """`truth` with files that show one clip and play another's music; the manifest names no track for them."""
    import pandas as pd

    first = truth[truth.kind == "clip"].reset_index(drop=True)
    rng = np.random.default_rng([seed, 11])
    n = len(truth) // BORROW_EVERY
    chosen = rng.permutation(len(first))[: 2 * n].reshape(n, 2)
    rows = []
    for k, (i, j) in enumerate(chosen):
        seen, heard = first.loc[i], first.loc[j]
        name = f"borrowed-{k:05d}"
        row = {"id": name, "path": f"made/{name}.mp4", "kind": "borrowed", "how": "", "picture": seen.picture}
        row |= {"sound": heard.sound, "genre": heard.genre, "static": seen.static, "near_static": seen.near_static}
        row |= {"vocal": heard.vocal, "mismatched": True, "url": "", "artist": "", "track": ""}
        rows.append(row)
    return pd.DataFrame([*truth.to_dict("records"), *rows])


def _write(folder: Path, row, truth: "pd.DataFrame", p: Profile) -> None:
    """The file of a copy or of a borrowed music, whole or not at all."""
    import cv2

    from vmas import media

    out = folder / row.path
    if out.is_file():
        return
    out.parent.mkdir(exist_ok=True)
    clips = truth[truth.kind == "clip"]
    seen = folder / clips[clips.picture == row.picture].iloc[0].path
    heard = folder / clips[clips.sound == row.sound].iloc[0].path
    if row.how == "same file":
        aside = out.with_name(f".{out.name}")
        aside.write_bytes(seen.read_bytes())
        aside.replace(out)
        return
    frames, wav = media.read_frames(seen, p.corpus.fps, None), media.read_audio(heard, p.clip.sample_rate)
    size, crf = p.corpus.size, p.corpus.crf
    if row.how == "compressed":
        crf = CRF
    elif row.how == "smaller, quieter":
        frames = np.stack([cv2.resize(f, (SMALLER_PX,) * 2, interpolation=cv2.INTER_AREA) for f in frames])
        wav = QUIETER * wav
    elif row.how == "cropped":
        m = round(CROP * size)
        frames = np.stack([cv2.resize(f[m:-m, m:-m], (size, size)) for f in frames])
    elif row.how in SHIFTED:
        frames, wav = _shifted(row.how, frames, wav, p)
    media.write_clip(out, frames, p.corpus.fps, wav, p.clip.sample_rate, crf=crf)


def shift_s(profile: Profile) -> float:
    """Seconds by which a shifted copy begins earlier or later."""
    return SHIFT * profile.clip.seconds


def _shifted(how: str, frames: np.ndarray, wav: np.ndarray, p: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T,H,W,3] and sound [1,N] `shift_s` earlier or later."""
    n = round(shift_s(p) * p.corpus.fps)
    silence = np.zeros((1, round(n / p.corpus.fps * p.clip.sample_rate)), wav.dtype)
    if how == "trimmed":
        frames = np.concatenate([frames[n:], np.repeat(frames[-1:], n, 0)])
        return frames, np.concatenate([wav[:, silence.shape[1] :], silence], axis=1)
    return np.concatenate([np.repeat(_title(p.corpus.size)[None], n, 0), frames]), np.concatenate([silence, wav], 1)


def _title(size: int) -> np.ndarray:
    """A picture that every intro shows, uint8 [size,size,3]."""
    import cv2

    out = np.full((size, size, 3), 24, np.uint8)
    for k, word in enumerate(("PRESENTED", "BY")):
        at = (size // 8, size // 2 + k * size // 6)
        cv2.putText(out, word, at, cv2.FONT_HERSHEY_SIMPLEX, size / 300, (230, 230, 230), 1)
    return out
