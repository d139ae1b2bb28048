"""Optimizer, schedule and moving average (appendix B)."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vmas.config import TrainConfig
from vmas.errors import ConfigError, DataError


def freeze(module: nn.Module, prefixes: Iterable[str]) -> None:
    """Take the gradient from every parameter whose name begins with one of `prefixes` ("encoder", "decoder.emb").

    Raises ConfigError for a prefix that names nothing, or when nothing would be left to train.
    """
    names = [n for n, _ in module.named_parameters()]
    for prefix in prefixes:
        found = [n for n in names if n == prefix or n.startswith(prefix + ".")]
        if not found:
            tops = sorted({n.split(".")[0] for n in names})
            raise ConfigError(f"train.freeze: no parameter begins with {prefix!r}; the groups are {', '.join(tops)}")
        for n in found:
            module.get_parameter(n).requires_grad_(False)
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError("train.freeze leaves nothing to train")


def build_optimizer(parameters, cfg: TrainConfig, lr: float, sharded: bool = False) -> torch.optim.Optimizer:
    """`adamw`, or `dadapt_adam`: D-Adaptation with decoupled decay, whose lr is a multiplier (1).

    `sharded`: the parameters will be split over processes, and D-Adaptation must sum its estimate over them.
    Raises ConfigError for an unknown optimizer, and for D-Adaptation with unequal learning rates.
    """
    parameters = list(parameters)
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True)
    if cfg.optimizer == "dadapt_adam":
        from dadaptation import DAdaptAdam

        from vmas.training.dadapt import ShardedDAdaptAdam

        if any(isinstance(g, dict) and g.get("lr", lr) != lr for g in parameters):
            raise ConfigError("train.encoder_lr_scale must be 1 with dadapt_adam: it estimates one step size for all")
        if sharded:
            return ShardedDAdaptAdam(parameters, lr=lr, betas=cfg.betas, weight_decay=cfg.weight_decay)
        return DAdaptAdam(parameters, lr=lr, betas=cfg.betas, weight_decay=cfg.weight_decay, decouple=True)
    raise ConfigError(f"unknown optimizer {cfg.optimizer!r}: choose adamw or dadapt_adam")


def build_schedule(optimizer, warmup_steps: int, total: int):
    """Linear warm-up, then half a cosine to 0 (4000 warm-up steps in appendix B)."""
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, warmup_steps, total)


def reshard(module: nn.Module) -> None:
    """Let FSDP's modules forget the whole parameters that they gathered, so that the next pass gathers them again.

    Accelerate keeps the root's own gathered from a forward pass to its backward pass. After a pass without gradients
    there is none: what the shards get from then on would go unseen until the backward pass of the next step.
    """
    from torch.distributed.fsdp import FSDPModule

    for m in module.modules():
        if isinstance(m, FSDPModule):
            m.reshard()


def own(x: Tensor) -> Tensor:
    """What this process holds of `x`, without history and sharing its memory."""
    x = x.detach()
    return x.to_local() if hasattr(x, "to_local") else x


def _own(tensors: Iterable[Tensor]) -> list[Tensor]:
    """`own` of each tensor: DTensor knows no _foreach_ operations."""
    return [own(t) for t in tensors]


class EMA:
    """θ̄ ← γ θ̄ + (1-γ) θ over the trained parameters; θ̄ begins as θ (appendix B: γ = .99).

    Kept as loose tensors beside the module, which works for sharded parameters too; `torch.optim.swa_utils`
    copies the module, which FSDP forbids.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self._module = decay, module
        self._live = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(_own(self.average), _own(self._live), 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average inside the block, and its own weights again afterwards."""
        own = [p.clone() for p in _own(self._live)]
        self.copy_to_module()
        try:
            yield
        finally:
            reshard(self._module)  # what validation gathered is the average
            with torch.no_grad():
                torch._foreach_copy_(_own(self._live), own)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        reshard(self._module)
        torch._foreach_copy_(_own(self._live), _own(self.average))

    def state_dict(self) -> list[Tensor]:
        return self.average

    def load_state_dict(self, state: list[Tensor]) -> None:
        if len(state) != len(self.average):
            raise DataError(f"the state averages {len(state)} tensors, the model has {len(self.average)}")
        for mine, saved in zip(self.average, state, strict=True):
            mine.copy_(saved)
