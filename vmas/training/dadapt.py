"""D-Adaptation where parameters are split over processes (FSDP version 2).

`dadaptation.DAdaptAdam` multiplies and sums whole tensors, which a DTensor whose first dimension does not divide
evenly refuses, and takes its sums over processes on `cuda` alone. What it sums are two numbers, so here every process
works on its own shards and the two numbers are added up.
"""

import torch
from dadaptation import DAdaptAdam
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from vmas.training.optim import own


def _total(part: Tensor, like: Tensor) -> Tensor:
    """`part` summed over the processes that split `like`; those that hold copies of each other count once."""
    if not isinstance(like, DTensor):
        return part
    placements = [Replicate() if p.is_replicate() else Partial() for p in like.placements]
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False).full_tensor()


class ShardedDAdaptAdam(DAdaptAdam):
    """`DAdaptAdam` with decoupled decay, one layer scale and no bias correction, for sharded parameters.

    The step is that of the package (Defazio and Mishchenko 2023, algorithm for Adam), operation by operation; without
    shards it gives the package's bits. Unlike the package's `fsdp_in_use`, `numerator_weighted` is the sum over
    processes, so that a state that process 0 wrote is right for all, and no process leaves before the sum because its
    own shards are empty. All trained parameters must be split over the same processes, as FSDP does.
    """

    def __init__(self, params, lr: float, betas: tuple[float, float], weight_decay: float):
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, decouple=True)

    @torch.no_grad()
    def step(self, closure=None):
        """One update; a collective where the parameters are sharded. Raises RuntimeError for unequal learning rates."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        first, lr = self.param_groups[0], max(g["lr"] for g in self.param_groups)
        (beta1, beta2), d = first["betas"], first["d"]
        dlr, root = d * lr, beta2**0.5
        found = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not found:
            return loss
        sums = []  # of every parameter: its part of the numerator, but for dlr, and the l1 norm of its s
        for group, p in found:
            if group["lr"] not in (lr, 0.0):
                raise RuntimeError("D-Adaptation estimates one step size: every group needs the same learning rate")
            state = self.state[p]
            if "step" not in state:
                state["step"] = 0
                for name in ("s", "exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(p)
            if group["lr"] > 0.0:
                grad, s, m, v = (own(x) for x in (p.grad, state["s"], state["exp_avg"], state["exp_avg_sq"]))
                dot = torch.dot(grad.flatten(), s.div(v.sqrt().add_(group["eps"])).flatten())
                m.mul_(beta1).add_(grad, alpha=dlr * (1 - beta1))
                v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                s.mul_(root).add_(grad, alpha=dlr * (1 - root))
                sums.append(torch.stack([dot, s.abs().sum()]))
        if not sums:
            return loss
        here = torch.stack(sums)
        numerator = norm = 0.0
        for dot, size in here.tolist():  # Python's numbers, in the package's order
            numerator, norm = numerator + dlr * dot, norm + size
        mine = here.new_tensor([numerator, norm], dtype=torch.float64)
        numerator, norm = _total(mine, found[0][1]).tolist()
        if norm == 0:
            return loss
        weighted = root * first["numerator_weighted"] + (1 - root) * numerator
        d = max(d, min(weighted / ((1 - root) * norm), d * first["growth_rate"]))
        for group, p in found:
            state = self.state[p]
            state["step"] += 1
            x, m, v = (own(x) for x in (p, state["exp_avg"], state["exp_avg_sq"]))
            if group["weight_decay"] != 0:
                x.add_(x, alpha=-group["weight_decay"] * dlr)
            x.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-1)
        for group in self.param_groups:
            group["numerator_weighted"], group["d"], group["k"] = weighted, d, group["k"] + 1
        return loss
