"""The state of a model, its optimizer and its average as plain tensors, also where FSDP keeps them in shards."""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from vmas.errors import CheckpointError
from vmas.training.optim import EMA, reshard


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are split over processes (FSDP version 2 keeps them as DTensor)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def _plain(model: nn.Module) -> nn.Module:
    """The module under torch.compile's and DDP's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (
            model.module if isinstance(model, nn.parallel.DistributedDataParallel) else None
        )
        if inner is None:
            return model
        model = inner


@contextlib.contextmanager
def gathered(model: nn.Module, accelerator) -> Iterator[None]:
    """Whole parameters on every process inside the block, for use outside the model's forward pass.

    Collective where they are sharded: every process must do the same inside, in the precision of the forward pass.
    """
    if not is_sharded(model):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    for m in model.modules():
        if isinstance(m, FSDPModule):
            m.unshard()
    try:
        with accelerator.autocast():
            yield
    finally:
        reshard(model)


def gather(model: nn.Module, optimizer, ema: EMA) -> tuple[dict, dict, list[Tensor]]:
    """(model, optimizer, average) as whole tensors; collective where the parameters are sharded."""
    if not is_sharded(model):
        return _plain(model).state_dict(), optimizer.optimizer.state_dict(), ema.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, optim = get_state_dict(model, optimizer.optimizer, options=options)
    return weights, optim, [p.full_tensor() for p in ema.state_dict()]  # type: ignore[attr-defined]


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Whole tensors of a model on the CPU; collective where the parameters are sharded."""
    if not is_sharded(model):
        return {k: v.detach().cpu() for k, v in model.state_dict().items()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return cast(
        dict[str, Tensor], get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    )


def scatter(model: nn.Module, optimizer, ema: EMA, saved: dict, folder) -> None:
    """Put a gathered state back, split again where the parameters are sharded.

    Raises CheckpointError, naming `folder`, when the state is of a run that trains other parameters.
    """
    if len(saved["ema"]) != len(ema.average):
        raise CheckpointError(
            folder,
            f"its run trains {len(saved['ema'])} tensors, this one {len(ema.average)}",
            "finish it with the version of vmas that began it, or remove the folder to start afresh",
        )
    if not is_sharded(model):
        _plain(model).load_state_dict(saved["model"])
        optimizer.optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    from torch.distributed.tensor import distribute_tensor

    options = StateDictOptions(full_state_dict=True)
    set_state_dict(
        model,
        optimizer.optimizer,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
        options=options,
    )
    with torch.no_grad():
        for mine, whole in zip(ema.average, saved["ema"], strict=True):
            mine.copy_(distribute_tensor(whole.to(mine.device), mine.device_mesh, mine.placements))  # type: ignore[attr-defined]
