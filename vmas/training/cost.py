"""What a training run of a profile will cost: parameters, operations, memory, days. Needs no weights, data or GPU.

The model is built on the meta device (shapes without memory); every matrix product of a step and every
tensor that its backward pass needs is then listed in closed form.

Conventions. FLOPs = 2·MACs of linear layers, convolutions and attention (softmax, norms, GELU and the optimizer
are left out). Attention counts QKᵀ and its product with V in full: causal masking is not halved. A product costs
its forward MACs once more for the gradient of its weight and once more for that of its input, where they
are needed: a frozen encoder costs its forward pass only, the first convolution never an input gradient. Model
FLOPs leave out what activation checkpointing computes twice; MFU = model FLOPs / (seconds · GPUs · peak dense
bf16 FLOP/s). Bytes are those of the tensors themselves, at the end of the forward pass: the CUDA context, NCCL,
allocator slack, short-lived buffers and the frozen codec come on top, for which a tenth of the GPU is kept free
(`HEADROOM`). What the optimizer and validation need for a moment takes the place of the activations.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from vmas import encoder_cost
from vmas.config import Profile
from vmas.decoder import MusicDecoder
from vmas.encoder import VideoEncoder
from vmas.encoder_cost import Gemm, Unfilled
from vmas.errors import UsageError, nearest
from vmas.training.activations import FP32, Activations, activations
from vmas.training.optim import freeze

BYTES = {"bf16": 2, "auto": 2, "fp32": 4}  # of an activation; "auto" is bf16 on every GPU of the table
OPTIMIZER_STATES = {"adamw": 2, "dadapt_adam": 3}  # fp32 values a parameter: exp_avg, exp_avg_sq; D-Adaptation also s
SHARDING = ("ddp", "fsdp")
HEADROOM = 0.1
MFU = 0.45  # assumed, not measured; what well-tuned transformers of this size reach on one node
DAY = 86_400.0
# The paper (section 3, appendix B): 2.2M clips, 32 GPUs for about four days.
PAPER_GPUS, PAPER_DAYS, PAPER_CLIPS = 32, 4.0, 2_200_000


@dataclass(frozen=True)
class Gpu:
    """Peak dense bf16 FLOP/s (without sparsity) and memory in bytes of one GPU."""

    name: str
    flops: float
    memory: float


# FLOP/s: NVIDIA's data sheets of the A100 (312 TFLOPS bf16), H100 SXM and H200 SXM (1,979 TFLOPS with sparsity, which
# is twice the dense number). Memory: what nvidia-smi reports, more than the name says; of the H200 what a process gets.
GPUS = {
    "a100": Gpu("A100 80 GB", 312e12, 81_920 * 2**20),
    "h100": Gpu("H100 SXM 80 GB", 989e12, 81_559 * 2**20),
    "h200": Gpu("H200 141 GB", 989e12, 139 * 2**30),
}


class Skeleton(nn.Module):
    """The parameters of `vmas.model.VMAs` under the same names, on the meta device, frozen as the profile says."""

    def __init__(self, profile: Profile):
        from vmas.model import build_decoder, build_encoder

        super().__init__()
        with torch.device("meta"), Unfilled():
            self.encoder: VideoEncoder = build_encoder(profile)
            self.decoder: MusicDecoder = build_decoder(profile)
            self.video_to_music = nn.Linear(profile.encoder.out_dim, profile.codec.dim)
        freeze(self, profile.train.freeze)


@dataclass(frozen=True)
class Group:
    """Number of parameters of one part of the model."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: the encoder, the decoder (with the projection of X_v), eq. 2's projection."""

    groups: tuple[Group, ...]

    @property
    def trained(self) -> int:
        return sum(g.trained for g in self.groups)

    @property
    def total(self) -> int:
        return sum(g.trained + g.frozen for g in self.groups)


def count_parameters(model: nn.Module) -> Parameters:
    """Parameters of every child of `model`."""
    groups = []
    for name, part in model.named_children():
        sizes = [(p.requires_grad, p.numel()) for p in part.parameters()]
        trained = sum(n for grad, n in sizes if grad)
        groups.append(Group(name, trained, sum(n for _, n in sizes) - trained))
    return Parameters(tuple(groups))


@dataclass(frozen=True)
class Product:
    """A matrix product of the step: which part of the model, and how many products its backward pass adds."""

    part: str
    gemm: Gemm
    backward: int
    recomputed: bool = False  # once more in the backward pass under activation checkpointing

    @property
    def forward_flops(self) -> int:
        return 2 * self.gemm.macs

    @property
    def backward_flops(self) -> int:
        return 2 * self.gemm.macs * self.backward


def _encoder_products(encoder: VideoEncoder, clips: int) -> Iterator[Product]:
    weights = iter([m.weight for m in encoder.modules() if isinstance(m, (nn.Conv3d, nn.Linear))])
    order = {id(p): i for i, p in enumerate(encoder.parameters())}
    trained = [i for i, p in enumerate(encoder.parameters()) if p.requires_grad]
    blocks = [[id(p) for p in block.parameters()] for block in encoder.blocks]
    ends = {p: max(order[q] for q in block) for block in blocks for p in block}  # of the block of a parameter
    here, again = 0, False
    for gemm in encoder_cost.gemms(encoder, clips):
        if gemm.kind == "attention":
            yield Product("encoder", gemm, 2 * any(i <= here for i in trained), again)
            continue
        weight = next(weights)
        here = order[id(weight)]  # the parameters stand in the order in which the video passes them
        into = gemm.kind != "conv" and any(i < here for i in trained)
        again = any(i <= ends.get(id(weight), -1) for i in trained)  # checkpointing recomputes blocks, nothing else
        yield Product("encoder", gemm, weight.requires_grad + into, again)


def _decoder_products(model: Skeleton, profile: Profile, clips: int) -> Iterator[Product]:
    decoder = model.decoder
    steps, rows = profile.num_tokens + profile.codec.n_q - 1, profile.num_video_tokens
    width = decoder.dim // decoder.heads
    video = _trains(model.encoder)

    def linear(layer: nn.Linear, count: int, into: bool, again: bool = False) -> Product:
        gemm = Gemm("linear", 1, count, layer.in_features, layer.out_features)
        return Product("decoder", gemm, layer.weight.requires_grad + into, again)

    def attention(keys: int, into: bool) -> list[Product]:
        heads = clips * decoder.heads
        scores, mixed = Gemm("attention", heads, steps, width, keys), Gemm("attention", heads, steps, keys, width)
        return [Product("decoder", g, 2 * into, True) for g in (scores, mixed)]

    yield linear(decoder.cond_proj, clips * rows, video)
    cond, x = video or _trains(decoder.cond_proj), _trains(decoder.emb)
    for block in decoder.blocks:
        x = x or _trains(block.norm1)
        yield linear(block.qkv, clips * steps, x, True)
        x = x or _trains(block.qkv)
        yield from attention(steps, x)
        yield linear(block.out, clips * steps, x, True)
        x = x or _trains(block.out, block.norm_cross)
        yield linear(block.q_cross, clips * steps, x, True)
        yield linear(block.kv_cross, clips * rows, cond, True)
        x = x or cond or _trains(block.q_cross, block.kv_cross)
        yield from attention(rows, x)
        yield linear(block.out_cross, clips * steps, x, True)
        x = x or _trains(block.out_cross, block.norm2)
        yield linear(block.linear1, clips * steps, x, True)
        x = x or _trains(block.linear1)
        yield linear(block.linear2, clips * steps, x, True)
        x = x or _trains(block.linear2)
    x = x or _trains(decoder.out_norm)
    heads = [cast(nn.Linear, head) for head in decoder.linears]
    yield from (linear(head, clips * profile.num_tokens, x) for head in heads)
    if profile.align.contrastive:
        both = model.video_to_music.weight
        c = profile.codec
        pooled = Gemm("linear", 1, clips, both.shape[1], both.shape[0])
        yield Product("video_to_music", pooled, both.requires_grad + video)
        over_time = Gemm("linear", clips * c.n_q, 1, profile.num_tokens, c.bins)  # the mean of Ŷ, as a product
        yield Product("video_to_music", over_time, int(x))
        yield Product("video_to_music", Gemm("linear", 1, clips, c.n_q * c.bins, c.dim), 1)  # M = ŶE, E is constant
        yield Product("video_to_music", Gemm("linear", 1, clips, c.dim, clips), 2)  # the cosines of eq. 2


def _trains(*modules: nn.Module) -> bool:
    return any(p.requires_grad for m in modules for p in m.parameters())


def products(model: Skeleton, profile: Profile, clips: int) -> list[Product]:
    """Every matrix product of one conditioned step over `clips` clips on one GPU, in order of the forward pass."""
    return [*_encoder_products(model.encoder, clips), *_decoder_products(model, profile, clips)]


@dataclass(frozen=True)
class Flops:
    """FLOPs (2·MACs) of one forward and backward pass over `clips` clips."""

    clips: int
    forward: int
    backward: int
    recomputed: int  # by activation checkpointing, on top of `model`; 0 without
    encoder: int  # forward and backward of the encoder, a part of `model`
    attention: int  # QKᵀ and the product with V, a part of `model`

    @property
    def model(self) -> int:
        return self.forward + self.backward


def count_flops(model: Skeleton, profile: Profile, clips: int, checkpointing: bool) -> Flops:
    """FLOPs of a step of the profile over `clips` clips."""
    listed = products(model, profile, clips)

    def total(chosen) -> int:
        return sum(p.forward_flops + p.backward_flops for p in chosen)

    return Flops(
        clips=clips,
        forward=sum(p.forward_flops for p in listed),
        backward=sum(p.backward_flops for p in listed),
        recomputed=sum(p.forward_flops for p in listed if p.recomputed) if checkpointing else 0,
        encoder=total(p for p in listed if p.part == "encoder"),
        attention=total(p for p in listed if p.gemm.kind == "attention"),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU (see the module's conventions for what is left out)."""

    weights: int  # fp32, trained and frozen
    gradients: int  # fp32
    buckets: int  # DDP's copy of the gradients, which it reduces
    optimizer: int
    ema: int
    compute: int  # bf16 copies: of every product's weight under DDP, of the gathered blocks under FSDP
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f) for f in self.__dataclass_fields__)

    def fits(self, gpu: Gpu) -> bool:
        """Whether it leaves `HEADROOM` of the GPU free."""
        return self.total <= (1 - HEADROOM) * gpu.memory


def count_memory(
    model: Skeleton, profile: Profile, kept: Activations, gpus: int, sharding: str, checkpointing: bool
) -> Memory:
    """Bytes on each of `gpus` GPUs under DDP (everything on each) or FSDP (full shard: an equal part on each).

    FSDP gathers blocks in the compute precision: the root's own parameters, the block at work and the next one.
    """
    n = count_parameters(model)
    shards = gpus if sharding == "fsdp" else 1
    low = BYTES[profile.train.precision]
    blocks = [*model.encoder.blocks, *model.decoder.blocks]
    sizes = sorted(sum(p.numel() for p in b.parameters()) for b in blocks)
    if sharding == "fsdp":
        compute = low * (n.total - sum(sizes) + sum(sizes[-2:])) if gpus > 1 else 0
    else:
        weights = (m.weight for m in model.modules() if isinstance(m, (nn.Conv3d, nn.Linear)))
        compute = low * sum(w.numel() for w in weights if w.requires_grad) if low < FP32 else 0

    def share(values: int) -> int:
        return FP32 * -(-values // shards)

    return Memory(
        weights=share(n.total),
        gradients=share(n.trained),
        buckets=FP32 * n.trained if sharding == "ddp" and gpus > 1 else 0,
        optimizer=OPTIMIZER_STATES[profile.train.optimizer] * share(n.trained),
        ema=share(n.trained),
        compute=compute,
        activations=kept.kept(checkpointing),
    )


@dataclass(frozen=True)
class Plan:
    """A run of a profile on `gpus` GPUs. One step is one update of the weights."""

    profile: str
    gpu: Gpu
    gpus: int
    sharding: str
    mfu: float
    checkpointing: bool
    steps: int
    tokens: int  # music tokens of one clip, all codebooks
    parameters: Parameters
    flops: Flops  # of one forward and backward pass on one GPU
    passes: int  # forward and backward passes a step (gradient accumulation)
    activations: Activations
    memory: Memory
    memory_other: Memory  # with activation checkpointing the other way

    @property
    def clips_per_step(self) -> int:
        """Over all GPUs and accumulations."""
        return self.flops.clips * self.passes * self.gpus

    @property
    def flops_per_step(self) -> int:
        """Model FLOPs over all GPUs."""
        return self.flops.model * self.passes * self.gpus

    @property
    def step_seconds(self) -> float:
        """Seconds a step at the assumed MFU."""
        return self.flops_per_step / (self.gpus * self.gpu.flops * self.mfu)

    @property
    def days(self) -> float:
        return self.steps * self.step_seconds / DAY


def plan(profile: Profile, gpus: int, gpu: str, sharding: str, mfu: float = MFU) -> Plan:
    """The cost of the last stage (L = βL_c + L_g) of `profile` on `gpus` GPUs named in `GPUS`.

    Raises UsageError for an unknown GPU or sharding, no GPUs, or an MFU outside (0,1].
    """
    if gpu.lower() not in GPUS:
        raise UsageError(f"unknown GPU {gpu!r}: {nearest(gpu.lower(), GPUS)}")
    if sharding not in SHARDING:
        raise UsageError(f"unknown sharding {sharding!r}: {nearest(sharding, SHARDING)}")
    if gpus < 1:
        raise UsageError(f"a run needs at least one GPU, got {gpus}")
    if not 0 < mfu <= 1:
        raise UsageError(f"the MFU is a share of the GPU's peak, above 0 and at most 1; got {mfu}")
    t, model = profile.train, Skeleton(profile)
    kept = activations(model.encoder, model.decoder, profile, t.batch_size, BYTES[t.precision])
    on = t.activation_checkpointing
    return Plan(
        profile=profile.name,
        gpu=GPUS[gpu.lower()],
        gpus=gpus,
        sharding=sharding,
        mfu=mfu,
        checkpointing=on,
        steps=t.steps,
        tokens=profile.num_tokens * profile.codec.n_q,
        parameters=count_parameters(model),
        flops=count_flops(model, profile, t.batch_size, on),
        passes=t.grad_accum,
        activations=kept,
        memory=count_memory(model, profile, kept, gpus, sharding, on),
        memory_other=count_memory(model, profile, kept, gpus, sharding, not on),
    )


def utilisation(p: Plan, step_seconds: float) -> float:
    """Model FLOPs utilisation of a run of `p` whose steps take `step_seconds`: a share of the peak."""
    return p.flops_per_step / (step_seconds * p.gpus * p.gpu.flops)


@dataclass(frozen=True)
class Budget:
    """What `gpus` GPUs for `days` days are enough for, at the plan's MFU."""

    flops: float
    steps: float
    epochs: float  # of `clips` clips
    mfu_of_plan: float  # at which the plan's own number of steps would fill the time


def budget(p: Plan, days: float = PAPER_DAYS, clips: int = PAPER_CLIPS) -> Budget:
    """The budget of plan `p`'s GPUs; by default the paper's four days and its 2.2M clips, one 10 s clip each."""
    seconds = days * DAY
    steps = seconds / p.step_seconds
    return Budget(
        flops=steps * p.flops_per_step,
        steps=steps,
        epochs=steps * p.clips_per_step / clips,
        mfu_of_plan=utilisation(p, seconds / p.steps),
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
        "",
        f"Time: {p.step_seconds:.3g} s a step, {_time(p.days)} in all, at {p.mfu:.0%} of the peak of"
        f" {_number(p.gpu.flops, 'FLOP/s')}",
        "  (MFU = model FLOPs over seconds x GPUs x dense bf16 peak; assumed, and only if the data keeps up)",
    ]
    if profile.name == "paper":
        lines += ["", *_paper_lines(p, ", ".join(t.freeze) or "nothing")]
    return "\n".join(lines)
