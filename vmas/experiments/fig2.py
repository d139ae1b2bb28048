"""Figure 2, video-beat alignment: eq. 3 step by step on one clip, and each step marked against the corpus's truth.

The paper draws the scheme and never measures it: how many of the detected music beats are notes, how many of the
video beats are what the picture shows, how often the two meet, and how often they would meet by chance. On the
procedural corpus all of it is known by construction.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import paths, records, versions
from vmas.beats import LITERAL, BeatOptions, align
from vmas.config import Profile, sha256
from vmas.errors import DataError
from vmas.metrics import intervals, mv_align
from vmas.records import Record, Row

if TYPE_CHECKING:
    from vmas.features import SplitFeatures

TARGET = "fig2"
TITLE = "Figure 2. Video-beat alignment"
SPLIT = "test"
MUSIC, PICTURE, WEIGHTS = "P_a against the notes", "P_v against the picture's events", "P_av"
SHARE, MEAN, NOTED, EVENT = "share of weight 1", "mean weight", "weight 1 at a note", "weight 1 at a shown beat"
NEAR_S = 0.05  # how near a note an onset must lie, s; an event one frame
LATE, REACH_S = "late by, ms", 0.15  # beats further from every true time are wrong, not late
SHOWN = 4  # beats that the drawn clip shows at least
SHUFFLES = 10
MOVES_PX = 0.1  # pixels per frame from which MV Align (2025) calls it motion
FLOWS = {"farneback": "Farneback", "dis": "DIS"}
OPTIONS: dict[str, BeatOptions] = {
    "eq. 3 as written": LITERAL,
    "O > 0 required": BeatOptions(),
    "O > 0.1 px required": BeatOptions(threshold=MOVES_PX),
    "δ = 2": BeatOptions(delta=2),
    "δ = 10": BeatOptions(delta=10),
    "mid frame": BeatOptions(flow_time="mid"),
    "mid frame, O > 0.1 px": BeatOptions(flow_time="mid", threshold=MOVES_PX),
    "weight on the onset": BeatOptions(place="onset"),
    "weight dilated by δ": BeatOptions(place="dilated"),
}
# δ, threshold and flow_time of the video beats that are marked.
MARKED = (
    (2, 0.0, "end"), (5, 0.0, "end"), (10, 0.0, "end"), (5, MOVES_PX, "end"), (5, 0.0, "mid"), (5, MOVES_PX, "mid")
)  # fmt: skip
DRAWN = "O > 0 required"  # the option whose steps the figure shows
STAGES = ("beats", "flow", "fig2")


@dataclass(frozen=True)
class Truth:
    """What is so by construction, seconds from the clip's start: notes, jumps and cuts of the picture, shown beats."""

    notes: np.ndarray
    events: np.ndarray
    shown: np.ndarray


def truth(row: Any) -> Truth:
    """Of one row of the manifest."""
    shown = np.asarray(row.beats_s, float)[np.asarray(row.shown, bool)]
    return Truth(np.asarray(row.onsets_s, float), np.asarray(row.video_events_s, float), shown)


def near(found: np.ndarray, true: np.ndarray, within_s: float) -> float:
    """Share of the times `found` that have one of `true` within `within_s` seconds; NaN where nothing was found."""
    found, true = np.asarray(found, float), np.asarray(true, float)
    if not found.size:
        return float("nan")
    if not true.size:
        return 0.0
    return float((np.abs(found[:, None] - true).min(1) <= within_s + 1e-9).mean())


def lateness(found: np.ndarray, true: np.ndarray, reach_s: float = REACH_S) -> float:
    """Mean of found - nearest true, ms, over the times `found` that have a true one within `reach_s`; NaN for none."""
    found, true = np.asarray(found, float), np.asarray(true, float)
    if not found.size or not true.size:
        return float("nan")
    gap = found[:, None] - true
    gap = gap[np.arange(len(found)), np.abs(gap).argmin(1)]
    gap = gap[np.abs(gap) <= reach_s + 1e-9]
    return float(1000 * gap.mean()) if gap.size else float("nan")


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the figure depends on."""
    from vmas.corpus import data_sha256

    p = profile
    same = (p.clip, p.codec.frame_rate, p.eval.clips, p.eval.bootstrap, seed)
    return sha256(
        TARGET,
        data_sha256(p),
        *same,
        [repr(o) + (f", lead={o.lead}" if o.lead else "") for o in OPTIONS.values()],
        versions.of(*STAGES),
    )


def plan(profile: Profile, seed: int = 0) -> list[tuple[str, Any, bool]]:
    """(what, where, already there) of the one thing that is needed: the test clips."""
    folder = paths.corpus(profile.name)
    return [(f"corpus, split {SPLIT}", folder, (folder / f"{SPLIT}.parquet").is_file())]


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    workers: int | None = None,
) -> Record:
    """Eq. 3 on the test clips. `seed` is the bootstrap's. Raises DataError in profile paper."""
    from vmas.corpus import data_sha256, make
    from vmas.features import load_split

    start = time.monotonic()
    if profile.name == "paper":
        raise DataError("fig2 reads the procedural corpus, whose beats are known; web videos have no such truth")
    say(f"corpus: {SPLIT}")
    make(paths.corpus(profile.name), profile, splits=(SPLIT,), workers=workers, progress=progress)
    split = load_split(profile, SPLIT, progress=progress)
    n = min(profile.eval.clips or len(split), len(split))
    say("eq. 3 with every option, both flows")
    flows = {name: _flow(split, method, n) for method, name in FLOWS.items()}
    truths = [truth(row) for row in split.manifest.iloc[:n].itertuples()]
    boot = {"seed": seed, "n": profile.eval.bootstrap}
    found = [*_steps(split.beats[:n], flows, truths, profile, boot)]
    found += _weights(split.beats[:n], flows["Farneback"], truths, profile, boot)
    why = "RAFT's weights (torchvision, raft_large) are not there; Farneback and DIS need none."
    raft = Row("RAFT", f"{SPLIT}: {PICTURE}", "precision", "up", status="unavailable", note=why)
    prov = records.provenance(
        f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}",
        time.monotonic() - start,
        sha256(profile),
        data_sha256(profile),
        "",
    )
    extra = {"note": f"{profile.note} {why}", "clip": _clip(split, truths, profile)}
    return Record(TARGET, profile.name, TITLE, key(profile, seed), (*found, raft), prov, extra)


def _flow(split: "SplitFeatures", method: str, n: int) -> np.ndarray:
    """float32 [n,T-1]; what the profile's own method gave is in the features already."""
    from vmas.flow import flow_magnitude

    if method == "farneback":
        return np.asarray(split.flow[:n])
    return np.stack([flow_magnitude(np.asarray(f), method) for f in split.frames[:n]])


def _row(system: str, part: str, metric: str, values, profile: Profile, boot: dict, chance=None, up="up") -> Row:
    s = intervals.summarise(np.asarray(values, float), **boot)
    ci = (s.lo, s.hi) if np.isfinite([s.lo, s.hi]).all() else None
    return Row(system, f"{SPLIT}: {part}", metric, up, s.mean, ci, s.n, 1, chance, None, profile.status)


def _steps(P_a, flows: dict[str, np.ndarray], truths: list[Truth], profile: Profile, boot: dict) -> Iterable[Row]:
    """Precision and recall of P_a, and of P_v by flow and δ. Chance: the same beats against other clips."""
    rate, frame_s = profile.codec.frame_rate, 1 / profile.clip.fps
    others = mv_align.derangements(len(truths), SHUFFLES)

    def marks(system: str, part: str, beats: list[np.ndarray], true: list[np.ndarray], within: float):
        for metric, a, b in (("precision", beats, true), ("recall", true, beats)):
            got = [near(x, y, within) for x, y in zip(a, b, strict=True)]
            shuffled = [near(a[i], b[o[i]], within) for o in others for i in range(len(a))]
            yield _row(system, part, metric, got, profile, boot, float(np.nanmean(shuffled)))
        late = [lateness(x, y) for x, y in zip(beats, true, strict=True)]
        yield _row(system, part, LATE, late, profile, boot, up="none")
        yield _row(system, part, "beats per clip", [len(x) for x in beats], profile, boot, up="none")

    notes = [t.notes for t in truths]
    yield from marks("librosa's onsets", MUSIC, [np.flatnonzero(p) / rate for p in P_a], notes, NEAR_S)
    events = [t.events for t in truths]
    for name, flow in flows.items():
        for delta, px, at in MARKED:
            option = BeatOptions(delta=delta, threshold=px, flow_time=at)
            P_v = align(flow, P_a, profile.clip.fps, rate, option).P_v
            beats = [np.flatnonzero(p) / rate for p in P_v]
            more = (f", O > {px:g} px" if px else "") + (", mid frame" if at == "mid" else "")
            yield from marks(f"{name}, δ = {delta}{more}", PICTURE, beats, events, frame_s)


def _weights(P_a, flow, truths: list[Truth], profile: Profile, boot: dict) -> list[Row]:
    """What each reading of eq. 3 makes of the same beats. Chance: the pictures of other clips."""
    rate, fps = profile.codec.frame_rate, profile.clip.fps
    others = mv_align.derangements(len(truths), SHUFFLES)
    out = []
    for name, option in OPTIONS.items():
        P_av = align(flow, P_a, fps, rate, option).P_av
        ones = [np.flatnonzero(w == 1) / rate for w in P_av]
        chance = np.mean([(align(flow[o], P_a, fps, rate, option).P_av == 1).mean() for o in others])
        out += [
            _row(name, WEIGHTS, SHARE, (P_av == 1).mean(1), profile, boot, float(chance), "none"),
            _row(name, WEIGHTS, MEAN, P_av.mean(1), profile, boot, up="none"),
            _row(
                name,
                WEIGHTS,
                NOTED,
                [near(x, t.notes, NEAR_S) for x, t in zip(ones, truths, strict=True)],
                profile,
                boot,
            ),
            _row(
                name,
                WEIGHTS,
                EVENT,
                [near(x, t.shown, 1 / fps) for x, t in zip(ones, truths, strict=True)],
                profile,
                boot,
            ),
        ]
    return out


def _clip(split: "SplitFeatures", truths: list[Truth], profile: Profile) -> dict[str, Any]:
    """Every step of the first clip that shows at least `SHOWN` beats (else of the first)."""
    i = next((k for k, t in enumerate(truths) if len(t.shown) >= SHOWN), 0)
    option = OPTIONS[DRAWN]
    got = align(split.flow[i], split.beats[i], profile.clip.fps, profile.codec.frame_rate, option)
    wav = np.abs(split.waveform(i))[: profile.num_tokens * profile.codec.hop].reshape(profile.num_tokens, -1).max(1)
    return {
        "id": split.ids[i],
        "frame_rate": profile.codec.frame_rate,
        "delta": option.delta,
        "alpha": option.alpha,
        "envelope": wav.round(4).tolist(),
        "O": got.O.round(4).tolist(),
        "P_a": np.flatnonzero(got.P_a).tolist(),
        "P_v": np.flatnonzero(got.P_v).tolist(),
        "met": np.flatnonzero(got.P_av == 1).tolist(),
        "notes": truths[i].notes.tolist(),
        "events": truths[i].events.tolist(),
        "shown": truths[i].shown.tolist(),
    }


def figure(record: Record):
    """Drawn by `vmas.report.alignment`."""
    from vmas.report import alignment

    return alignment.steps(record, f"{SPLIT}: {WEIGHTS}", SHARE)
