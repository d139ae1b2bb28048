"""Where does the video help, and do the weights of eq. 3 sit there?

Eq. 4 gives the tokens of common beats more weight, so that the decoder learns to put its beats where the picture has
them (section 4.4). That can work only where the decoder has something to learn from the picture. What it has learnt is
measured here without training anything: by how much a clip's own music is likelier under its own video than under
other videos of the same genre (other movements, the same kinds of scene), token by token. Then every reading of eq. 3
is asked which share of this gain its weights of 1 cover, beside their share of the tokens.

A token's gain is that of all its codebooks. Under the delay pattern codebook k of token t has heard the first k + 1
tokens' worth of the codebooks before it, so that most of the gain is the first codebook's.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vmas import checkpoint, config, paths, pipeline, records, versions
from vmas.beats import BeatOptions, align, earlier
from vmas.config import Profile, plain, sha256
from vmas.errors import DataError
from vmas.experiments import fig2, follow_stimuli, likelihood, sweep, table5
from vmas.metrics import intervals
from vmas.metrics.intervals import MeanCI
from vmas.records import Record, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmas.features import SplitFeatures

TARGET = "placement"
TITLE = "Where does the video help, and do the weights sit there?"
SPLIT = "test"
PARTNERS, PARTNER_SEED = 4, 71  # other videos of its genre that a clip is held against
STAGES = ("codec", "encoder", "decoder", "beats", "flow", "placement")
BASELINE, OURS = "Autoregressive baseline", "VMAs"
# Readings of eq. 3 as they are, then moved to where the gain is highest on the validation split.
OPTIONS: dict[str, BeatOptions] = {
    "eq. 3": BeatOptions(),
    "δ = 2": BeatOptions(delta=2),
    "δ = 10": BeatOptions(delta=10),
    "mid frame": BeatOptions(flow_time="mid"),
    "dilated": BeatOptions(place="dilated"),
    "on the onset": BeatOptions(place="onset"),
    "eq. 3, 120 ms earlier": BeatOptions(lead=6),
    "on the onset, 60 ms earlier": BeatOptions(place="onset", lead=3),
}
ANCHORS = ("eq. 3", "on the onset")
# Controls, all 60 ms earlier: the music alone; the onsets that no motion meets; those that another clip's motion meets.
EVERY, UNMET, FOREIGN = (
    f"{what}, 60 ms earlier" for what in ("every onset", "onsets without motion", "onsets at another clip's motion")
)
TRUE = "shown beats (truth)"
MEAN, TOKENS, GAIN = "gain, nats a token", "share of tokens", "net share of the gain"
TIMES = "gain a token, times the mean"
EFFECTIVE, WEIGHT = "effective share of tokens", "share of L_g's weight on weight 1"
ALPHAS = (0.05, 0.25, 0.3)  # the paper's, that of Table 5's `lead-.25`, that of profile mini
REACH = 15  # tokens to either side that the curves show
SHIFTS = 10  # by which the weights are moved along the clip, for chance
LOOKED, NOTES = 60, 2  # clips, and notes of each, that the codec's look-ahead is measured on
HEARD_S, LATE_S = (0.4, 4.5), 0.04  # where in the clip such a note lies, and how near its onset


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
    same = (options, ALPHAS, REACH, SHIFTS, PARTNERS, PARTNER_SEED, LOOKED, NOTES, seed, versions.of(*STAGES))
    return sha256(TARGET, about, data_sha256(profile), weights, split or SPLIT, *same)


def _weights(profile: Profile, seed: int) -> dict[str, str]:
    return checkpoint.shas(paths.checkpoints(profile.name), "codec", f"vmas-seed{seed}")


def _baseline(profile: Profile):
    """The committed weights of Table 5's baseline, which no weight of eq. 3 has steered; None where there are none."""
    (first,) = (c for c in table5.CONDITIONS if c.name == table5.REFERENCE)
    run = sweep.Run(table5.TARGET, first, config.changed(profile, first.overrides), sweep.PUBLISHED)
    return run.committed if sweep.ready(profile) else None


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
    codec = load_codec(root / "codec")
    clips = load_split(profile, split or SPLIT, codec, progress)
    n = min(profile.eval.clips or len(clips), len(clips))
    found = parts(clips, profile, n)
    models = {BASELINE: _baseline(profile), OURS: root / f"vmas-seed{seed}"}
    there = {name: folder for name, folder in models.items() if folder}
    rows, curves = weighed(found[0], profile), {}
    say("showing every clip's music beside its own video and others of its genre")
    total = (1 + PARTNERS) * n * len(there)
    with tqdm(total=total, desc=TARGET, unit="clip", disable=None if progress else True) as bar:
        for name, folder in there.items():
            gain = gains(VMAs.from_pretrained(folder, device), clips, n, profile.sampling.batch_size, bar.update)
            rows += covered(name, gain, found, profile)
            curves[name] = {
                p.name: around(gain, p.ones, profile.eval.bootstrap) for p in _anchors(found, clips, n, profile)
            }
    say("how far the codec looks ahead")
    ahead = lookahead(codec, clips, profile, n)
    command = f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}"
    shas = {name: _sha(folder) for name, folder in there.items()}
    took = time.monotonic() - start
    prov = records.provenance(command, took, sha256(profile), data_sha256(profile), sha256(shas), device)
    extra: dict[str, Any] = {
        "note": profile.note,
        "curves": curves,
        "frame_rate": profile.codec.frame_rate,
        "lookahead": ahead,
    }
    extra["remarks"] = _remarks(list(there), seed)
    extra["chance"] = "the same weights moved along the clip, the mean of ten places."
    named = [dataclasses.replace(r, dataset=f"{split or SPLIT}: {r.dataset}") for r in rows]
    return Record(TARGET, profile.name, TITLE, key(profile, seed, split), tuple(named), prov, extra)


def _remarks(there: list[str], seed: int) -> list[str]:
    seeds = {BASELINE: sweep.PUBLISHED, OURS: seed}
    told = "; ".join(f"{name}: seed {seeds[name]}" for name in there)
    out = [
        f"One trained model each ({told}): what another training would say is not in the intervals. The models differ"
        " by seed and stage 1, too, and are not to be compared with each other.",
        f"gain: log-likelihood of a token of the clip's own music under its own video, less that under the mean of"
        f" {PARTNERS} other videos of its genre. Single tokens lose as well: shares of the gain are net.",
    ]
    if BASELINE not in there:
        out.append(f"{BASELINE}: its weights are not among the checkpoints of this profile.")
    return out


def parts(split: "SplitFeatures", profile: Profile, n: int) -> list[Part]:
    """The tokens of weight 1 by every reading; the controls; those within half a frame of a beat that is shown."""
    rate, fps = profile.codec.frame_rate, profile.clip.fps
    flow, P_a = np.asarray(split.flow[:n]), np.asarray(split.beats[:n])
    out = [Part(name, align(flow, P_a, fps, rate, o).P_av == 1) for name, o in OPTIONS.items()]
    met = align(flow, P_a, fps, rate, BeatOptions(place="onset")).P_av == 1
    foreign = align(np.roll(flow, 1, axis=0), P_a, fps, rate, BeatOptions(place="onset")).P_av == 1
    out += [Part(name, earlier(x, 3)) for name, x in ((EVERY, P_a), (UNMET, P_a & ~met), (FOREIGN, foreign))]
    near = round(rate / fps / 2)
    return [*out, Part(TRUE, _shown(split, n, rate, P_a.shape[1], near))]


def _shown(split: "SplitFeatures", n: int, rate: float, length: int, near: int) -> np.ndarray:
    """bool [n,t_a]: tokens within `near` of the one in which a beat that the picture shows begins."""
    true = np.zeros((n, length), bool)
    for ones, row in zip(true, split.manifest.iloc[:n].itertuples(), strict=True):
        for at in np.floor(fig2.truth(row).shown * rate).astype(int):
            ones[max(0, at - near) : at + near + 1] = True
    return true


def _anchors(found: list[Part], split: "SplitFeatures", n: int, profile: Profile) -> list[Part]:
    by = {p.name: p for p in found}
    exact = _shown(split, n, profile.codec.frame_rate, profile.num_tokens, 0)
    return [*(by[name] for name in ANCHORS), Part(TRUE, exact)]


def gains(model, split: "SplitFeatures", n: int, size: int, done: Callable[[int], Any] = lambda _: None) -> np.ndarray:
    """Nats by which each token of each clip is likelier under its own video than under others of its genre.

    log p(own) - log mean p(other) over `PARTNERS` videos, each p that of all codebooks of a token given the music
    before it: float64 [N,t_a]; NaN for a clip whose genre has no other.
    """
    assert split.tokens is not None
    tokens = np.asarray(split.tokens[:n])
    X_v = likelihood.encoded(model, split.frames[:n], size)
    own = likelihood.token_nats(model, tokens, X_v, size=size, done=done)
    others = []
    for i in range(PARTNERS):
        partner = follow_stimuli.other_video(split.genres[:n], True, PARTNER_SEED + i)
        nats = likelihood.token_nats(model, tokens, X_v[partner], size=size, done=done)
        nats[partner < 0] = np.nan
        others.append(-nats)
    with np.errstate(invalid="ignore"):  # NaN of a clip without partners
        return -own - (np.logaddexp.reduce(others, axis=0) - np.log(PARTNERS))


def _bootstrap(value: Callable[[np.ndarray], np.ndarray], n: int, draws: int) -> MeanCI:
    """`value` of how often each of `n` clips is drawn [draws,n] → [draws], and of every clip once: its interval."""
    drawn = value(intervals.resamples(n, draws))
    lo, hi = np.nanquantile(drawn, [0.025, 0.975])
    return MeanCI(float(value(np.ones((1, n)))[0]), float(lo), float(hi), n, 0)


def ratio(above: np.ndarray, below: np.ndarray, draws: int = 2000) -> MeanCI | None:
    """Σ above / Σ below over clips, [N] each, with its bootstrap interval over clips; clips with NaN are left out.

    None for fewer than two clips, or where there is nothing below.
    """
    keep = ~np.isnan(above) & ~np.isnan(below)
    a, b = above[keep], below[keep]
    if len(a) < 2 or not b.sum():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return _bootstrap(lambda times: (times @ a) / (times @ b), len(a), draws)


def covered(model: str, gain: np.ndarray, found: list[Part], profile: Profile) -> list[Row]:
    """The mean gain; of each reading its share of the tokens, of the gain, and its gain a token over the mean.

    Chance is the same weights moved along the clip: what their number and spacing alone would cover. Where the mean
    gain is not told from 0, a share of it means nothing and is unavailable.
    """
    draws, keep = profile.eval.bootstrap, ~np.isnan(gain.sum(1))
    g = gain[keep]
    n, length = g.shape
    mean = ratio(g.sum(1), np.full(n, float(length)), draws)
    if mean is None:
        why = "fewer than two clips have another video of their genre"
        return [Row("every token", model, MEAN, "up", status="unavailable", note=why)]
    out = [_row(model, "every token", MEAN, mean, profile, "none")]
    moves = np.linspace(0, length, SHIFTS + 2)[1:-1].astype(int)
    for p in found:
        o = p.ones[keep].astype(float)
        tokens = ratio(o.sum(1), np.full(n, float(length)), draws)
        assert tokens is not None
        out.append(_row(model, p.name, TOKENS, tokens, profile, "none"))
        if mean.lo <= 0 or not o.sum():
            why = "the mean gain is not told from 0" if mean.lo <= 0 else "no token has weight 1"
            out += [Row(p.name, model, m, "up", status="unavailable", note=why) for m in (GAIN, TIMES)]
            continue
        a, b, whole = (g * o).sum(1), o.sum(1), g.sum(1)
        share = ratio(a, whole, draws)
        times = _bootstrap(lambda t, a=a, b=b, c=whole: (t @ a) / (t @ b) / (t @ c) * t.sum(1) * length, n, draws)
        moved = float(np.mean([(g * np.roll(o, m, axis=1)).sum() for m in moves]) / whole.sum())
        assert share is not None
        out += [
            _row(model, p.name, GAIN, share, profile, "up", moved),
            _row(model, p.name, TIMES, times, profile, "up", moved / tokens.mean),
        ]
    return out


def around(gain: np.ndarray, ones: np.ndarray, draws: int = 2000) -> list[dict[str, Any]]:
    """Mean gain of the tokens at every distance from those of weight 1, with intervals over clips.

    One dict a distance, -REACH to REACH tokens: offset, mean, lo, hi (nats a token; None where there is no token).
    """
    length = gain.shape[1]
    keep = ~np.isnan(gain.sum(1))
    g, o = gain[keep], ones[keep].astype(float)
    out = []
    for k in range(-REACH, REACH + 1):
        first, second = max(0, -k), max(0, k)
        here = slice(first, max(first, length - second))
        there = slice(second, max(second, length - first))
        ci = ratio((g[:, there] * o[:, here]).sum(1), o[:, here].sum(1), draws)
        point = {"mean": None, "lo": None, "hi": None} if ci is None else {"mean": ci.mean, "lo": ci.lo, "hi": ci.hi}
        out.append({"offset": k} | point)
    return out


def weighed(part: Part, profile: Profile) -> list[Row]:
    """What α does to eq. 4 over Σw: the share of its weight that lies on weight 1, and how many tokens it is worth.

    The effective share is (Σw)² / (N Σw²), Kish's: with so many tokens of equal weight a mean would vary as much.
    """
    draws, out = profile.eval.bootstrap, []
    for alpha in ALPHAS:
        w = np.where(part.ones, 1.0, alpha)
        on, first, second, size = (w * part.ones).sum(1), w.sum(1), (w**2).sum(1), w.shape[1]
        share = _bootstrap(lambda t, a=on, b=first: (t @ a) / (t @ b), len(w), draws)
        kish = _bootstrap(lambda t, a=first, b=second, s=size: (t @ a) ** 2 / (t @ b) / (t.sum(1) * s), len(w), draws)
        for metric, ci in ((WEIGHT, share), (EFFECTIVE, kish)):
            out.append(_row("eq. 4 over Σw", f"α = {alpha:g}", metric, ci, profile, "none"))
    return out


def lookahead(codec, split: "SplitFeatures", profile: Profile, n: int) -> list[dict[str, Any]]:
    """By how much the tokens before an onset already tell of its note: music silenced from the note on, coded again.

    One dict a distance from the detected onset, -REACH to 0 tokens: offset, `first` and `every` (share of the first
    codebook's and of all tokens that change), notes. Empty where no note lies near an onset.
    """
    import torch

    rate, sample_rate = profile.codec.frame_rate, profile.clip.sample_rate
    changed = []
    for i in range(min(LOOKED, n)):
        notes, wave = fig2.truth(split.manifest.iloc[i]).notes, split.waveform(i)
        pairs = []
        for at in np.flatnonzero(split.beats[i]):
            near = notes[np.abs(notes - at / rate).argmin()] if len(notes) else np.inf
            if abs(near - at / rate) < LATE_S and HEARD_S[0] < at / rate < HEARD_S[1]:
                pairs.append((int(at), float(near)))
        if not pairs:
            continue
        chosen = pairs[:: max(1, len(pairs) // NOTES)][:NOTES]
        waves = [wave] + [np.where(np.arange(len(wave)) < round(note * sample_rate), wave, 0) for _, note in chosen]
        with torch.inference_mode():
            codes = codec.encode(torch.from_numpy(np.stack(waves).astype(np.float32))[:, None]).cpu().numpy()
        for (at, _), other in zip(chosen, codes[1:], strict=True):
            if at >= REACH:
                changed.append((other != codes[0])[:, at - REACH : at + 1])
    if not changed:
        return []
    share = np.mean(changed, axis=0)
    return [
        {"offset": k - REACH, "first": float(share[0, k]), "every": float(share[:, k].mean()), "notes": len(changed)}
        for k in range(REACH + 1)
    ]


def _row(
    part: str, system: str, metric: str, ci: MeanCI, profile: Profile, up: str, chance: float | None = None
) -> Row:
    interval = (ci.lo, ci.hi) if np.isfinite([ci.lo, ci.hi]).all() else None
    return Row(system, part, metric, up, ci.mean, interval, ci.n, 1, chance, None, profile.status)


def figure(record: Record) -> "Figure":
    """The gain around the weights, and what each reading covers (`vmas.report.placement`)."""
    from vmas.report import placement

    return placement.figure(record)
