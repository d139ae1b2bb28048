"""What a person needs to judge the corpus: a contact sheet, one clip's strip, and its figures.

A corpus can be wrong without an error: pictures that do not follow the music, one genre in every
other clip, clipping. The card measures the files themselves beside what the manifest claims.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmas.corpus.genres import GENRES
from vmas.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

LABEL = 18  # height in pixels of the line of text under a picture
FLAGS = ("static", "near_static", "vocal", "mismatched", "cuts")


def pick(df: "pd.DataFrame", n: int) -> "pd.DataFrame":
    """`n` rows spread over the genres in turn, always the same ones; fewer where there are fewer."""
    turn = df.groupby("genre").cumcount()
    order = df["genre"].map({g: i for i, g in enumerate(GENRES)})
    return (
        df.assign(_turn=turn, _order=order).sort_values(["_turn", "_order"]).head(n).drop(columns=["_turn", "_order"])
    )


def contact_sheet(df: "pd.DataFrame", folder, n: int = 40, columns: int = 10) -> "Image":
    """The middle picture of `n` clips, a column a genre, with genre and tempo under each.

    `df` rows of the manifest, `folder` the corpus. Raises DataError for no rows, MediaError for an unreadable clip.
    """
    rows = pick(df, n)
    pictures = []
    for row in rows.itertuples():
        mid = _middle(Path(folder, str(row.path)))
        pictures.append(_labelled(mid, f"{row.genre} {row.tempo_bpm:.0f}"))
    return _grid(pictures, columns)


def strip(row, folder, n: int = 10) -> "Image":
    """`n` pictures of one clip from its start to its end; under each its time, and * where an event is shown."""
    from vmas import media

    path = Path(folder, str(row.path))
    info = media.probe(path)
    frames = media.read_frames(path, info.fps, None)
    at = np.linspace(0, len(frames) - 1, n).round().astype(int)
    reach = 0.5 * info.duration_s / n
    events = np.asarray(row.video_events_s, float)
    near = [bool((np.abs(events - i / info.fps) < reach).any()) for i in at]
    labels = [f"{i / info.fps:.2f} s{' *' if e else ''}" for i, e in zip(at, near, strict=True)]
    return _grid([_labelled(frames[i], text) for i, text in zip(at, labels, strict=True)], n)


def data_card(
    df: "pd.DataFrame",
    folder,
    clips: int = 60,
    rates: Sequence[float] = (9.6, 24.0),
    size: int = 64,
    sample_rate: int = 32000,
    version: str = "2025",
    progress: bool = False,
) -> dict:
    """Figures of the clips in `df` (rows of the manifest): what the manifest says, and what the files hold.

    From the manifest: counts per genre, tempi, beats and onsets per clip, the share of beats shown,
    events without a beat a second, the share of events that no beat lies near (within one frame at
    the first rate), the share of each flag. From `clips` files: loudness (LUFS), peaks, sizes, and MV
    Align of each `rates` fps on `size`-pixel pictures for the clip's own music and for other clips'
    (chance), with onsets and motion peaks per clip and the flow between events (px a frame).
    Raises DataError for fewer than two clips, MediaError for an unreadable one.
    """
    from tqdm.auto import tqdm

    from vmas import loudness, media
    from vmas.flow import flow_magnitude
    from vmas.metrics import mv_align

    if len(df) < 2:
        raise DataError(f"a data card needs at least 2 clips, got {len(df)}")
    rows = pick(df, clips)
    audio, levels, peaks, sizes = [], [], [], []
    flows: dict[float, list[np.ndarray]] = {fps: [] for fps in rates}
    for row in tqdm(rows.itertuples(), total=len(rows), desc="data card", unit="clip", disable=not progress):
        path = Path(folder, str(row.path))
        wav = media.read_audio(path, sample_rate)
        audio.append(mv_align.audio_peaks(wav, sample_rate))
        levels.append(loudness.loudness(wav, sample_rate))
        peaks.append(float(np.abs(wav).max()))
        sizes.append(path.stat().st_size)
        for fps in rates:
            flows[fps].append(flow_magnitude(media.read_frames(path, fps, size), cache=False))
    aligned = {}
    for fps in rates:
        result = mv_align.score(audio, [mv_align.video_peaks(f, fps, version) for f in flows[fps]], fps, version)
        aligned[result.name] = {
            "truth": result.mean,
            "chance": result.chance,
            "ratio": result.mean / result.chance if result.chance > 0 else None,
            "clips": result.n,
            "onsets_per_clip": result.audio_peaks,
            "motion_peaks_per_clip": result.video_peaks,
            "median_flow_px": float(np.median(np.concatenate(flows[fps]))),
        }
    return {
        **manifest_card(df, 1 / rates[0]),
        "measured_clips": len(rows),
        "loudness_lufs": _spread(levels),
        "peak": _spread(peaks),
        "kilobytes": _spread(np.array(sizes) / 1000),
        "mv_align": aligned,
    }


def manifest_card(df: "pd.DataFrame", near_s: float = 1 / 9.6) -> dict:
    """The part of `data_card` that the manifest alone gives; `near_s` is how near a beat an event must lie."""
    seconds = df["onsets_s"].map(lambda x: max(x) if len(x) else 0.0).max()
    far = total = 0
    for row in df.itertuples():
        events, beats = np.asarray(row.video_events_s, float), np.asarray(row.beats_s, float)
        total += len(events)
        far += int((np.abs(events[:, None] - beats).min(axis=1, initial=np.inf) >= near_s).sum()) if len(events) else 0
    tempi = df["tempo_bpm"].to_numpy()
    count, edges = np.histogram(np.asarray(tempi, float), bins=np.arange(50, 115, 5))
    shown = [bool(s) for row in df["shown"] for s in row]
    return {
        "clips": len(df),
        "splits": df["split"].value_counts(sort=False).to_dict(),
        "genres": {g: int((df["genre"] == g).sum()) for g in GENRES},
        "tempo_bpm": _spread(tempi),
        "tempo_histogram": {f"{a:.0f}-{b:.0f}": int(c) for a, b, c in zip(edges[:-1], edges[1:], count, strict=True)},
        "tempo_by_genre": {g: float(t) for g, t in df.groupby("genre")["tempo_bpm"].mean().round(1).items()},
        "beats_per_clip": float(df["beats_s"].map(len).mean()),
        "notes_at_distinct_times_per_clip": float(df["onsets_s"].map(len).mean()),
        "beats_shown": float(np.mean(shown)) if shown else float("nan"),
        "events_per_clip": total / len(df),
        "events_without_beat_per_s": float(df["spurious_s"].map(len).mean() / max(seconds, 1e-9)),
        "events_far_from_any_beat": far / total if total else float("nan"),
        **{f"share_{flag}": float(df[flag].mean()) for flag in FLAGS},
        "share_duplicate": float(df["duplicate_of"].notna().mean()),
    }


def _middle(path: Path) -> np.ndarray:
    from vmas import media

    info = media.probe(path)
    one = 1 / info.fps
    return media.read_frames(path, info.fps, None, start_s=max(0.0, info.duration_s / 2), duration_s=one)[0]


def _spread(x) -> dict[str, float]:
    x = np.asarray(x, float)
    return {"mean": float(x.mean()), "min": float(x.min()), "max": float(x.max())}


def _labelled(frame: np.ndarray, text: str) -> "Image":
    from PIL import Image, ImageDraw

    h, w = frame.shape[:2]
    out = Image.new("RGB", (w, h + LABEL), "white")
    out.paste(Image.fromarray(frame), (0, 0))
    ImageDraw.Draw(out).text((3, h + 2), text, fill="black")
    return out


def _grid(pictures: "list[Image]", columns: int) -> "Image":
    from PIL import Image

    if not pictures:
        raise DataError("a contact sheet needs at least one clip")
    w, h, gap = pictures[0].width, pictures[0].height, 4
    columns = min(columns, len(pictures))
    lines = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * (w + gap) - gap, lines * (h + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        out.paste(picture, ((i % columns) * (w + gap), (i // columns) * (h + gap)))
    return out
