"""`vmas evaluate`: the same metrics on a user's own folders of videos and music."""

import time
from pathlib import Path

import numpy as np

from vmas import checkpoint, paths, records
from vmas.config import Profile, sha256
from vmas.errors import DataError, MediaError, VmasError
from vmas.experiments import evaluate
from vmas.records import Record

VIDEO = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac", *VIDEO)
MAX_SECONDS = 1800.0
SYSTEM = "Given music"


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Stem → file. Raises DataError when the folder is missing or two files share a stem."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    out: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file()):
        stem = path.stem.removesuffix(".vmas")  # what `vmas generate` writes
        if stem in out:
            raise DataError(f"{path} and {out[stem].name} both stand for {stem!r}; keep one")
        out[stem] = path
    return out


def pairs(videos: Path, audio: Path, reference: Path | None = None) -> list[tuple[Path, Path, Path]]:
    """(video, music, reference music) of every video, matched by name. Raises DataError naming what is missing."""
    pictures, music = _files(Path(videos), VIDEO), _files(Path(audio), AUDIO)
    truth = pictures if reference is None else _files(Path(reference), AUDIO)
    for what, found, where in (("music", music, audio), ("reference", truth, reference or videos)):
        missing = [s for s in pictures if s not in found]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(f"{where}: no {what} named {missing[0]}{more}, which {videos} has")
    if len(pictures) < 2:
        raise DataError(f"{videos}: FAD and shuffled chance need at least 2 videos, found {len(pictures)}")
    return [(pictures[s], music[s], truth[s]) for s in pictures]


def _limit(path: Path) -> float | None:
    """None: to the file's own end, for a given length would be filled up with stills or silence."""
    from vmas import media

    return MAX_SECONDS if media.probe(path).duration_s > MAX_SECONDS else None


def _music(path: Path, rate: int) -> np.ndarray:
    from vmas import media

    wav = media.read_audio(path, rate, duration_s=_limit(path))[0]
    if not wav.size:
        raise MediaError(path, "has no sound", "give a file with music")
    return wav


def evaluate_folders(profile: Profile, videos, audio, reference=None, progress: bool = True) -> Record:
    """FAD, KL and MV Align of the music in `audio` for the videos in `videos` (same names).

    The reference is the music in `reference`, else the videos' own soundtracks. FAD and KL come from the
    profile's embedder, so they compare with nothing measured by another one.
    Raises DataError (nothing to pair), MediaError (a broken file), CheckpointError (no embedder).
    """
    from tqdm.auto import tqdm

    from vmas import media
    from vmas.embedders.tagger import load_tagger
    from vmas.flow import flow_magnitude

    start = time.monotonic()
    found = pairs(videos, audio, reference)
    folder = paths.checkpoints(profile.name) / "tagger"
    if not (folder / checkpoint.MANIFEST).is_file():
        raise VmasError(
            f"profile {profile.name} has no embedder here: ./reproduce.sh table3 --profile {profile.name} makes it"
        )
    clip, version = profile.clip, profile.eval.mv_align_version
    peaks: dict[float, list[np.ndarray]] = {clip.fps: [], clip.dense_fps: []}
    ours, truth = [], []
    with tqdm(total=3 * len(found), desc="evaluate", unit="file", disable=None if progress else True) as bar:
        for video, one, ref in found:
            limit = _limit(video)
            for fps, into in peaks.items():
                frames = media.read_frames(video, fps, clip.flow_size, duration_s=limit)
                into += evaluate.video_peaks(flow_magnitude(frames, clip.flow_method, cache=False)[None], fps, version)
            ours.append(_music(one, clip.sample_rate))
            truth.append(_music(ref, clip.sample_rate))
            bar.update()
        with evaluate.Evaluator(load_tagger(folder), clip.sample_rate) as judge:
            got = judge.analyse(ours, bar.update)
            real = judge.analyse(truth, bar.update)
    ref_set = evaluate.Reference(real, None, None, peaks)
    name = Path(videos).name or "videos"
    table = evaluate.rows(SYSTEM, name, [got], ref_set, profile)
    sha = checkpoint.read_manifest(folder)["sha256"]
    files = sha256([[checkpoint.file_sha256(p) for p in three] for three in found])
    prov = records.provenance("vmas evaluate", time.monotonic() - start, sha256(profile), files, sha)
    return Record("evaluate", profile.name, f"Music for {name}", files, tuple(table), prov, {"note": profile.note})
