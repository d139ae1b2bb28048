"""Cached decoding at equal shape: audiocraft, transformers and this project, in one run.

    python benchmarks/bench_decode.py [--batch 1 8 | --all] [--steps 250] [--repeats 2] [--threads 2] [--clock cpu]

Width 512, 12 layers, 8 heads, 4x2048 entries, random weights, 48 rows of conditioning (X_v of a 10 s clip),
guidance 3 and top-k 250, on the CPU. A step decodes one token of every codebook for the whole batch. Within a
repeat the systems take turns, and the best repeat counts, so that another load on the machine meets all alike: read
the ratios of one run. Each system decodes 8 steps first; the compilation of ours falls into that and is printed.

On a machine that others use too, `--threads 1 --clock cpu` still compares the work done.
`--mini` measures the mini profile's decoder instead (ours only): clip-steps per second on one thread.
"""

import argparse
import platform
import time
import warnings
from collections.abc import Callable

import figures
import torch
from decoder_references import audiocraft_lm, transformers_lm

from vmas.decoder import MusicDecoder

DIM, LAYERS, HEADS, N_Q, CARD, COND = 512, 12, 8, 4, 2048, 48
Run = Callable[[int, int], None]
Clock = Callable[[], float]


def ours(model: MusicDecoder, engine: str) -> Run:
    def run(batch: int, steps: int) -> None:
        model.generate(torch.randn(batch, COND, model.cond_dim), steps, engine=engine)

    return run


def audiocraft() -> Run:
    lm, conditions = audiocraft_lm(N_Q, CARD, DIM, LAYERS, HEADS, DIM)

    def run(batch: int, steps: int) -> None:
        given = conditions(torch.randn(batch, COND, DIM))
        lm.generate(conditions=given, max_gen_len=steps, use_sampling=True, top_k=250, cfg_coef=3.0)

    return run


def transformers() -> Run:
    lm = transformers_lm(N_Q, CARD, DIM, LAYERS, HEADS)

    from transformers import DynamicCache, EncoderDecoderCache

    def run(batch: int, steps: int) -> None:
        cond = torch.randn(batch, COND, DIM)
        lm.generate(
            # as MusicgenForConditionalGeneration passes it; the decoder alone would take one cache for both
            # attentions and append the condition to the self-attention's keys at every step
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            inputs=torch.full((batch * N_Q, 1), CARD),
            encoder_hidden_states=torch.cat([cond, torch.zeros_like(cond)]),
            guidance_scale=3.0,
            do_sample=True,
            top_k=250,
            max_length=steps + N_Q,
        )

    return run


def measure(systems: dict[str, Run], batch: int, steps: int, repeats: int, clock: Clock) -> dict[str, float]:
    """Best steps per second of each system; they take turns."""
    best = dict.fromkeys(systems, 0.0)
    for _ in range(repeats):
        for name, run in systems.items():
            start = clock()
            run(batch, steps)
            best[name] = max(best[name], steps / (clock() - start))
    return best


def mini(repeats: int, clock: Clock) -> None:
    from vmas import config
    from vmas.model import build_decoder

    profile = config.load("mini")
    torch.set_num_threads(1)
    model, clips = build_decoder(profile).eval(), profile.sampling.batch_size
    systems = {e: ours(model, e) for e in ("torch", "float32")}
    for run in systems.values():
        run(clips, 8)
    for name, rate in measure(systems, clips, profile.num_tokens, repeats, clock).items():
        print(f"mini, {clips} clips, 1 thread, {name:8} {rate:8.1f} steps/s {rate * clips:9.0f} clip-steps/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--all", action="store_true", help="batches 1, 2, 4, 8, 16 and 32")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for --threads 1")
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--mini", action="store_true")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    if options.mini:
        return mini(options.repeats, clock)
    model = MusicDecoder(N_Q, CARD, DIM, LAYERS, HEADS, 4, DIM).eval()
    systems = {} if options.only_ours else {"audiocraft": audiocraft(), "transformers": transformers()}
    systems |= {f"ours {engine}": ours(model, engine) for engine in ("torch", "float32", "bfloat16")}
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {options.steps} steps,", end=" ")
    print(f"{options.threads} threads, {options.clock} clock, torch {torch.__version__}, {platform.machine()}")
    for name, run in systems.items():
        start = time.perf_counter()
        run(1, 8)
        print(f"first 8 steps of {name}: {time.perf_counter() - start:.1f} s", flush=True)
    for batch in [1, 2, 4, 8, 16, 32] if options.all else options.batch:
        rates = measure(systems, batch, options.steps, options.repeats, clock)
        for name, rate in rates.items():
            ratios = "".join(
                f"  {rate / rates[other]:5.2f} x {other}" for other in ("audiocraft", "transformers") if other in rates
            )
            print(f"batch {batch:2}  {name:15} {rate:7.1f} steps/s{ratios}", flush=True)
        if options.json:
            about = {"steps": options.steps, "threads": options.threads, "clock": options.clock}
            figures.write(options.json, {f"batch {batch}": {"steps_per_s": rates, **about}})


if __name__ == "__main__":
    main()
