"""A step of stage 1b, music without a video: the cross-attention to a null condition worked out, and left out (CPU).

    python benchmarks/bench_music_step.py [--profile mini] [--threads 2] [--repeats 7]

One run, interleaved: forward and backward of one batch for every length of pieces that the profile draws, once with X_v
zero and masked, once without X_v as `MusicTask` trains. The loss is the same in every bit (asserted here, too).
`--json FILE` also writes the figures.
"""

import argparse
import statistics
import time

import figures
import torch

from vmas import config, losses
from vmas.memory import keep_freed
from vmas.model import build_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    keep_freed()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    p = config.load(args.profile)
    decoder = build_decoder(p)
    b, T = p.train.batch_size, p.num_tokens
    codes = torch.randint(p.codec.bins, (b, p.codec.n_q, T))
    null = torch.zeros(b, p.num_video_tokens, p.encoder.out_dim), torch.zeros(b, dtype=torch.bool)

    def step(length: int, with_cross: bool) -> tuple[float, torch.Tensor]:
        decoder.zero_grad()
        start = time.perf_counter()
        pieces = T // length
        if with_cross:
            logits = decoder.codec_time_logits(codes, *null, pieces)
        else:
            logits = decoder.codec_time_logits(codes, None, pieces=pieces)
        loss = losses.weighted_cross_entropy(logits, codes)
        loss.backward()
        return time.perf_counter() - start, loss.detach()

    ratios = []
    for length in p.piece_tokens or (T,):
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(args.repeats + 1):
            found = {with_cross: step(length, with_cross) for with_cross in (True, False)}
            assert torch.equal(found[True][1], found[False][1]), "not the same loss"
            for with_cross, (seconds, _loss) in found.items():
                times[with_cross].append(seconds)
        pairs = list(zip(times[True][1:], times[False][1:], strict=True))  # the first warms up
        ratio = statistics.median(a / c for a, c in pairs)
        ratios.append(ratio)
        worked, left = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"pieces of {length:3} tokens: {worked:.3f} s worked out, {left:.3f} s left out, {ratio:.2f}x")
    mean = statistics.mean(ratios)
    print(f"{args.profile}: {mean:.2f}x, mean over the lengths, batch {b}, {args.threads} threads, float32")
    if args.json:
        figures.write(args.json, {args.profile: {"ratio": mean, "threads": args.threads, "repeats": args.repeats}})


if __name__ == "__main__":
    main()
