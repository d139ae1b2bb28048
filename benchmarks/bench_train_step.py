"""A training step of the mini model against the time of its matrix products alone (CPU).

    python benchmarks/bench_train_step.py [--profile mini] [--threads 2] [--repeats 7] [--all] [--give-back]

Every product that torch performs in the forward and the backward pass (mm, addmm, bmm, convolutions and the fused
attention) is recorded with its shapes, strides and dtype, then performed again alone on random numbers. One run,
interleaved: products, whole step (forward, backward, clipping, AdamW, moving average). Aim: step at most 1.3 times
the products. `--all` trains what the profile freezes, too. `--give-back` leaves the C library's memory handling as it
is, which the loop changes (`vmas.memory`). Also the share of a step that the loader takes, on random clips in
memory (aim 5%). `--json FILE` also writes the figures.
"""

import argparse
import collections
import statistics
import time

import figures
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vmas import config
from vmas.codec import build_codec
from vmas.memory import keep_freed
from vmas.model import VMAs
from vmas.training.data import ClipDataset
from vmas.training.optim import EMA, build_optimizer
from vmas.training.tasks import VMAsTask

aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default),
    *(aten.convolution.default, aten.convolution_backward.default),
    *(
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    ),
}


class Recorder(TorchDispatchMode):
    """Keeps the products that are performed inside the block: (operator, description of its arguments) → times."""

    def __init__(self):
        super().__init__()
        self.calls: collections.Counter = collections.Counter()
        self.arguments: dict = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            told = (
                func,
                repr([_describe(a) for a in args]),
                repr({k: _describe(v) for k, v in (kwargs or {}).items()}),
            )
            self.calls[told] += 1
            if told not in self.arguments:
                self.arguments[told] = ([_like(a) for a in args], {k: _like(v) for k, v in (kwargs or {}).items()})
        return func(*args, **(kwargs or {}))


def _describe(x):
    return (tuple(x.shape), x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x


def _like(x):
    if not isinstance(x, torch.Tensor):
        return x
    if any(n > 1 and not s for n, s in zip(x.shape, x.stride(), strict=True)):  # expanded: one number seen many times
        return x.detach()
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)


def clips(p, n: int) -> ClipDataset:
    rng = np.random.default_rng(0)
    c = p.clip
    return ClipDataset(
        {
            "frames": rng.integers(0, 256, (n, c.num_frames, c.img_size, c.img_size, 3), dtype=np.uint8),
            "codes": rng.integers(0, p.codec.bins, (n, p.codec.n_q, p.num_tokens)).astype(np.int16),
            "weights": np.where(rng.random((n, p.num_tokens)) < 0.1, 1.0, 0.05).astype(np.float32),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--all", action="store_true", help="freeze nothing")
    parser.add_argument("--give-back", action="store_true", help="let the C library give freed memory back")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    if not args.give_back:
        keep_freed()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    p = config.load(args.profile, {"train": {"freeze": []}} if args.all else {})
    task = VMAsTask(VMAs(p, build_codec(p.codec))).train()
    optimizer = build_optimizer(task.param_groups(p.train.lr), p.train, p.train.lr, False)
    ema = EMA(task, p.train.ema_decay)
    data = clips(p, 4 * p.train.batch_size)
    batch = data.__getitems__(list(range(p.train.batch_size)))

    def step() -> None:
        task(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), p.train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    def once(function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    step()
    with Recorder() as seen:
        step()

    def products() -> dict[str, float]:
        spent: collections.Counter = collections.Counter()
        with torch.no_grad():
            for told, times in seen.calls.items():
                given, named = seen.arguments[told]
                told[0](*given, **named)
                one = min(once(lambda f=told[0], a=given, k=named: f(*a, **k)) for _ in range(2))
                spent[told[0].name().split("::")[1]] += times * one
        return dict(spent)

    rows = collections.defaultdict(list)
    for _ in range(args.repeats):
        kinds = products()
        rows["products"].append(sum(kinds.values()))
        rows["step"].append(min(once(step) for _ in range(3)))
        rows["loader"].append(once(lambda: data.__getitems__(list(range(0, len(data), 4)))))
    if args.json:
        least = {name: min(rows[name]) for name in ("products", "step")}
        about = {"threads": args.threads, "repeats": args.repeats, "all": args.all}
        share = statistics.median(rows["loader"]) / statistics.median(rows["step"])
        ratios = [s / g for s, g in zip(rows["step"], rows["products"], strict=True)]
        ratio = {"ratio": statistics.median(ratios), "ratio_of_minima": least["step"] / least["products"]}
        figures.write(args.json, {args.profile: {**least, **ratio, "loader_share": share, **about}})
    print(f"{args.profile}: batch {p.train.batch_size}, {p.num_tokens} token steps, {args.threads} threads, float32")
    for kind, seconds in sorted(kinds.items(), key=lambda kv: -kv[1]):
        print(f"  {kind:60} {seconds:.3f} s")
    least, median = min(rows["products"]), statistics.median(rows["products"])
    print(f"products {least:.3f} s (median {median:.3f}), {sum(seen.calls.values())} of them")
    print(f"step     {min(rows['step']):.3f} s (median {statistics.median(rows['step']):.3f})")
    paired = statistics.median(s / g for s, g in zip(rows["step"], rows["products"], strict=True))
    print(f"step over products {min(rows['step']) / least:.2f} (minima), {paired:.2f} (median of pairs); aim 1.3")
    print(f"loader {statistics.median(rows['loader']) / statistics.median(rows['step']):.1%} of a step; aim 5%")


if __name__ == "__main__":
    main()
