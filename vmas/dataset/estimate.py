"""What a build would cost, before it is begun: `vmas dataset build --dry-run`."""

from collections.abc import Sequence
from pathlib import Path

from vmas.dataset.manifest import Video
from vmas.dataset.stages import Options, segment_starts
from vmas.errors import VmasError

PROBED = 50  # files that are opened where the manifest gives no durations
KEPT = 2.2e6 / 15.3e6  # share of videos that the paper's filter let pass (sections 1 and 3)
# Bytes of a second: H.264 per pixel and frame (crf 23, music videos), FLAC per sample, arrays of a clip.
MP4_BYTES, FLAC_BYTES, ARRAY_BYTES = 0.035, 1.2, 10_000
# Assumed, not measured here: seconds of one current data-centre GPU per hour of kept music or per video. They give
# the order of magnitude only; `timings.json` of a first run of 1000 videos is the better guide.
GPU_S_PER_HOUR = {"demucs": 60.0, "clap": 10.0, "encodec": 15.0, "raft": 720.0}
GPU_S_PER_VIDEO = {"clip": 0.05}


def estimate(videos: Sequence[Video], options: Options) -> str:
    """Counts, hours, GPU-hours and GB as text. Durations are the manifest's, else those of a few files."""
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
    size = p.clip.fps * p.clip.img_size**2 * MP4_BYTES + p.clip.sample_rate * FLAC_BYTES
    gigabytes = kept * (size * p.clip.seconds + ARRAY_BYTES) / 1e9
    models = {"demucs": options.runs("vocals") and options.vocals == "demucs"}
    models |= {"clap": options.runs("genre") and options.genre == "clap"}
    models |= {"encodec": options.runs("tokens") and p.codec.kind == "encodec"}
    models |= {"raft": options.runs("beats") and p.clip.flow_method == "raft"}
    gpu = sum(GPU_S_PER_HOUR[m] * hours for m, used in models.items() if used)
    if options.runs("similarity") and options.frames == "clip":
        gpu += GPU_S_PER_VIDEO["clip"] * len(videos)
    lines = [
        f"videos        {len(videos)} ({len(here)} on this machine), {len(videos) * mean / 3600:.1f} h ({said})",
        f"clips         {total} of {p.clip.seconds:g} s before the filter",
        f"kept          {kept} clips, {hours:.1f} h" + (f", at the paper's share of {KEPT:.0%}" if share < 1 else ""),
        f"shards        {-(-kept // options.shard_size)} of {options.shard_size} clips, {gigabytes:.1f} GB",
        f"GPU-hours     {gpu / 3600:.1f} (assumed rates, not measured here)" if gpu else "GPU-hours     none",
    ]
    return "\n".join(lines)


def _seconds(video: Video) -> float:
    from vmas import media

    try:
        return max(0.0, media.probe(video.path).duration_s - video.start)
    except VmasError:
        return 0.0
