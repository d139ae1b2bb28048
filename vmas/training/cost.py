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
from dataclasses import dataclass
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

    key: str
    name: str
    flops: float
    memory: float


# FLOP/s: NVIDIA's data sheets of the A100 (312 TFLOPS bf16), H100 SXM and H200 SXM (1,979 TFLOPS with sparsity, which
# is twice the dense number). Memory: what nvidia-smi reports, more than the name says; of the H200 what a process gets.
GPUS = {
    g.key: g
    for g in (
        Gpu("a100", "A100 80 GB", 312e12, 81_920 * 2**20),
        Gpu("h100", "H100 SXM 80 GB", 989e12, 81_559 * 2**20),
        Gpu("h200", "H200 141 GB", 989e12, 139 * 2**30),
    )
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
        self.video_to_music.requires_grad_(profile.align.contrastive)
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
class Traffic:
    """Bytes that one GPU moves for one update: over the network, between its memory and its units, and as input.

    What the matrix products read and write is left out: it depends on the kernels.
    """

    network: int  # sent; as much is received
    optimizer: int  # read and written by the optimizer and, where it is due, the moving average
    input: int  # clips that come from the host


def count_traffic(model: Skeleton, profile: Profile, gpus: int, sharding: str) -> Traffic:
    """Bytes of one update on each of `gpus` GPUs.

    DDP: a ring all-reduce of the fp32 gradients sends 2(N-1)/N of them. FSDP with full shard: the parameters are
    gathered once for the forward and once for the backward pass and the gradients scattered, (N-1)/N of them each, in
    the compute precision. AdamW reads the gradient and reads and writes the weight and its states.
    """
    n, t, low = count_parameters(model), profile.train, BYTES[profile.train.precision]
    if sharding == "fsdp":
        sent = low * (2 * t.grad_accum * n.total + n.trained) * (gpus - 1) // gpus
    else:
        sent = 2 * FP32 * n.trained * (gpus - 1) // gpus
    mine = -(-n.trained // (gpus if sharding == "fsdp" else 1))
    touched = 3 + 2 * OPTIMIZER_STATES[t.optimizer]
    average = 3 / t.ema_every  # reads both, writes one
    c = profile.clip
    frames = c.num_frames * c.img_size**2 * 3
    clip = frames + profile.num_tokens * (8 * profile.codec.n_q + FP32)  # int64 tokens and P_av
    return Traffic(sent, round(FP32 * mine * (touched + average)), t.batch_size * t.grad_accum * clip)


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
    traffic: Traffic

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
        traffic=count_traffic(model, profile, gpus, sharding),
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
