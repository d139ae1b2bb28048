"""The plan of a training run in words (`vmas train --dry-run`); the numbers are those of `vmas.training.cost`."""

from collections.abc import Iterator
from dataclasses import replace

from vmas.config import Profile
from vmas.training.cost import (
    DAY,
    GPUS,
    MFU,
    PAPER_CLIPS,
    PAPER_DAYS,
    PAPER_GPUS,
    SHARDING,
    Plan,
    budget,
    plan,
)


def _number(x: float, unit: str) -> str:
    """Three digits and a decimal prefix: 1.43 PFLOP."""
    powers = ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, prefix = next((p for p in powers if x >= p[0]), (1.0, ""))
    return f"{x / size:.3g} {prefix}{unit}"


def _time(days: float) -> str:
    for limit, size, unit in ((2.0, 1.0, "days"), (1 / 12, 1 / 24, "hours"), (1 / 720, 1 / 1440, "minutes")):
        if days >= limit:
            return f"{days / size:.1f} {unit}"
    return f"{days * DAY:.2g} seconds"


def _memory_lines(p: Plan) -> Iterator[str]:
    m, gpu, on = p.memory, p.gpu, p.checkpointing
    rows = [
        ("weights, fp32", m.weights),
        ("gradients, fp32", m.gradients),
        ("DDP's buckets of gradients", m.buckets),
        ("optimizer states, fp32", m.optimizer),
        ("moving average, fp32", m.ema),
        ("gathered blocks" if p.sharding == "fsdp" else "weights, bf16", m.compute),
        ("activations, all blocks recomputed", m.activations * on),
        ("activations of the encoder", p.activations.encoder.stored(False) * (not on)),
        ("activations of the decoder", p.activations.decoder.stored(False) * (not on)),
    ]
    yield from (f"  {name:46} {_number(size, 'B'):>8}" for name, size in rows if size)
    for memory, which in ((m, on), (p.memory_other, not on)):
        name = f"together, activation checkpointing {'on' if which else 'off'}"
        verdict = "fits" if memory.fits(gpu) else "DOES NOT FIT"
        yield f"  {name:46} {_number(memory.total, 'B'):>8}   {verdict} {gpu.name} with a tenth kept free"


def _other_sharding(profile: Profile, p: Plan) -> Iterator[str]:
    """The whole of each GPU's memory under the sharding that was not asked for."""
    (other,) = (s for s in SHARDING if s != p.sharding)
    q = plan(profile, p.gpus, p.gpu.key, other, p.mfu)
    for memory, on in ((q.memory, q.checkpointing), (q.memory_other, not q.checkpointing)):
        name = f"with {other.upper()} instead, checkpointing {'on' if on else 'off'}"
        verdict = "fits" if memory.fits(q.gpu) else "DOES NOT FIT"
        yield f"  {name:46} {_number(memory.total, 'B'):>8}   {verdict}"


def _traffic_lines(p: Plan) -> Iterator[str]:
    t = p.traffic
    what = "weights gathered, gradients scattered" if p.sharding == "fsdp" else "gradients, ring all-reduce"
    rows = [(f"sent over the network ({what})", t.network), ("optimizer and average", t.optimizer), ("clips", t.input)]
    yield from (f"  {name:62} {_number(size, 'B'):>8}" for name, size in rows if size)
    yield f"  {'network needed at the assumed MFU':62} {_number(t.network / p.step_seconds, 'B/s'):>8}"


def _paper_lines(p: Plan, frozen: str) -> Iterator[str]:
    yield f"The paper: {PAPER_GPUS} GPUs for about {PAPER_DAYS:g} days, batch 8 on each (appendix B). At this MFU:"
    for gpu in GPUS.values():
        b = budget(replace(p, gpu=gpu, gpus=PAPER_GPUS))
        work = f"{_number(b.flops, 'FLOP')}, {b.steps / 1e6:.2f}M steps, {b.epochs:.0f} epochs of 2.2M clips"
        yield f"  {gpu.name:16} {work}; {p.steps:,} steps would be {b.mfu_of_plan:.1%} of the peak"
    yield "  An epoch is one 10 s clip of each of 2.2M videos; together these last 47,000 hours (section 3)."
    yield f"  The paper leaves open: the number of steps and the cosine's length (here {p.steps:,}), what is frozen"
    yield f"  (here {frozen}), the GPU, precision, accumulation, gradient clipping and weight decay."


def dry_run(
    profile: Profile, gpus: int = PAPER_GPUS, gpu: str = "a100", sharding: str = "ddp", mfu: float = MFU
) -> str:
    """A readable plan of the last training stage: parameters, operations, memory of each GPU, days.

    `gpu` is a key of `GPUS`, `sharding` "ddp" or "fsdp", `mfu` the assumed share of the GPU's peak. Prefixes are
    decimal (1 GB = 10⁹ bytes). Raises UsageError for options out of range.
    """
    p = plan(profile, gpus, gpu, sharding, mfu)
    f, n, t = p.flops, p.parameters, profile.train
    clips = profile.corpus.train or PAPER_CLIPS
    again = f"; checkpointing computes {_number(f.recomputed * p.passes, 'FLOP')} again, not counted" * bool(
        f.recomputed
    )
    lines = [
        f"Profile {p.profile}: {p.steps:,} steps of {p.clips_per_step:,} clips = {t.batch_size} a GPU x {p.passes}"
        f" accumulated x {p.gpus} {p.gpu.name} ({p.sharding.upper()}),",
        f"{p.tokens * p.clips_per_step:,} music tokens a step, {p.steps * p.clips_per_step / clips:.1f} epochs of"
        f" {clips:,} clips, {t.optimizer}, {t.precision}. Nothing is loaded or trained here.",
        "",
        f"Parameters: {n.total / 1e6:,.1f}M, trained {n.trained / 1e6:,.1f}M",
        *(
            f"  {g.name:46} {(g.trained + g.frozen) / 1e6:>7,.1f}M{'   frozen' * (g.frozen > 0 == g.trained)}"
            for g in n.groups
        ),
        "",
        f"One step: {_number(p.flops_per_step, 'FLOP')}, on each GPU {_number(f.model * p.passes, 'FLOP')}"
        " (2 FLOPs a MAC; causal attention in full)",
        f"  forward {_number(f.forward * p.passes, 'FLOP')}, backward {_number(f.backward * p.passes, 'FLOP')}{again}",
        f"  the encoder's part {f.encoder / f.model:.1%}, attention's {f.attention / f.model:.1%}",
        "",
        "Memory of each GPU:",
        *_memory_lines(p),
        *_other_sharding(profile, p),
        "",
        "Bytes that each GPU moves for one step:",
        *_traffic_lines(p),
        "",
        f"Time: {p.step_seconds:.3g} s a step, {_time(p.days)} in all, at {p.mfu:.0%} of the peak of"
        f" {_number(p.gpu.flops, 'FLOP/s')}",
        "  (MFU = model FLOPs over seconds x GPUs x dense bf16 peak; assumed, and only if the data keeps up)",
    ]
    if profile.name == "paper":
        lines += ["", *_paper_lines(p, ", ".join(t.freeze) or "nothing")]
    return "\n".join(lines)
