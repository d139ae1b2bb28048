"""Make the corpus as mp4 files with a manifest: parallel, resumable, clip by clip."""

import dataclasses
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmas.config import CorpusConfig, Profile, sha256
from vmas.corpus.spec import SPLITS, ClipSpec, clip_id, parse_id, sample_spec
from vmas.errors import DataError, UsageError, VmasError, nearest

if TYPE_CHECKING:
    import pandas as pd

CORPUS_VERSION = 1
MAX_FAILED = 0.05  # share of clips that may fail before a run stops


def data_sha256(profile: Profile) -> str:
    """What defines the data: the knobs, the clip length and the version of the generator."""
    knobs = {k: v for k, v in dataclasses.asdict(profile.corpus).items() if k not in SPLITS}
    return sha256(CORPUS_VERSION, knobs, profile.clip.seconds, profile.clip.sample_rate)


def render_clip(name: str, cfg: CorpusConfig, seconds: float, sample_rate: int):
    """(spec, frames uint8 [T,H,W,3], audio float32 [samples]) of a clip by its id alone."""
    from vmas.corpus.scene import render_frames
    from vmas.corpus.sound import render_audio

    spec = sample_spec(*parse_id(name), cfg, seconds)
    return spec, render_frames(spec), render_audio(spec, sample_rate)


def _write(name: str, out: str, cfg: CorpusConfig, seconds: float, sample_rate: int) -> str | None:
    """Make one file unless it is there; returns what went wrong, or None."""
    from vmas.media import write_clip

    path = Path(out) / parse_id(name)[0] / f"{name}.mp4"
    if path.is_file():
        return None
    try:
        spec, frames, audio = render_clip(name, cfg, seconds, sample_rate)
        write_clip(path, frames, spec.fps, audio[None], sample_rate, crf=cfg.crf)
    except (VmasError, ValueError, RuntimeError) as e:
        return f"{name}: {e}"
    return None


def _row(spec: ClipSpec) -> dict:
    row = dataclasses.asdict(spec)
    for gone in ("notes", "palette", "fps", "size", "seconds", "amount"):
        row.pop(gone)
    row = {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}
    return {**row, "path": f"{spec.split}/{spec.id}.mp4"}


def make(
    out_dir,
    profile: Profile,
    splits: Iterable[str] | None = None,
    workers: int | None = None,
    ids: Iterable[str] | None = None,
    progress: bool = True,
) -> Path:
    """Write the clips of `splits` (default: all with a count above 0), or only those of `ids`.

    Files that are there stay; a changed config makes the folder's clips anew. A clip that fails is
    listed in `failures.json` and left out of the manifest; more than 5% stop the run.

    Returns: path of `manifest.parquet`, which covers every split made so far.
    Raises: UsageError for an unknown split or id, DataError when too many clips fail or the folder cannot be used.
    """
    import shutil

    import pandas as pd
    from tqdm.auto import tqdm

    out = Path(out_dir)
    counts = {s: getattr(profile.corpus, s) for s in SPLITS}
    chosen = list(splits) if splits is not None else [s for s in SPLITS if counts[s]]
    for s in chosen:
        if s not in SPLITS:
            raise UsageError(f"unknown split {s!r}: {nearest(s, SPLITS)}")
    names = list(ids) if ids is not None else [clip_id(s, i) for s in chosen for i in range(counts[s])]
    chosen = list(dict.fromkeys(parse_id(n)[0] for n in names)) or chosen
    key = data_sha256(profile)
    mark = out / "corpus.json"
    try:
        if mark.is_file() and json.loads(mark.read_text(encoding="utf-8"))["data_sha256"] != key:
            for s in SPLITS:
                shutil.rmtree(out / s, ignore_errors=True)
                (out / f"{s}.parquet").unlink(missing_ok=True)
        for s in chosen:
            (out / s).mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"data_sha256": key, "profile": profile.name}) + "\n", encoding="utf-8")
    except OSError as e:
        raise DataError(f"{out}: cannot be written: {e.strerror}; choose another folder") from e

    work = partial(
        _write,
        out=str(out),
        cfg=profile.corpus,
        seconds=profile.clip.seconds,
        sample_rate=profile.clip.sample_rate,
    )
    todo = [n for n in names if not (out / parse_id(n)[0] / f"{n}.mp4").is_file()]
    failures: list[str] = []
    if todo:
        bar = tqdm(total=len(todo), desc="corpus", unit="clip", disable=None if progress else True)
        with ProcessPoolExecutor(min(workers or os.cpu_count() or 1, len(todo))) as pool, bar:
            for problem in pool.map(work, todo, chunksize=4):
                bar.update()
                if problem:
                    failures.append(problem)
                    if len(failures) > max(1, MAX_FAILED * len(names)):
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise DataError(f"{out}: {len(failures)} clips failed, the first: {failures[0]}")
    bad = {f.split(":", 1)[0] for f in failures}
    if failures:
        _replace(out / "failures.json", json.dumps(failures, indent=1))
    for s in chosen if ids is None else ():
        rows = [_row(sample_spec(s, i, profile.corpus, profile.clip.seconds)) for i in range(counts[s])]
        _parquet(pd.DataFrame([r for r in rows if r["id"] not in bad]), out / f"{s}.parquet")
    if ids is not None:
        rows = [_row(sample_spec(*parse_id(n), profile.corpus, profile.clip.seconds)) for n in names if n not in bad]
        _parquet(pd.DataFrame(rows), out / "manifest.parquet")
        return out / "manifest.parquet"
    parts = [pd.read_parquet(out / f"{s}.parquet") for s in SPLITS if (out / f"{s}.parquet").is_file()]
    _parquet(pd.concat(parts, ignore_index=True), out / "manifest.parquet")
    return out / "manifest.parquet"


def load_manifest(folder) -> "pd.DataFrame":
    """One row per clip, in the order of split and index. Raises DataError when there is no corpus."""
    import pandas as pd

    path = Path(folder) / "manifest.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no corpus here; run 'vmas corpus make'")
    return pd.read_parquet(path)


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, path)


def _parquet(table: "pd.DataFrame", path: Path) -> None:
    aside = path.with_name(f".{path.name}")
    table.to_parquet(aside, index=False)
    os.replace(aside, path)
