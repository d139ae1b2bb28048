"""How well fingerprints find a re-upload that is cut elsewhere, and how often they take other content for the same.

Excerpts of half a minute of the same clip, written as files that start `OFFSETS` apart; and all pairs of files of the
dirty corpus whose content differs.
"""

import tempfile
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmas.config import Profile
from vmas.dataset import stages
from vmas.dataset.fingerprints import Prints, same_picture, same_sound
from vmas.dataset.manifest import Video
from vmas.dataset.stages import Options, Tools

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
OFFSETS = (0.5, 1.0, 2.0, 4.0)  # s
CLIPS, SECONDS = {"smoke": 2, "mini": 8}, {"smoke": 8.0, "mini": 30.0}
SPLIT, CRF = "test", 30  # the excerpts that start later are encoded harder


def size(profile: Profile) -> tuple[int, float]:
    """(clips, seconds of an excerpt)."""
    name = profile.name if profile.name in CLIPS else "mini"
    return CLIPS[name], SECONDS[name]


def found(profile: Profile, o: Options, workers: int) -> "pd.DataFrame":
    """One row for every clip and offset: clip, offset (s), and whether `sound` and `picture` were recognised."""
    import pandas as pd

    from vmas.dataset import pool

    tasks = [(i, profile) for i in range(size(profile)[0])]
    rows = pool.run(shifted, tasks, Tools(o), workers)
    return pd.DataFrame([row for _, part in sorted(rows, key=lambda r: r[0]) for row in part])


def shifted(task: tuple[int, Profile], tools: Tools) -> list[dict[str, Any]]:
    """Work of the pool: one clip of the clean corpus at all offsets."""
    from vmas import media
    from vmas.corpus import sample_spec
    from vmas.corpus.scene import render_frames
    from vmas.corpus.sound import render_audio

    index, p = task
    seconds, fps, rate = size(p)[1], p.corpus.fps, p.clip.sample_rate
    spec = sample_spec(SPLIT, index, p.corpus, seconds + max(OFFSETS))
    frames, wav = render_frames(spec), render_audio(spec, rate)[None]
    prints = []
    with tempfile.TemporaryDirectory() as folder:
        for at in (0.0, *OFFSETS):
            n, first = round(seconds * fps), round(at * fps)
            sound = wav[:, round(first / fps * rate) :][:, : round(seconds * rate)]
            path = Path(folder) / f"{at}.mp4"
            media.write_clip(path, frames[first : first + n], fps, sound, rate, crf=CRF if at else p.corpus.crf)
            prints.append(Prints.unpack(stages.screen(Video(path.stem, str(path), path.stem), tools)))
    return [
        {"clip": spec.id, "offset": at, "sound": same_sound(prints[0], b), "picture": same_picture(prints[0], b)}
        for at, b in zip(OFFSETS, prints[1:], strict=True)
    ]


def confused(files: "pd.DataFrame", prints: list[Prints]) -> dict[str, list[tuple[int, int]]]:
    """For "sound" and "picture": the pairs of `files`, by their places, that differ in it and are called equal; the
    columns picture and sound say what a file shows and plays."""
    out = {}
    for kind, same in (("sound", same_sound), ("picture", same_picture)):
        content = files[kind].to_numpy()
        pairs = [(i, j) for i, j in combinations(range(len(prints)), 2) if content[i] != content[j]]
        out[kind] = [(i, j) for i, j in pairs if same(prints[i], prints[j])]
    return out
