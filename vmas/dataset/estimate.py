"""What a build would cost, before it is begun: `vmas dataset build --dry-run`, and from what a smaller build took
(its `timings.json`): `vmas dataset extrapolate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmas.dataset.manifest import Video
from vmas.dataset.stages import SCREENED, Options, segment_starts
from vmas.errors import DataError, VmasError

if TYPE_CHECKING:
    import pandas as pd

PROBED = 50  # files that are opened where the manifest gives no durations
DISCO_10M, DISCO_MV_HOURS = 15.3e6, 47_000.0  # videos to screen (Table 1), hours of music kept (section 3)
KEPT = 2.2e6 / DISCO_10M  # share of videos that the paper's filter let pass (sections 1 and 3)
# Bytes of a second: H.264 per pixel and frame (crf 23, music videos), FLAC per sample, arrays of a clip.
MP4_BYTES, FLAC_BYTES, ARRAY_BYTES = 0.035, 1.2, 10_000
# Assumed, not measured here: seconds of one current data-centre GPU per hour of kept music or per video. They give
# the order of magnitude only; `timings.json` of a first run of 1000 videos is the better guide.
GPU_S_PER_HOUR = {"demucs": 60.0, "clap": 10.0, "encodec": 15.0, "raft": 720.0}
GPU_S_PER_VIDEO = {"clip": 0.05}
# Seconds of one core per hour of video that is looked at, and per hour of clips that are made: measured on an AMD EPYC
# (AVX2) with videos of 640 x 360 and the paper's clips; genre and tokens with the mini profile's models
# (`bench_dataset.py --only rates`, benchmarks/results/dataset.json). "video_hours_per_core_hour" of a first run's
# `timings.json` says what another machine needs.
CORE_S_LOOKED = {"probe": 0.1, "decode": 8.7, "similarity": 0.1, "duplicates": 2.3}
CORE_S_MADE = {
    "segments": 109.0,
    "vocals": 158.0,
    "genre": 6.0,
    "tokens": 12.1,
    "beats": 308.0,
    "onsets": 3.2,
    "shards": 29.8,
}
STAGE_OF = {"clip": "similarity", "demucs": "vocals", "clap": "genre", "encodec": "tokens", "raft": "beats"}
FOR = {"decode": ("similarity", "duplicates"), "onsets": ("beats",)}  # whose pictures and music beats they are
ALWAYS = ("probe", "segments", "shards")


def estimate(videos: Sequence[Video], options: Options) -> str:
    """Counts, hours, core-hours, GPU-hours and GB as text. Durations are the manifest's, else those of a few files."""
    here = [v for v in videos if v.path and Path(v.path).is_file()]
    lengths = [v.duration for v in videos if v.duration]
    said = f"durations of {len(lengths)} rows"
    if not lengths:
        step = max(1, len(here) // PROBED)
        lengths = [s for v in here[::step][:PROBED] if (s := _seconds(v))]
        said = f"durations of {len(lengths)} files"
    p = options.profile
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    clips = sum(len(segment_starts(Video("x", "", "x"), s, options)) for s in lengths) / max(len(lengths), 1)
    share = KEPT if options.runs("similarity") else 1.0
    total = round(len(videos) * clips)
    kept = round(total * share)
    hours = kept * p.clip.seconds / 3600
    costs = expected(options, mean)
    gigabytes = costs.bytes_hour * hours / 1e9
    core, gpu = (
        costs.core_s_video * len(videos) + costs.core_s_hour * hours,
        costs.gpu_s_video * len(videos) + costs.gpu_s_hour * hours,
    )
    lines = [
        f"videos        {len(videos)} ({len(here)} on this machine), {len(videos) * mean / 3600:.1f} h ({said})",
        f"clips         {total} of {p.clip.seconds:g} s before the filter",
        f"kept          {kept} clips, {hours:.1f} h" + (f", at the paper's share of {KEPT:.0%}" if share < 1 else ""),
        f"shards        {-(-kept // options.shard_size)} of {options.shard_size} clips, {gigabytes:.1f} GB",
        f"core-hours    {core / 3600:.1f} (rates of one AMD EPYC core, videos of 640 x 360)",
        f"GPU-hours     {gpu / 3600:.1f} (assumed rates, not measured here)" if gpu else "GPU-hours     none",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Costs:
    """Of a build on one core or GPU: seconds per video that is looked at (`*_video`), seconds per hour of kept music
    (`*_hour`), bytes per hour of kept music."""

    core_s_video: float
    gpu_s_video: float
    core_s_hour: float
    gpu_s_hour: float
    bytes_hour: float


def expected(options: Options, seconds: float) -> Costs:
    """Costs before anything is built, of videos `seconds` long, from the rates above: the cores' were measured, a GPU's
    are assumed."""
    p = options.profile
    models = {"clip": options.runs("similarity") and options.frames == "clip"}
    models |= {"demucs": options.runs("vocals") and options.vocals == "demucs"}
    models |= {"clap": options.runs("genre") and options.genre == "clap"}
    models |= {"encodec": options.runs("tokens") and p.codec.kind == "encodec"}
    models |= {"raft": options.runs("beats") and p.clip.flow_method == "raft"}
    used = [m for m, yes in models.items() if yes]
    on_gpu = {STAGE_OF[m] for m in used}

    def core_s(stages: dict[str, float]) -> float:
        run = (k for k in stages if k in ALWAYS or any(map(options.runs, FOR.get(k, (k,)))))
        return sum(stages[k] for k in run if k not in on_gpu)

    # Flow of another size than the clip's pictures has them decoded once more.
    again = CORE_S_MADE["segments"] if options.runs("beats") and p.clip.flow_size != p.clip.img_size else 0.0
    size = p.clip.fps * p.clip.img_size**2 * MP4_BYTES + p.clip.sample_rate * FLAC_BYTES  # of a second
    return Costs(
        core_s(CORE_S_LOOKED) * seconds / 3600,
        sum(GPU_S_PER_VIDEO.get(m, 0.0) for m in used),
        core_s(CORE_S_MADE) + again,
        sum(GPU_S_PER_HOUR.get(m, 0.0) for m in used),
        3600 * (size + ARRAY_BYTES / p.clip.seconds),
    )


def measured(timings: dict[str, Any], source="timings") -> Costs:
    """Costs from `timings.json`. Stages that it names under "gpu" count as GPU time, the others as core time.

    Raises DataError naming `source` when something is missing, or nothing was kept."""
    try:
        seconds, gpu = {k: float(s) for k, s in timings["seconds"].items()}, set(timings["gpu"])
        videos, hours, size = int(timings["videos"]), float(timings["clip_hours"]), int(timings["bytes"])
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"{source}: not the timings of a build ({type(e).__name__}: {e}); build it again") from e
    if videos < 1 or not hours > 0:
        raise DataError(f"{source}: a build that kept nothing says nothing of the costs")

    def total(screen: bool, on_gpu: bool) -> float:
        return sum(s for k, s in seconds.items() if (k in SCREENED) == screen and (k in gpu) == on_gpu)

    return Costs(
        total(True, False) / videos,
        total(True, True) / videos,
        total(False, False) / hours,
        total(False, True) / hours,
        size / hours,
    )


def read_timings(path) -> Costs:
    """Costs from the file, or from the folder of a dataset. Raises DataError."""
    path = Path(path) / "timings.json" if Path(path).is_dir() else Path(path)
    try:
        return measured(json.loads(path.read_text(encoding="utf-8")), path)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file; it is written by 'vmas dataset build'") from e
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: not readable: {e}") from e


def extrapolate(
    costs: Costs,
    videos: float = DISCO_10M,
    kept_hours: float = DISCO_MV_HOURS,
    nodes: Sequence[int] = (1, 8, 64),
    cores: int = 64,
    gpus: int = 8,
    efficiency: float = 1.0,
) -> "pd.DataFrame":
    """One row per number of nodes: core-hours, GPU-hours, TB on disk (the shards alone) and wall time in days.

    Cores and GPUs of a node work side by side on different clips, so the slower of the two sets the wall time.
    `efficiency` is the share of the ideal speed that many nodes reach. Nothing else is counted: downloads, a disk or
    network that is slower than the cores, and waiting for machines come on top. Raises DataError without workers, or
    for GPU time on nodes without a GPU.
    """
    import pandas as pd

    if cores < 1 or gpus < 0 or not 0 < efficiency <= 1 or min(nodes, default=0) < 1:
        raise DataError("an estimate needs at least one node and core, and an efficiency above 0 and up to 1")
    core = (costs.core_s_video * videos + costs.core_s_hour * kept_hours) / 3600
    gpu = (costs.gpu_s_video * videos + costs.gpu_s_hour * kept_hours) / 3600
    if gpu and not gpus:
        raise DataError("the models of that build ran on a GPU: give the nodes at least one")
    days = max(core / cores, gpu / gpus if gpus else 0.0) / 24 / efficiency
    size = costs.bytes_hour * kept_hours / 1e12
    rows = [{"nodes": n, "core-hours": core, "GPU-hours": gpu, "TB": size, "days": days / n} for n in nodes]
    return pd.DataFrame(rows)


def _seconds(video: Video) -> float:
    from vmas import media

    try:
        return max(0.0, media.probe(video.path).duration_s - video.start)
    except VmasError:
        return 0.0
