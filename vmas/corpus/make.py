"""Make the corpus as mp4 files with a manifest: parallel, resumable, clip by clip."""

import dataclasses
import json
import os
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmas import config
from vmas.config import CorpusConfig, Profile, sha256
from vmas.corpus.spec import DRAWS, SPLITS, ClipSpec, clip_id, parse_id, sample_spec
from vmas.errors import DataError, UsageError, VmasError, nearest
from vmas.pools import cores, processes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CORPUS_VERSION = 2  # raised whenever the same knobs give other clips
MAX_FAILED = 0.05  # share of clips that may fail before a run stops
INLINE = 2  # so few clips are not worth starting processes for
MARK, MANIFEST, FAILURES = "corpus.json", "manifest.parquet", "failures.json"


def data_sha256(profile: Profile) -> str:
    """What defines the data: the knobs, the clip length and the version of the generator (not how many clips)."""
    knobs = {k: v for k, v in config.plain(profile.corpus).items() if k not in DRAWS}
    return sha256(CORPUS_VERSION, knobs, profile.clip.seconds, profile.clip.sample_rate)


def render_clip(
    name: str, cfg: CorpusConfig, seconds: float, sample_rate: int
) -> tuple[ClipSpec, "np.ndarray", "np.ndarray"]:
    """(spec, frames uint8 [T,H,W,3], audio float32 [samples]) of a clip by its id alone. Raises UsageError."""
    from vmas.corpus.scene import render_frames
    from vmas.corpus.sound import render_audio

    spec = sample_spec(*parse_id(name), cfg, seconds)
    return spec, render_frames(spec), render_audio(spec, sample_rate)


def make(
    out_dir,
    profile: Profile,
    splits: Iterable[str] | None = None,
    workers: int | None = None,
    ids: Iterable[str] | None = None,
    progress: bool = True,
) -> Path:
    """Write the clips of `splits` (default: all with a count above 0), or only those of `ids`.

    A clip is `<out_dir>/<split>/<id>.mp4` (H.264, AAC). Files that are there stay, so a stopped run
    goes on where it was; where the folder holds clips of another config they are made anew. A clip
    that fails is listed in `failures.json` and left out of the manifest; more than 5% stop the run.

    Returns: path of `manifest.parquet`, which covers every split made so far (`<split>.parquet` each).
    Raises: UsageError for an unknown split or id, DataError when too many clips fail or the folder
    cannot be used.
    """
    out = Path(out_dir)
    counts = {s: getattr(profile.corpus, s) for s in SPLITS}
    wanted = [s for s in SPLITS if counts[s]] if splits is None else list(splits)
    for s in wanted:
        if s not in SPLITS:
            raise UsageError(f"unknown split {s!r}: {nearest(s, SPLITS)}")
    whole = ids is None
    names = [clip_id(s, i) for s in wanted for i in range(counts[s])] if ids is None else list(dict.fromkeys(ids))
    groups: dict[str, list[int]] = {s: [] for s in wanted} if whole else {}
    for name in names:
        split, index = parse_id(name)
        groups.setdefault(split, []).append(index)
    try:
        _prepare(out, profile, groups)
        bad = _make_files(out, profile, names, workers, progress)
        for split, indices in groups.items():
            _write_split(out, split, indices, bad, profile, whole)
        return _write_manifest(out)
    except OSError as e:
        raise DataError(f"{e.filename or out}: cannot be written: {e.strerror}; choose another folder") from e


def load_manifest(folder) -> "pd.DataFrame":
    """One row per clip, in the order of split and index. Raises DataError when there is no readable manifest.

    Columns: id, split, index, seed, genre, tempo_bpm, key, mode, chords, beats_s, onsets_s, shown (per
    beat), video_events_s, spurious_s, programs, scene, scene_genre, texture, figure, cuts, the flags
    static, near_static, vocal and mismatched, sound_of, duplicate_of, caption, path (relative to `folder`).
    Times are in seconds.
    """
    import pandas as pd

    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: no corpus here; run 'vmas corpus make'")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable manifest; delete it and run 'vmas corpus make' again") from e


def _prepare(out: Path, profile: Profile, splits: Iterable[str]) -> None:
    """Make the folders; what they hold of another config goes first, so that no two corpora mix."""
    import shutil

    key = data_sha256(profile)
    mark = out / MARK
    if mark.is_file() and _marked(mark) != key:
        for s in SPLITS:
            shutil.rmtree(out / s, ignore_errors=True)
            (out / f"{s}.parquet").unlink(missing_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
    for s in splits:
        (out / s).mkdir(parents=True, exist_ok=True)
    if not mark.is_file() or _marked(mark) != key:
        _replace(mark, json.dumps({"data_sha256": key, "profile": profile.name}))


def _marked(mark: Path) -> str | None:
    try:
        return json.loads(mark.read_text(encoding="utf-8"))["data_sha256"]
    except (ValueError, KeyError, TypeError):
        return None


def _make_files(out: Path, profile: Profile, names: list[str], workers: int | None, progress: bool) -> set[str]:
    """Write the missing files; returns the ids that failed."""
    from tqdm.auto import tqdm

    todo = [n for n in names if not (out / _file(n)).is_file()]
    failures: dict[str, str] = {}
    (out / FAILURES).unlink(missing_ok=True)
    if not todo:
        return set()
    clip = profile.clip
    work = partial(_write, out=str(out), cfg=profile.corpus, seconds=clip.seconds, sample_rate=clip.sample_rate)
    workers = min(workers or cores(), len(todo))
    bar = tqdm(total=len(todo), desc="corpus", unit="clip", disable=None if progress else True)

    def note(results) -> None:
        for name, problem in zip(todo, results, strict=True):
            bar.update()
            if problem:
                failures[name] = problem
                if len(failures) > max(1, MAX_FAILED * len(names)):
                    first = next(iter(failures.values()))
                    raise DataError(f"{out}: {len(failures)} clips could not be made, the first: {first}")

    try:
        if workers == 1 or len(todo) <= INLINE:
            note(map(work, todo))
        else:
            try:
                with processes(workers, _worker) as pool:
                    note(pool.map(work, todo, chunksize=max(1, min(8, len(todo) // (4 * workers)))))
            except BrokenProcessPool as e:
                raise DataError(f"{out}: a worker process died (memory?); run again with fewer workers") from e
    finally:
        bar.close()
        if failures:
            _replace(out / FAILURES, json.dumps(failures, indent=1))
    return set(failures)


def _worker() -> None:
    import cv2

    cv2.setNumThreads(1)


def _write(name: str, out: str, cfg: CorpusConfig, seconds: float, sample_rate: int) -> str | None:
    """Make one file; returns what went wrong, or None."""
    from vmas.media import write_clip

    try:
        spec, frames, audio = render_clip(name, cfg, seconds, sample_rate)
        write_clip(Path(out) / _file(name), frames, spec.fps, audio[None], sample_rate, crf=cfg.crf)
    except (VmasError, ValueError, RuntimeError, MemoryError) as e:
        return f"{name}: {e}"
    return None


def _file(name: str) -> str:
    return f"{parse_id(name)[0]}/{name}.mp4"


def _row(spec: ClipSpec) -> dict:
    """What the manifest says of a clip; the notes and the drawing are left to the spec."""
    hidden = ("notes", "palette", "fps", "size", "seconds", "amount")
    row = {k: v for k, v in dataclasses.asdict(spec).items() if k not in hidden}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()} | {"path": _file(spec.id)}


def _write_split(out: Path, split: str, indices: list[int], bad: set[str], profile: Profile, whole: bool) -> None:
    """`<split>.parquet`: the rows of a whole split, or `indices` beside those that it already lists."""
    import pandas as pd

    path = out / f"{split}.parquet"
    if not whole and path.is_file():
        indices = sorted({*indices, *pd.read_parquet(path, columns=["index"])["index"].tolist()})
    specs = (sample_spec(split, i, profile.corpus, profile.clip.seconds) for i in sorted(indices))
    rows = [_row(s) for s in specs if s.id not in bad]
    if rows:
        _parquet(pd.DataFrame(rows), path)


def _write_manifest(out: Path) -> Path:
    import pandas as pd

    parts = [pd.read_parquet(out / f"{s}.parquet") for s in SPLITS if (out / f"{s}.parquet").is_file()]
    if not parts:
        raise DataError(f"{out}: no clip was made; give a split a count above 0")
    rows = [r for part in parts for r in part.to_dict("records")]  # concat warns of columns that are all empty
    _parquet(pd.DataFrame(rows), out / MANIFEST)
    return out / MANIFEST


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _parquet(table: "pd.DataFrame", path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        table.to_parquet(aside, index=False)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
