"""`dataset_card.md`: what a person needs to know of a built dataset before using it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmas.dataset.manifest import Video
from vmas.dataset.stages import VERSIONS, Options

if TYPE_CHECKING:
    import pandas as pd

NAME = "dataset_card.md"
SCORES = {"similarity": "Frame similarity", "removed": "Share of energy removed with the vocals"}
BAR = 40  # characters of the longest bar
STAND_IN = (
    "Vocals were removed by the classic separator, which stands in for Demucs: part of most voices is left, and part of"
    " the music is gone, where there is a voice and where there is none. Genres, tokens and beats are of what it left."
    " `--vocals demucs` needs weights (`vmas weights list`)."
)


@dataclass
class Kept:
    """What the card says of one split: clips per video and per genre, two scores of every clip (8 bytes each)."""

    videos: Counter[str] = field(default_factory=Counter)
    genres: Counter[str] = field(default_factory=Counter)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.videos.total()


def read(index: Path) -> Kept:
    """From an `index.parquet`, of which a part is in memory at a time."""
    import pyarrow.parquet as pq

    out = Kept()
    with pq.ParquetFile(index) as file:
        columns = {"video", "genre", *SCORES} & {*file.schema_arrow.names}
        for batch in file.iter_batches(columns=sorted(columns)):
            out.videos.update(batch["video"].to_pylist())
            if "genre" in columns:
                out.genres.update(batch["genre"].to_pylist())
            for name in columns & {*SCORES}:
                out.scores.setdefault(name, []).append(batch[name].to_numpy(zero_copy_only=False).astype(float))
    return out


def text(videos: Sequence[Video], kept: dict[str, Kept], ledger: "pd.DataFrame", options: Options, keys) -> str:
    """The card as Markdown; a function of the data alone, without dates or times.

    `kept` is what is in each split, `ledger` the rejected, `keys` stage → model.
    """
    clips = Kept()
    for one in kept.values():
        clips.videos.update(one.videos)
        clips.genres.update(one.genres)
        for name, parts in one.scores.items():
            clips.scores.setdefault(name, []).extend(parts)
    p = options.profile
    hours = len(clips) * p.clip.seconds / 3600
    out = [
        "# Dataset card",
        "",
        f"{len(clips)} clips of {p.clip.seconds:g} s ({hours:.2f} h) from {len(clips.videos)} of {len(videos)}"
        " videos, made by `vmas dataset build` after section 3 of VMAs (DISCO-MV). Profile:"
        f" {p.name} ({p.status}).",
        "",
        "## Clips",
        "",
        _table(("split", "videos", "clips"), [(s, len(k.videos), len(k)) for s, k in kept.items()]),
        "",
        f"H.264 video at {p.clip.fps:g} fps and {p.clip.img_size}² pixels (`mp4`), music at {p.clip.sample_rate} Hz"
        " (`flac`), codec tokens (`tokens.npy`), optical-flow magnitude (`flow.npy`), music beats P_a (`beats.npy`)"
        " and the weights P_av of eq. 3 (`weights.npy`), as far as their stages ran.",
        "",
        "## Sources and licences",
        "",
        "The licence is what the manifest says; this tool cannot check it. Music and pictures stay their owners'.",
        "",
        _licences(videos, clips.videos),
        "",
        "## Stages",
        "",
        _table(
            ("stage", "version", "model"),
            [(s, v if options.runs(s) else "left out", keys.get(s, "")) for s, v in VERSIONS.items()],
        ),
        "",
        f"A video stays when its frame similarity lies below {options.threshold:g}."
        if options.runs("similarity")
        else "Frame similarity was not looked at.",
        *(("", STAND_IN) if options.runs("vocals") and options.vocals == "classic" else ()),
        "",
        "## Left out",
        "",
        _table(
            ("stage", "kind", "reason", "count"),
            [(*k, n) for k, n in sorted(Counter(_reasons(ledger)).items())] or [("none", "", "", 0)],
        ),
    ]
    for column, title in SCORES.items():
        if column in clips.scores:
            out += ["", f"## {title}", "", _histogram(np.concatenate(clips.scores[column]))]
    if clips.genres:
        out += ["", "## Genres", "", _bars([(str(g), clips.genres[g]) for g in sorted(clips.genres)])]
    return "\n".join(out) + "\n"


def _reasons(ledger: "pd.DataFrame"):
    for stage, kind, reason in ledger[["stage", "kind", "reason"]].itertuples(index=False):
        # Reasons that name another video or a file would be a line each.
        yield stage, kind, "same picture and sound as another" if stage == "duplicates" else reason.split(": ")[0]


def _licences(videos: Sequence[Video], kept: Counter[str]) -> str:
    rows: dict[tuple[str, str], list[int]] = {}
    for v in videos:
        row = rows.setdefault((v.source or "not said", v.licence or "not said"), [0, 0, 0])
        row[0] += 1
        row[1] += v.id in kept
        row[2] += kept[v.id]
    return _table(("source", "licence", "videos", "videos kept", "clips"), [(*k, *n) for k, n in sorted(rows.items())])


def _table(head: Sequence[str], rows) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(str(x).replace("|", "/") for x in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _histogram(x: np.ndarray) -> str:
    x = x[np.isfinite(x)]
    if not len(x):
        return "no values"
    low, high = np.floor(x.min() * 10) / 10, np.ceil(x.max() * 10 + 1e-9) / 10
    edges = np.round(np.arange(low, max(high, low + 0.1) + 0.05, 0.1), 1)
    counts, _ = np.histogram(x, bins=edges)
    bars = _bars([(f"{a:.1f} to {b:.1f}", int(n)) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)])
    return f"Mean {x.mean():.3f}, from {x.min():.3f} to {x.max():.3f}.\n\n{bars}"


def _bars(rows: list[tuple[str, int]]) -> str:
    most, width = max(n for _, n in rows), max(len(name) for name, _ in rows)
    lines = [f"{name:{width}} {n:8d} {'#' * round(BAR * n / max(most, 1))}".rstrip() for name, n in rows]
    return "\n".join(["```", *lines, "```"])
