"""The stages of the builder as functions of one video or one clip; each has a version that its results are keyed by.

    screen: probe → similarity → duplicates (fingerprints)        one video
    make:   segments → vocals → genre → tokens → beats → shards   one clip of `clip.seconds`

Each of the two is cut in three steps, so that they can be placed apart: `SCREEN_STEPS` and `CLIP_STEPS` read files
on a CPU, run the models where there is a GPU, and finish on a CPU. A step takes the item, the state that the step
before left (a dict of plain values, arrays and bytes) and the tools.

A stage either returns, or raises `Rejected` (the video does not belong in the dataset), or fails with any other
exception (the builder records it, goes on, and stops when too many do).
"""

import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import paths
from vmas.config import Profile
from vmas.dataset.fingerprints import SOUND_RATE, SOUND_S, Prints, sound_words
from vmas.dataset.frames import EMBEDDERS, SIZE, FrameEmbedder, build_embedder, embedder_key, similarity, watch
from vmas.dataset.genre import TAGGERS, GenreTagger, build_tagger, tagger_key
from vmas.dataset.manifest import Video
from vmas.dataset.shards import JSON, KEY
from vmas.dataset.splits import QUALITIES, correspondence
from vmas.dataset.vocals import SEPARATORS, Separator, build_separator, separator_key
from vmas.errors import UsageError, nearest
from vmas.metrics.similarity import THRESHOLD

if TYPE_CHECKING:
    from vmas.codec import Codec
    from vmas.flow import FlowEstimator

# Raised whenever a stage's results change.
VERSIONS = {
    "probe": 1,
    "similarity": 1,
    "duplicates": 3,
    "segments": 1,
    "vocals": 1,
    "genre": 1,
    "tokens": 1,
    "beats": 1,
    "shards": 1,
}
SPLITS_VERSION = 2
SCREEN = ("probe", "similarity", "duplicates")
MAKE = ("segments", "vocals", "genre", "tokens", "beats", "shards")
DECODE, ONSETS = "decode", "onsets"  # timed on their own: the cores' part of "similarity" and of "beats"
SCREENED = (*SCREEN, DECODE, "splits")  # what is timed of whole videos; everything else is of clips
OPTIONAL = ("similarity", "duplicates", "vocals", "genre", "tokens", "beats")
SILENCE = 1e-3  # peak below which a clip holds no music
SLACK_S = 0.05  # a clip may lack so much at its end: containers round durations


class Rejected(Exception):
    """A video or clip that does not belong in the dataset, and by which stage's score."""

    def __init__(self, stage: str, reason: str, score: float = math.nan):
        super().__init__(f"{stage}: {reason}")
        self.stage, self.reason, self.score = stage, reason, score


@dataclass(frozen=True)
class Options:
    """What a build depends on, beside the manifest.

    skip              stages of OPTIONAL that are left out
    threshold         largest frame similarity, exclusive (paper: 0.7); infinite: all pass
    frames            "cheap" or "clip", `vmas.dataset.frames`
    vocals            "classic" or "demucs", `vmas.dataset.vocals`
    genre             "tagger" or "clap", `vmas.dataset.genre`
    val, test         videos held out (paper: 1120 and 1086); None = as many as the folder's build, in a new one 0
    quality           what they are chosen by: "similarity" (least) or "correspondence", `vmas.dataset.splits`
    clips_per_video   at most so many, spread over the video; 0 = all
    shard_size        clips that a shard is planned for
    checkpoints       folder of `codec/` and `tagger/`; None = the profile's own
    """

    profile: Profile
    skip: tuple[str, ...] = ()
    threshold: float = THRESHOLD
    frames: str = "cheap"
    vocals: str = "classic"
    genre: str = "tagger"
    val: int | None = None
    test: int | None = None
    quality: str = "similarity"
    clips_per_video: int = 0
    shard_size: int = 256
    checkpoints: str | None = None

    def __post_init__(self) -> None:
        for s in self.skip:
            if s not in OPTIONAL:
                raise UsageError(f"stage {s!r} cannot be left out: {nearest(s, OPTIONAL)}")
        if self.shard_size < 1 or min(*self.held, self.clips_per_video) < 0:
            raise UsageError("shard size must be 1 or more; held-out videos and clips per video 0 or more")
        if not (0 <= self.threshold <= 1 or self.threshold == math.inf):
            raise UsageError(f"threshold must be a frame similarity from 0 to 1, or inf, got {self.threshold:g}")
        known = {"frames": EMBEDDERS, "vocals": SEPARATORS, "genre": TAGGERS, "quality": QUALITIES}
        for name, values in known.items():
            if (value := getattr(self, name)) not in values:
                raise UsageError(f"unknown {name} {value!r}: {nearest(value, values)}")
        if (self.val or self.test) and self.quality == "similarity" and not self.runs("similarity"):
            raise UsageError(
                "held-out videos are chosen by their frame similarity, which is left out: give --quality correspondence"
            )

    def check(self, videos: int) -> None:
        """Raise UsageError when so many videos leave none to train on."""
        val, test = self.val or 0, self.test or 0
        if 0 < videos <= val + test:
            raise UsageError(
                f"{val} videos for validation and {test} for testing of {videos} leave none to train on: give a smaller"
                " --val or --test"
            )

    @property
    def held(self) -> tuple[int, int]:
        """Videos held out for validation and for testing."""
        return self.val or 0, self.test or 0

    @property
    def scores_correspondence(self) -> bool:
        return self.quality == "correspondence" and any(self.held)

    def splits(self) -> list[int]:
        """What a key holds of the choice of held-out videos, where there is one."""
        return [SPLITS_VERSION] if any(self.held) else []

    def runs(self, stage: str) -> bool:
        return stage not in self.skip

    def models(self) -> list[str]:
        """Stages whose work a GPU takes over where there is one."""
        heavy = {
            "similarity": self.frames == "clip",
            "vocals": self.vocals == "demucs",
            "genre": self.genre == "clap",
            "tokens": True,
            "beats": self.profile.clip.flow_method == "raft",
        }
        return [s for s, yes in heavy.items() if yes and self.runs(s)]


@dataclass
class Tools:
    """The models of a build, each loaded when it is first used; the stage at work and the seconds each took."""

    options: Options
    device: str = "cpu"
    stage: str = "probe"
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def embedder(self) -> FrameEmbedder:
        return build_embedder(self.options.frames, self.device)

    @cached_property
    def separator(self) -> Separator:
        return build_separator(self.options.vocals, self.device)

    @cached_property
    def tagger(self) -> GenreTagger:
        return build_tagger(self.options.genre, self._checkpoints / "tagger", self.device)

    @cached_property
    def raft(self) -> "FlowEstimator":
        from vmas.flow import RAFTFlow

        return RAFTFlow(device=self.device)

    @cached_property
    def codec(self) -> "Codec":
        from vmas.codec import load_codec, pretrained_codec

        cfg = self.options.profile.codec
        codec = pretrained_codec(cfg) if cfg.weights else load_codec(self._checkpoints / "codec")
        return codec.to(self.device)

    @property
    def _checkpoints(self) -> Path:
        o = self.options
        return Path(o.checkpoints) if o.checkpoints else paths.checkpoints(o.profile.name)

    def keys(self) -> dict[str, str]:
        """Stage → what identifies its model, from the files alone: nothing is loaded, no GPU is touched. Raises
        WeightsUnavailable or CheckpointError when one is not there."""
        from vmas.codec import stored_sha256

        o = self.options
        of: dict[str, Callable[[], str]] = {
            "similarity": lambda: embedder_key(o.frames),
            "vocals": lambda: separator_key(o.vocals),
            "genre": lambda: tagger_key(o.genre, self._checkpoints / "tagger"),
            "tokens": lambda: stored_sha256(o.profile.codec, self._checkpoints / "codec"),
        }
        return {stage: key() for stage, key in of.items() if self.options.runs(stage)}

    @contextmanager
    def timed(self, stage: str, part: str = "") -> Iterator[None]:
        """The seconds of the block count for the stage, or for a `part` of it with a name of its own: what a model of
        that stage takes on a GPU must not hold the cores' part."""
        self.stage, start, name = stage, time.perf_counter(), part or stage
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take_seconds(self) -> dict[str, float]:
        taken, self.seconds = self.seconds, {}
        return taken


State = dict[str, Any]


def look(video: Video, state: State, tools: Tools) -> State:
    """`known`: usable seconds and size; `frames`: the pictures that are compared; `prints`: their hashes. Raises
    Rejected."""
    from vmas import media

    o = tools.options
    with tools.timed("probe"):
        info = media.probe(video.path)
        if not info.has_video:
            raise Rejected("probe", "no moving pictures")
        if not info.has_audio:
            raise Rejected("probe", "no sound")
        seconds = info.duration_s - video.start
        seconds = min(seconds, video.duration) if video.duration else seconds
        if seconds + SLACK_S < o.profile.clip.seconds:
            raise Rejected("probe", f"shorter than a clip of {o.profile.clip.seconds:g} s", seconds)
        # Where the sound ends first, the clips after its end are not begun; the last before it is filled with silence.
        length, usable = o.profile.clip.seconds, seconds
        if info.audio_end_s is not None:
            usable = min(seconds, math.ceil((info.audio_end_s - SLACK_S - video.start) / length) * length)
        if usable <= 0:
            raise Rejected("probe", f"its sound ends at {info.audio_end_s:.2f} s, before the part begins")
    known = {"seconds": round(usable, 6), "width": info.width, "height": info.height}
    out: State = {"known": known, "seconds": seconds}
    compared, duplicates = o.runs("similarity"), o.runs("duplicates")
    if compared or duplicates:
        with tools.timed("similarity" if compared else "duplicates", DECODE):
            size = EMBEDDERS[o.frames].size if compared else SIZE
            seen = watch(video.path, size, video.start, seconds, prints=duplicates)
        out |= {"frames": seen.frames} if compared else {}
        out |= {"prints": (seen.times, seen.hashes, seen.inner)} if duplicates else {}
    return out


def judge(video: Video, state: State, tools: Tools) -> State:
    """`known` with the frame similarity. Raises Rejected from the threshold on."""
    if "frames" not in state:
        return state
    with tools.timed("similarity"):
        score = round(similarity(state["frames"], tools.embedder), 6)
    if reason := too_similar(score, tools.options):
        raise Rejected("similarity", reason, score)
    rest = {k: v for k, v in state.items() if k != "frames"}
    return rest | {"known": state["known"] | {"similarity": score}}


def too_similar(score: float, options: Options) -> str:
    """Why a video of this frame similarity is left out, "" where it stays."""
    return "" if score < options.threshold else f"frame similarity not below {options.threshold:g}"


def fingerprint(video: Video, state: State, tools: Tools) -> State:
    """What is known of a video that passes: its id, usable seconds, size, similarity, fingerprints, quality."""
    from vmas import media

    known, seconds = {"id": video.id, **state["known"]}, state["seconds"]
    if "prints" in state:
        with tools.timed("duplicates"):
            part = min(SOUND_S, seconds)
            wav = media.read_audio(video.path, SOUND_RATE, start_s=video.start, duration_s=part)[0]
            times, hashes, inner = state["prints"]
            known |= Prints(times, hashes, sound_words(wav), inner).pack()
    if tools.options.scores_correspondence:
        with tools.timed("splits"):
            known["quality"] = round(_correspondence(video, seconds, tools.options.profile), 6)
    return known


def _correspondence(video: Video, seconds: float, p: Profile) -> float:
    """`splits.correspondence` of the clip in the middle of a video; Farneback's flow, as MV Align has it."""
    from vmas import media
    from vmas.metrics.mv_align import audio_peaks

    clip, start = p.clip, video.start + max(0.0, (seconds - p.clip.seconds) / 2)
    frames = media.read_frames(video.path, clip.fps, clip.flow_size, start, clip.seconds)
    wav = media.read_audio(video.path, clip.sample_rate, start_s=start, duration_s=clip.seconds)
    return correspondence(_flow(frames, "farneback"), audio_peaks(wav, clip.sample_rate), clip.fps, clip.seconds)


SCREEN_STEPS = (look, judge, fingerprint)


def screen(video: Video, tools: Tools) -> State:
    """All three steps at once. Raises Rejected."""
    state: State = {}
    for step in SCREEN_STEPS:
        state = step(video, state, tools)
    return state


def segment_starts(video: Video, seconds: float, options: Options) -> list[float]:
    """Starts in s of a video's clips: one after the other from its start, the rest that fills none left out."""
    length = options.profile.clip.seconds
    n = int((seconds + SLACK_S) / length)
    chosen = range(n)
    if 0 < options.clips_per_video < n:
        chosen = [round((k + 0.5) * n / options.clips_per_video - 0.5) for k in range(options.clips_per_video)]
    return [round(video.start + k * length, 6) for k in chosen]


def clip_name(video: Video, start_s: float) -> str:
    """`<id>-<start in ms>`."""
    return f"{video.id}-{round(start_s * 1000):08d}"


@dataclass(frozen=True)
class Clip:
    """`seconds` of a video from `start_s` on, and what `fingerprint` found of the video."""

    video: Video
    start_s: float
    known: dict[str, Any]

    @property
    def name(self) -> str:
        return clip_name(self.video, self.start_s)


def decode(item: Clip, state: State, tools: Tools) -> State:
    """`meta`, `wav` float32 [1,N], `mp4` bytes and `flow`, or the `frames` of a flow that a model computes. Raises
    Rejected."""
    from vmas import media

    p, video, start_s = tools.options.profile, item.video, item.start_s
    clip = p.clip
    meta: dict[str, Any] = {
        "id": item.name,
        "video": video.id,
        "start_s": start_s,
        "seconds": clip.seconds,
        "fps": clip.fps,
        "artist": video.artist,
        "track": video.track,
        "url": video.url,
        "source": video.source,
        "licence": video.licence,
    }
    if "similarity" in item.known:
        meta["similarity"] = item.known["similarity"]
    with tools.timed("segments"):
        frames = media.read_frames(video.path, clip.fps, clip.img_size, start_s, clip.seconds)
        wav = media.read_audio(video.path, clip.sample_rate, start_s=start_s, duration_s=clip.seconds)
        wav = np.pad(wav, ((0, 0), (0, max(0, clip.num_samples - wav.shape[1]))))[:, : clip.num_samples]
        if (peak := float(np.abs(wav).max())) < SILENCE:
            raise Rejected("segments", "silent", peak)
    out: State = {"meta": meta, "wav": wav}
    with tools.timed("shards"):
        out["mp4"] = _mp4(frames, clip.fps, p.corpus.crf)
    if tools.options.runs("beats"):
        if clip.flow_size != clip.img_size:
            with tools.timed("beats", "segments"):
                frames = media.read_frames(video.path, clip.fps, clip.flow_size, start_s, clip.seconds)
        if clip.flow_method == "raft":
            return out | {"frames": frames}
        with tools.timed("beats"):
            out["flow"] = _flow(frames, clip.flow_method)
    return out


def infer(item: Clip, state: State, tools: Tools) -> State:
    """The models' part: `wav` becomes `pcm` int16 [N] without vocals; genre, `tokens` and RAFT's `flow`. Raises
    Rejected."""
    o, clip = tools.options, tools.options.profile.clip
    out, wav, meta = dict(state), state["wav"], dict(state["meta"])
    del out["wav"]
    if o.runs("vocals"):
        with tools.timed("vocals"):
            before = float(np.sum(wav.astype(np.float64) ** 2))
            wav = tools.separator(wav, clip.sample_rate)
            meta["removed"] = round(1 - float(np.sum(wav.astype(np.float64) ** 2)) / before, 6)
        if float(np.abs(wav).max()) < SILENCE:
            raise Rejected("vocals", "nothing is left without the vocals", meta["removed"])
    # What is stored is what everything after is computed from.
    out["pcm"] = np.round(np.clip(wav[0], -1, 1) * 32767).astype(np.int16)
    music = _music(out["pcm"])
    if o.runs("genre"):
        with tools.timed("genre"):
            scores = tools.tagger(music, clip.sample_rate)
            best = int(scores.argmax())
            meta |= {"genre": tools.tagger.labels[best], "genre_score": round(float(scores[best]), 6)}
    if o.runs("tokens"):
        with tools.timed("tokens"):
            out["tokens"] = _tokens(music, tools)
    if "frames" in out:
        with tools.timed("beats"):
            out["flow"] = tools.raft(out.pop("frames"))
    return out | {"meta": meta}


def finish(item: Clip, state: State, tools: Tools) -> State:
    """The clip as a sample of `vmas.dataset.shards`."""
    from vmas.beats import BeatOptions, align, onset_vector

    p = tools.options.profile
    sample: State = {KEY: item.name, JSON: state["meta"], "mp4": state["mp4"]}
    if "tokens" in state:
        sample["tokens.npy"] = state["tokens"]
    if "flow" in state:
        with tools.timed("beats", ONSETS):
            flow, rate = state["flow"], p.codec.frame_rate
            P_a = onset_vector(_music(state["pcm"]), p.clip.sample_rate, p.codec.hop, p.num_tokens)
            P_av = align(flow, P_a, p.clip.fps, rate, BeatOptions.from_config(p.align)).P_av
            sample |= {"flow.npy": flow, "beats.npy": P_a, "weights.npy": P_av}
    with tools.timed("shards"):
        sample["flac"] = _flac(state["pcm"], p.clip.sample_rate)
    return sample


CLIP_STEPS = (decode, infer, finish)


def _music(pcm: np.ndarray) -> np.ndarray:
    return pcm.astype(np.float32) / 32767


def _tokens(music: np.ndarray, tools: Tools) -> np.ndarray:
    """int16 [K,t_a] of float32 [N]."""
    import torch

    with torch.inference_mode():
        codes = tools.codec.encode(torch.from_numpy(music)[None, None].to(tools.device))
    return codes[0, :, : tools.options.profile.num_tokens].cpu().numpy().astype(np.int16)


def _flow(frames: np.ndarray, method: str) -> np.ndarray:
    """Mean flow magnitude float32 [T-1] as `vmas.flow` has it, Farneback's the same to the last bit everywhere."""
    from vmas.flow import flow_magnitude, repeatable

    return repeatable(frames) if method == "farneback" else flow_magnitude(frames, method, cache=False)


def _mp4(frames: np.ndarray, fps: float, crf: int) -> bytes:
    from vmas.media import write_clip

    with tempfile.TemporaryDirectory() as folder:
        return write_clip(Path(folder) / "clip.mp4", frames, fps, crf=crf).read_bytes()


def _flac(pcm: np.ndarray, sample_rate: int) -> bytes:
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()
