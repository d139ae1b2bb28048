"""Where does the video help, and do the weights of eq. 3 sit there?

Eq. 4 gives the tokens of common beats more weight, so that the decoder learns to put its beats where the picture has
them (section 4.4). That can work only where the picture says something about those tokens. What it says is measured
here without training anything: the clips' own music costs more nats when the decoder sees another video of the same
genre (other movements, the same kind of scene), and this gain is counted token by token. Then every reading of eq. 3
is asked which share of the gain its weights of 1 cover, beside their share of the tokens.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.beats import BeatOptions, align
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.experiments import fig2, follow_stimuli, likelihood, sweep
from vmas.metrics import intervals
from vmas.records import Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmas.features import SplitFeatures

TARGET = "placement"
TITLE = "Where does the video help, and do the weights sit there?"
SPLIT, PARTNER_SEED = "test", 71
STAGES = ("codec", "encoder", "decoder", "beats", "flow", "placement")
BASELINE, OURS = "Autoregressive baseline", "VMAs"
# Readings of eq. 3, and what they are held against: all music onsets, and the truth that the corpus keeps.
OPTIONS: dict[str, BeatOptions] = {
    "eq. 3": BeatOptions(),
    "δ = 2": BeatOptions(delta=2),
    "δ = 10": BeatOptions(delta=10),
    "mid frame": BeatOptions(flow_time="mid"),
    "dilated": BeatOptions(place="dilated"),
    "on the onset": BeatOptions(place="onset"),
    "on the onset, 60 ms earlier": BeatOptions(place="onset", lead=3),
}
EVERY, TRUE = "every music onset", "shown beats (truth)"
TOKENS, GAIN, TIMES = "share of tokens", "share of the gain", "gain a token, times the mean"
EFFECTIVE, WEIGHT = "effective share of tokens", "share of L_g's weight on weight 1"
ALPHAS = (0.05, 0.3)  # the paper's, and that of profile mini
REACH = 15  # tokens to either side that the curves show
SHIFTS = 10  # by which the weights are moved along the clip, for chance


@dataclass(frozen=True)
class Part:
    """A reading's tokens of weight 1, bool [N,t_a]."""

    name: str
    ones: np.ndarray


def key(profile: Profile, seed: int = 0, split: str | None = None) -> str:
    """Hash of everything the numbers depend on."""
    from vmas.corpus import data_sha256

    about = {k: v for k, v in plain(profile).items() if k not in ("note", "train", "sampling")}
    weights = [_weights(profile, seed), _sha(_baseline(profile))]
    options = {name: dataclasses.asdict(o) for name, o in OPTIONS.items()}
    same = (options, ALPHAS, REACH, seed, versions.of(*STAGES))
    return sha256(TARGET, about, data_sha256(profile), weights, split or SPLIT, *same)


def _weights(profile: Profile, seed: int) -> dict[str, str]:
    return checkpoint.shas(paths.checkpoints(profile.name), "codec", f"vmas-seed{seed}")


def _baseline(profile: Profile):
    """The folder of Table 5's baseline, which was trained without weights; None where it is not committed."""
    folder = paths.checkpoints(profile.name) / f"table5-baseline-seed{sweep.PUBLISHED}"
    return folder if (folder / checkpoint.MANIFEST).is_file() else None


def _sha(folder) -> str:
    return checkpoint.read_manifest(folder)["sha256"] if folder else "absent"


def compute(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    split: str | None = None,
) -> Record:
    """The gain by the video on the clips of a split, and what every reading of eq. 3 covers of it.

    Of two models: Table 5's baseline, which no weight has steered, where its weights are there; and the checkpoint
    `vmas-seed<seed>`. `split` is the target's own (`SPLIT`) unless given; choices are made on "val". Raises DataError
    in profile paper.
    """
    from tqdm.auto import tqdm

    from vmas.codec import load_codec
    from vmas.corpus import data_sha256
    from vmas.features import load_split
    from vmas.generate import pick_device
    from vmas.model import VMAs

    start = time.monotonic()
    if profile.name == "paper":
        raise DataError("placement reads the procedural corpus, whose beats are known; web videos have no such truth")
    device = pick_device(device)
    root = pipeline.ensure(profile, seed, device, progress, say=say)
    clips = load_split(profile, split or SPLIT, load_codec(root / "codec"), progress)
    n = min(profile.eval.clips or len(clips), len(clips))
    found = parts(clips, profile, n)
    models = {BASELINE: _baseline(profile), OURS: root / f"vmas-seed{seed}"}
    rows, curves = [*_weighed(found[0], profile)], {}
    say("showing every clip's music beside its own video and another one of its genre")
    there = {name: folder for name, folder in models.items() if folder}
    with tqdm(total=2 * n * len(there), desc=TARGET, unit="clip", disable=None if progress else True) as bar:
        for name, folder in there.items():
            gain = gains(VMAs.from_pretrained(folder, device), clips, n, profile.sampling.batch_size, bar.update)
            rows += covered(name, gain, found, profile)
            curves[name] = {p.name: around(gain, p.ones, profile.eval.bootstrap) for p in _anchors(found)}
    command = f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}"
    shas = {name: _sha(folder) for name, folder in there.items()}
    took = time.monotonic() - start
    prov = records.provenance(command, took, sha256(profile), data_sha256(profile), sha256(shas), device)
    remark = (
        f"One trained model each ({BASELINE}: seed {sweep.PUBLISHED}; {OURS}: seed {seed}): what another training would"
        " say is not in the intervals."
    )
    extra = {"note": profile.note, "curves": curves, "frame_rate": profile.codec.frame_rate, "remarks": [remark]}
    extra["chance"] = "the same weights moved along the clip, the mean of ten places."
    named = [dataclasses.replace(r, dataset=f"{split or SPLIT}: {r.dataset}") for r in rows]
    return Record(TARGET, profile.name, TITLE, key(profile, seed, split), tuple(named), prov, extra)


def parts(split: "SplitFeatures", profile: Profile, n: int) -> list[Part]:
    """The tokens of weight 1 by every reading, all onsets, and those within a frame of a beat that is shown."""
    rate, fps = profile.codec.frame_rate, profile.clip.fps
    flow, P_a = np.asarray(split.flow[:n]), np.asarray(split.beats[:n])
    out = [Part(name, align(flow, P_a, fps, rate, o).P_av == 1) for name, o in OPTIONS.items()]
    true = np.zeros_like(P_a)
    near = round(rate / fps / 2)
    for ones, row in zip(true, split.manifest.iloc[:n].itertuples(), strict=True):
        for at in np.round(fig2.truth(row).shown * rate).astype(int):
            ones[max(0, at - near) : at + near + 1] = True
    return [*out, Part(EVERY, P_a), Part(TRUE, true)]


def _anchors(found: list[Part]) -> list[Part]:
    by = {p.name: p for p in found}
    return [by["eq. 3"], by["on the onset"]]


def gains(model, split: "SplitFeatures", n: int, size: int, done: Callable[[int], Any] = lambda _: None) -> np.ndarray:
    """Nats by which each token of each clip is likelier under its own video than under another of its genre.

    float64 [N,t_a], sum over codebooks; NaN for a clip whose genre has no other.
    """
    assert split.tokens is not None
    tokens = np.asarray(split.tokens[:n])
    X_v = likelihood.encoded(model, split.frames[:n], size)
    partner = follow_stimuli.other_video(split.genres[:n], True, PARTNER_SEED)
    own = likelihood.token_nats(model, tokens, X_v, size=size, done=done)
    other = likelihood.token_nats(model, tokens, X_v[partner], size=size, done=done)
    other[partner < 0] = np.nan
    return other - own


def ratio(above: np.ndarray, below: np.ndarray, n: int = 2000, seed: int = 0) -> intervals.MeanCI:
    """Σ above / Σ below over clips, [N] each, with its bootstrap interval over clips; clips with NaN are left out."""
    keep = ~np.isnan(above) & ~np.isnan(below)
    a, b = above[keep], below[keep]
    if len(a) < 2 or not b.sum():
        return intervals.MeanCI(float("nan"), float("nan"), float("nan"), len(a), int((~keep).sum()))
    times = intervals.resamples(len(a), n, seed)
    lo, hi = np.nanquantile((times @ a) / (times @ b), [0.025, 0.975])
    return intervals.MeanCI(float(a.sum() / b.sum()), float(lo), float(hi), len(a), int((~keep).sum()))


def covered(model: str, gain: np.ndarray, found: list[Part], profile: Profile) -> list[Row]:
    """Of each reading the share of tokens, the share of the gain, and how many times the mean a token of it gains.

    Chance is the same weights moved along the clip: what their number and spacing alone would cover.
    """
    boot, length = profile.eval.bootstrap, gain.shape[1]
    whole = gain.sum(1)
    moves = np.linspace(0, length, SHIFTS + 2)[1:-1].astype(int)
    out = []
    for p in found:
        ones = p.ones.astype(float)
        ones[np.isnan(whole)] = np.nan
        tokens = ratio(ones.sum(1), np.full(len(ones), float(length)), boot)
        share = ratio((gain * ones).sum(1), whole, boot)
        moved = np.mean([np.nansum(gain * np.roll(ones, m, axis=1)) for m in moves]) / np.nansum(whole)
        times = _times(gain, ones, boot)
        out += [
            _row(model, p.name, TOKENS, tokens, profile, "none"),
            _row(model, p.name, GAIN, share, profile, "up", float(moved)),
            _row(model, p.name, TIMES, times, profile, "up", float(moved / tokens.mean) if tokens.mean else None),
        ]
    return [r for r in out if r is not None]


def _times(gain: np.ndarray, ones: np.ndarray, n: int) -> intervals.MeanCI:
    """(gain a token of `ones`) / (gain a token), with its interval over clips."""
    keep = ~np.isnan(gain.sum(1))
    g, o = gain[keep], ones[keep]
    a, b, c = (g * o).sum(1), o.sum(1), g.sum(1)
    if len(g) < 2 or not b.sum() or not c.sum():
        return intervals.MeanCI(float("nan"), float("nan"), float("nan"), len(g), int((~keep).sum()))
    times = intervals.resamples(len(g), n)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (times @ a) / (times @ b) / ((times @ c) / (len(g) * g.shape[1]))
    lo, hi = np.nanquantile(drawn, [0.025, 0.975])
    value = a.sum() / b.sum() / (c.sum() / g.size)
    return intervals.MeanCI(float(value), float(lo), float(hi), len(g), int((~keep).sum()))


def around(gain: np.ndarray, ones: np.ndarray, n: int = 2000) -> list[dict[str, Any]]:
    """Mean gain of the tokens at every distance from those of weight 1, with intervals over clips.

    One dict a distance, -REACH to REACH tokens: offset, mean, lo, hi (nats a token).
    """
    length = gain.shape[1]
    keep = ~np.isnan(gain.sum(1))
    g, o = gain[keep], ones[keep].astype(float)
    out = []
    for k in range(-REACH, REACH + 1):
        first, second = max(0, -k), max(0, k)
        here = slice(first, max(first, length - second))
        there = slice(second, max(second, length - first))
        ci = ratio((g[:, there] * o[:, here]).sum(1), o[:, here].sum(1), n)
        out.append({"offset": k} | {m: v if np.isfinite(v) else None for m, v in
                                    (("mean", ci.mean), ("lo", ci.lo), ("hi", ci.hi))})  # fmt: skip
    return out


def _weighed(part: Part, profile: Profile) -> Iterator[Row]:
    """What α does to eq. 4 over Σw: the share of its weight that lies on weight 1, and how many tokens it is worth.

    The effective share is (Σw)² / (N Σw²), Kish's: with so many tokens of equal weight a mean would vary as much.
    """
    for alpha in ALPHAS:
        w = np.where(part.ones, 1.0, alpha)
        share = ratio((w * part.ones).sum(1), w.sum(1), profile.eval.bootstrap)
        times = intervals.resamples(len(w), profile.eval.bootstrap)
        first, second = w.sum(1), (w**2).sum(1)
        lo, hi = np.quantile((times @ first) ** 2 / (times @ second) / w.size, [0.025, 0.975])
        kish = intervals.MeanCI(float(w.sum() ** 2 / (w**2).sum() / w.size), float(lo), float(hi), len(w), 0)
        for metric, ci in ((WEIGHT, share), (EFFECTIVE, kish)):
            row = _row("eq. 4 over Σw", f"α = {alpha:g}", metric, ci, profile, "none")
            if row is not None:
                yield row


def _row(part: str, system: str, metric: str, ci, profile: Profile, up: str, chance: float | None = None) -> Row | None:
    if not np.isfinite(ci.mean):
        return None
    interval = (ci.lo, ci.hi) if np.isfinite([ci.lo, ci.hi]).all() else None
    return Row(system, part, metric, up, ci.mean, interval, ci.n, 1, chance, None, profile.status)


def figure(record: Record) -> "Figure":
    """The gain around the weights, and what each reading covers (`vmas.report.placement`)."""
    from vmas.report import placement

    return placement.figure(record)
