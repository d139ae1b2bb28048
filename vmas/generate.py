"""`vmas generate`: music for real videos, each of exactly its own length.

A video longer than the clips of training is cut into windows of one clip that overlap by half a
second; the windows are generated in batches and joined by equal-power cross-fades. (The paper only
generates single clips of 10 s.) A shorter one is continued by its last picture and the music cut.
"""

import contextlib
import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmas import checkpoint as checkpoints
from vmas import paths
from vmas.config import ClipConfig
from vmas.errors import CheckpointError, MediaError, UsageError, VmasError

OVERLAP_S = 0.5
MAX_SECONDS = 1800.0  # waveform and loudness pass of half an hour take about 2 GB
SUFFIX = ".vmas.mp4"


@dataclass(frozen=True)
class Result:
    """What became of one video. `error` is one line, or None; `note` is worth telling although it worked."""

    video: Path
    output: Path | None = None
    seconds: float = 0.0
    error: str | None = None
    note: str = ""
    skipped: bool = False


@dataclass
class Summary:
    """Results in the order of the command line."""

    results: list[Result] = field(default_factory=list)

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if r.error]

    @property
    def exit_code(self) -> int:
        """0 when every video got its music, else 1."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        good, bad = len(self.results) - len(self.failed), self.failed
        lines = [f"{good} of {len(self.results)} videos done" + (f", {len(bad)} failed:" if bad else "")]
        return "\n".join(lines + [f"  {r.error}" for r in bad])


# ---------------------------------------------------------------- windows


def window_starts(frames: int, clip_frames: int, overlap: int) -> list[int]:
    """First frame of each window. All but the last advance by clip_frames - overlap; the last ends with the video."""
    if frames <= clip_frames:
        return [0]
    step = clip_frames - overlap
    return [*range(0, frames - clip_frames, step), frames - clip_frames]


def _windows(images: Iterator[np.ndarray], starts: list[int], clip_frames: int) -> Iterator[np.ndarray]:
    """Cut a stream of pictures into uint8 [T,H,W,3] windows, holding no more than one window of them."""
    held: list[np.ndarray] = []
    first = 0  # index of held[0]
    for start in starts:
        held, first = held[start - first :], start
        while len(held) < clip_frames:
            image = next(images, None)
            held.append(held[-1] if image is None else image)
        yield np.stack(held)


def join(music: np.ndarray, window: np.ndarray, at: int, end: int, fade: int) -> int:
    """Write `window` float32 [n] into `music` from sample `at`; returns where it ends.

    What is there already reaches to `end`; the two are cross-faded (equal power) over the `fade`
    samples before it, and the new window holds from there on.
    """
    window = window[: len(music) - at]
    fade = min(fade, end - at)
    if fade > 0:
        angle = (np.arange(fade, dtype=np.float32) + 0.5) * (np.pi / 2 / fade)
        k = end - fade - at
        music[end - fade : end] *= np.cos(angle)
        music[end - fade : end] += np.sin(angle) * window[k : k + fade]
    music[end : at + len(window)] = window[end - at :]
    return at + len(window)


def music_for(
    model: Any, path, seconds: float, seed: int = 0, progress: Callable[[float], None] | None = None
) -> np.ndarray:
    """Music float32 [round(seconds·sample_rate)] for the first `seconds` of a video, as the model made it.

    `progress` is told the share that is done. The result depends on the model, the pictures and
    the seed, not on the batch size. Raises MediaError.
    """
    from vmas import media

    clip: ClipConfig = model.profile.clip
    batch = model.profile.sampling.batch_size
    n = round(seconds * clip.sample_rate)
    frames = max(1, int(np.ceil(seconds * clip.fps - 1e-6)))
    overlap = min(int(np.ceil(OVERLAP_S * clip.fps)), clip.num_frames // 2)
    starts = window_starts(frames, clip.num_frames, overlap)
    fade = round(overlap / clip.fps * clip.sample_rate)
    music = np.zeros(n, np.float32)
    end = 0
    with contextlib.closing(media.iter_frames(path, clip.fps, clip.img_size, duration_s=frames / clip.fps)) as images:
        windows = _windows(images, starts, clip.num_frames)
        for i in range(0, len(starts), batch):
            some = starts[i : i + batch]
            stack = np.stack([next(windows) for _ in some])
            tell = None if progress is None else _share(progress, i, len(some), len(starts))
            waves = model.generate_waveform(stack, seed=seed, first=i, progress=tell)
            for start, wave in zip(some, waves, strict=True):
                at = round(start / clip.fps * clip.sample_rate)
                end = join(music, np.asarray(wave, np.float32), at, end, fade)
    if progress is not None:
        progress(1.0)
    return music


def _share(progress: Callable[[float], None], first: int, size: int, total: int) -> Callable[[int, int], None]:
    """Turn (steps done, steps) of one batch of windows into the share of all windows."""
    return lambda done, steps: progress((first + size * done / max(steps, 1)) / total)


# ---------------------------------------------------------------- which file goes where


def output_path(video: Path, out: Path | None, folder: bool) -> Path:
    """The output of one video: beside it, in the folder `out`, or the file `out`."""
    name = video.stem + SUFFIX
    if out is None:
        return video.with_name(name)
    return out / name if folder else out


def plan_outputs(videos: list[Path], out: Path | None, named_as_folder: bool = False) -> list[Path | VmasError]:
    """An output path per video, or what is wrong with it. Raises UsageError when `out` cannot be meant so.

    `named_as_folder`: it was given with a slash at its end, which a Path does not keep.
    """
    from vmas.media import CONTAINERS

    folder = False
    if out is not None:
        kind = out.suffix.lower()
        folder = out.is_dir() or named_as_folder or (not kind and not out.is_file())
        if not folder and len(videos) > 1:
            raise UsageError(f"-o {out} names one file for {len(videos)} videos; name a folder")
        if not folder and kind not in CONTAINERS:
            raise UsageError(
                f"-o {out}: unknown kind of video file; end it in {', '.join(CONTAINERS)} or name a folder"
            )
    inputs = {v.resolve() for v in videos}
    taken: dict[Path, Path] = {}
    plan: list[Path | VmasError] = []
    for video in videos:
        target = output_path(video, out, folder)
        real = target.resolve()
        if real in inputs:
            plan.append(MediaError(target, "would overwrite an input", "name another place with -o"))
        elif real in taken:
            plan.append(MediaError(video, f"its output {target} is already that of {taken[real]}", "generate it alone"))
        else:
            taken[real] = video
            plan.append(target)
    return plan


# ---------------------------------------------------------------- the command


class _Bar:
    """Progress in seconds of music over all videos."""

    def __init__(self, total: float, shown: bool):
        from tqdm import tqdm

        form = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of music [{elapsed}<{remaining}]"
        disable = None if shown else True  # None: hidden when stderr is not a terminal
        self.bar = tqdm(total=total, disable=disable, bar_format=form, file=sys.stderr)

    def to(self, seconds: float, name: str) -> None:
        self.bar.set_description_str(name, refresh=False)
        self.bar.update(max(0.0, min(seconds, self.bar.total) - self.bar.n))

    def say(self, line: str, file=None) -> None:
        self.bar.write(line, file=file or sys.stdout)

    def close(self) -> None:
        self.bar.close()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pick_device(device: str) -> str:
    """`auto` is cuda where there is one, else cpu. Raises UsageError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UsageError(f"device {device!r} is not available here; use auto or cpu") from e
    return device


def _load(folder: Path, device: str):
    from vmas.model import VMAs

    return VMAs.from_pretrained(folder, device)


def _fingerprint(video: Path, weights: str, seed: int, duration: float | None) -> str:
    """What an output depends on, in short; stored in the file so that a second run knows that it is done."""
    from vmas import __version__

    parts = (checkpoints.file_sha256(video), weights, seed, duration, __version__)
    return "vmas " + hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _is_done(target: Path, mark: str) -> bool:
    from vmas import media

    try:
        return bool(mark) and target.is_file() and media.probe(target).comment == mark
    except MediaError:
        return False


ENCODINGS = 3  # times that an output's sound is encoded at most, more quietly each time


def _length(video: Path, duration: float | None) -> float:
    from vmas import media

    seconds = media.video_seconds(video, duration)
    if seconds > MAX_SECONDS:
        minutes = round(MAX_SECONDS / 60)
        hint = "cut it, or give --duration"
        raise MediaError(video, f"is {seconds / 60:.0f} min long, at most {minutes} min fit at once", hint)
    return seconds


def _one(model, video: Path, target: Path, seconds: float, seed, duration, mark, progress) -> str:
    """Make one output; returns a note (empty when all is well)."""
    from vmas import loudness, media

    rate = model.profile.clip.sample_rate
    target.parent.mkdir(parents=True, exist_ok=True)
    music = music_for(model, video, seconds, seed, progress)
    if not np.isfinite(music).all():
        raise MediaError(video, "the model produced NaN or infinite samples", "check the checkpoint")
    finished = loudness.finish(music, rate)
    for _ in range(ENCODINGS):
        media.mux(video, finished[None], rate, target, limit_s=duration, comment=mark)
        peak = float(np.abs(media.read_audio(target, rate)).max(initial=0.0))
        if peak <= 1:
            break
        finished = finished * (loudness.CEILING / peak)  # a lossy codec overshoots: what is played must not clip
    return "" if finished.any() else "the model produced silence"


def generate_videos(
    videos,
    out=None,
    checkpoint=None,
    profile: str = "mini",
    seed: int = 0,
    duration: float | None = None,
    device: str = "auto",
    verbose: bool = False,
    progress: bool = True,
    model: Any = None,
    debug: bool = False,
) -> Summary:
    """Give each of `videos` generated music, in a new file; its pictures are copied, not encoded again.

    Args:
        out: a file (for one video), a folder, or None for `<stem>.vmas.mp4` beside each video.
        checkpoint: folder of a trained model; None is the profile's committed one.
        duration: seconds from the start of each video to keep; None is all of it.
        model: a loaded `vmas.model.VMAs` instead of `checkpoint`.
        debug: print the traceback of every video that failed.

    A video that fails costs one line and an entry of the summary, and the others go on. An output that
    the same video, seed and checkpoint already made is left as it is, so a run that was stopped goes on
    when it is started again; a stopped output leaves nothing behind.
    Raises UsageError for options that make no sense and CheckpointError for the model, before any work.
    """
    videos = [Path(v) for v in ([videos] if isinstance(videos, (str, os.PathLike)) else videos)]
    if not videos:
        raise UsageError("no video given")
    if duration is not None and not 0 < duration < float("inf"):
        raise UsageError(f"--duration must be a positive number of seconds, got {duration:g}")
    plan = plan_outputs(videos, None if out is None else Path(out), str(out).endswith(os.sep))
    weights = ""
    folder = Path(checkpoint) if checkpoint is not None else paths.checkpoints(profile) / "vmas-seed0"
    if model is None:
        if checkpoint is None and not (folder / checkpoints.MANIFEST).is_file():
            what = f"profile {profile} has no trained model here"
            raise CheckpointError(
                folder, what, f"./reproduce.sh table3 --profile {profile} makes it, or give --checkpoint"
            )
        checkpoints.verify(folder, "vmas")
        for codec in (folder / "codec", folder.parent / "codec"):
            if (codec / checkpoints.MANIFEST).is_file():
                checkpoints.verify(codec, "codec")
                break
        weights = checkpoints.file_sha256(folder / checkpoints.MANIFEST)
        device = pick_device(device)

    lengths: list[float] = []
    for i, (video, target) in enumerate(zip(videos, plan, strict=True)):
        lengths.append(0.0)
        if isinstance(target, Path):
            try:
                lengths[i] = _length(video, duration)
            except VmasError as e:
                plan[i] = e
    summary = Summary()
    bar = _Bar(sum(lengths), progress)
    before = 0.0
    try:
        for video, target, seconds in zip(videos, plan, lengths, strict=True):
            if isinstance(target, VmasError):
                summary.results.append(Result(video, error=str(target)))
                bar.say(f"error: {target}", sys.stderr)
                continue
            began = time.perf_counter()
            try:
                mark = _fingerprint(video, weights, seed, duration) if weights else ""
                if _is_done(target, mark):
                    result = Result(video, target, seconds, skipped=True)
                    bar.say(f"{target}: already made from this video, seed and checkpoint")
                else:
                    bar.to(before, video.name)
                    model = _load(folder, device) if model is None else model

                    def tell(share, before=before, seconds=seconds, name=video.name):
                        bar.to(before + share * seconds, name)

                    note = _one(model, video, target, seconds, seed, duration, mark, tell)
                    result = Result(video, target, seconds, note=note)
                    bar.say(f"{target}: {seconds:.2f} s of music" + (f" ({note})" if note else ""))
            except CheckpointError:
                raise
            except Exception as e:  # whatever is wrong with one video, the others go on
                if debug:
                    traceback.print_exc()
                result = Result(video, error=_reason(video, e))
                bar.say(f"error: {result.error}", sys.stderr)
            summary.results.append(result)
            before += seconds
            bar.to(before, video.name)
            if verbose and not result.error and not result.skipped:
                took = time.perf_counter() - began
                bar.say(
                    f"  {took:.1f} s, {seconds / took:.2f}x real time, peak memory {peak_memory_bytes() / 1e9:.2f} GB"
                )
    except KeyboardInterrupt:
        bar.close()
        done = len(summary.results) - len(summary.failed)
        print(
            f"stopped: {done} of {len(videos)} videos are done, nothing half-written is left;"
            " the same command goes on with the rest",
            file=sys.stderr,
        )
        raise
    finally:
        bar.close()
    if len(videos) > 1:
        print(summary)
    return summary


def _reason(video: Path, e: BaseException) -> str:
    """One line for a failure."""
    if isinstance(e, MediaError):
        return str(e)
    if isinstance(e, VmasError):
        return f"{video}: {e}"
    if isinstance(e, OSError):
        return str(MediaError(e.filename or video, e.strerror or str(e)))
    if isinstance(e, MemoryError) or "out of memory" in str(e).lower():
        return str(MediaError(video, "not enough memory", "give --duration, or close other programs"))
    return f"{video}: unexpected {type(e).__name__}: {' '.join(str(e).split())} (--debug shows where)"
