"""Table 3, comparison with the state of the art: ours computed here, the paper's systems quoted.

Three rows give the scale: real music (what a perfect system would make), real music through the codec (the
ceiling of anything that speaks in its tokens) and the codec's music of another video (the floor of
alignment: perfect music, wrong picture). One procedural test set stands for DISCO-MV, its style shift for
MusicCaps.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vmas import checkpoint, paths, pipeline, records, versions
from vmas.config import Profile, sha256
from vmas.errors import DataError
from vmas.experiments import evaluate
from vmas.records import Record, Row
from vmas.report import paper

TARGET = "table3"
TITLE = "Table 3. Comparison with the state of the art"
DATASETS = {"shifted": "corpus, shifted style (stands for MusicCaps)", "test": "corpus, test (stands for DISCO-MV)"}
OURS, REAL, CODEC, SHUFFLED = "VMAs (ours)", "Real music", "Real music, through the codec", "Music of another video"
STAGES = ("codec", "encoder", "decoder", "sampling", "flow", "fad", "kl", "mv_align", "tagger", "evaluation")
SHUFFLE_SEED = 20_240


def _weights(profile: Profile, seed: int) -> dict[str, str]:
    """sha256 of every checkpoint used; `absent` where a run will make it first."""
    root = paths.checkpoints(profile.name)
    out = {}
    for name in ("codec", "tagger", f"vmas-seed{seed}"):
        there = (root / name / checkpoint.MANIFEST).is_file()
        out[name] = checkpoint.read_manifest(root / name)["sha256"] if there else "absent"
    return out


def key(profile: Profile, seed: int = 0) -> str:
    """Hash of everything the table depends on: config, data, weights, stage versions, seed."""
    from vmas.corpus import data_sha256

    config = dataclasses.replace(profile, note="")  # words under a table change no number
    return sha256(TARGET, config, data_sha256(profile), _weights(profile, seed), seed, versions.of(*STAGES))


def _generate(model, frames: np.ndarray, seed: int, tell: Callable[[int], Any]) -> np.ndarray:
    """Music int16 [N,samples] for frames [N,T,H,W,3]; `tell` gets the number of clips done."""
    waves = model.generate_waveform(frames, seed=seed, progress=lambda step, steps: tell(len(frames) * step // steps))
    return np.round(np.clip(waves, -1, 1) * 32767).astype(np.int16)


def _through_codec(codec, tokens: np.ndarray, samples: int) -> np.ndarray:
    """Music int16 [N,samples] decoded from tokens [N,K,t_a]."""
    import torch

    device = next(codec.parameters()).device
    out = np.empty((len(tokens), samples), np.int16)
    with torch.inference_mode():
        for i in range(0, len(tokens), evaluate.CHUNK):
            codes = torch.from_numpy(np.asarray(tokens[i : i + evaluate.CHUNK], dtype=np.int64)).to(device)
            wav = codec.decode(codes)[:, 0, :samples].float().cpu().numpy()
            out[i : i + len(wav)] = np.round(np.clip(wav, -1, 1) * 32767)
    return out


def _quiet(_: str) -> None:
    pass


def compute(
    profile: Profile, seed: int = 0, device: str = "auto", progress: bool = True, say: Callable[[str], None] = _quiet
) -> Record:
    """Generate and evaluate on both test sets; returns the record with the paper's rows quoted beside.

    `seed` names the trained model (`vmas-seed<seed>`) and the first of `eval.sampling_seeds` sampling seeds.
    Raises WeightsUnavailable in profile paper.
    """
    from tqdm.auto import tqdm

    from vmas.corpus import data_sha256
    from vmas.embedders.tagger import load_tagger
    from vmas.features import load_split
    from vmas.generate import pick_device
    from vmas.metrics.mv_align import derangements
    from vmas.model import VMAs

    start = time.monotonic()
    device = pick_device(device)
    root = pipeline.ensure(profile, seed, device, progress, say=say)
    if profile.name == "paper":
        raise DataError("table3 at paper scale needs the real test sets; this version reads the procedural corpus only")
    say("generating and evaluating")
    model = VMAs.from_pretrained(root / f"vmas-seed{seed}", device)
    tagger, rate, version = load_tagger(root / "tagger"), profile.clip.sample_rate, profile.eval.mv_align_version
    seeds = [seed + i for i in range(profile.eval.sampling_seeds)]
    table: list[Row] = []
    extra: dict[str, Any] = {"note": profile.note, "fad_floor": {}, "datasets": DATASETS, "sampling_seeds": seeds}
    with evaluate.Evaluator(tagger, rate) as judge:
        for name, dataset in DATASETS.items():
            split = load_split(profile, name, model.codec, progress)
            n = profile.eval.clips or len(split)
            n = min(n, len(split))
            total = n * (2 * len(seeds) + 2)
            with tqdm(total=total, desc=f"{TARGET} {name}", unit="clip", disable=None if progress else True) as bar:
                draws = []
                for s in seeds:
                    before = bar.n
                    bar.set_postfix_str("generating")
                    waves = _generate(model, split.frames[:n], s, lambda k, b=before: bar.update(b + k - bar.n))
                    bar.update(before + n - bar.n)
                    bar.set_postfix_str("evaluating")
                    draws.append(judge.analyse(waves, bar.update))
                codec_waves = _through_codec(model.codec, split.tokens[:n], profile.clip.num_samples)
                real = judge.analyse(split.waveforms[:n], bar.update)
                coded = judge.analyse(codec_waves, bar.update)
            video = {
                profile.clip.fps: evaluate.video_peaks(split.flow[:n], profile.clip.fps, version),
                profile.clip.dense_fps: evaluate.video_peaks(split.dense_flow[:n], profile.clip.dense_fps, version),
            }
            ref = evaluate.Reference(real, coded, split.genres[:n], video)
            # Not the seed of MV Align's own shuffles: one of them would undo this one and pair clips rightly again.
            shuffled = coded.take(derangements(n, 1, SHUFFLE_SEED)[0])
            floor = evaluate.fad_floor(coded)
            extra["fad_floor"][dataset] = {"value": floor, "n": n // 2}
            for system, got, note in (
                (OURS, draws, ""),
                (REAL, [real], ""),
                (CODEC, [coded], f"Random halves of it (N = {n // 2}) lie FAD {floor:.2f} apart."),
                (SHUFFLED, [shuffled], "The codec's music, every clip's own replaced by another clip's."),
            ):
                table += evaluate.rows(system, dataset, got, ref, profile, note)
    table += paper.quoted_rows(TARGET)
    prov = records.provenance(
        f"vmas reproduce {TARGET} --profile {profile.name} --seed {seed}",
        time.monotonic() - start,
        sha256(profile),
        data_sha256(profile),
        _weights(profile, seed)[f"vmas-seed{seed}"],
        device,
    )
    return Record(TARGET, profile.name, TITLE, key(profile, seed), tuple(table), prov, extra)


def placement(record: Record) -> list[dict[str, Any]]:
    """How far our row is from its chance (0) to the codec's music (1), and whether its interval clears chance.

    One dict per data set and metric: dataset, metric, share, verdict ("better than chance", "worse than
    chance", "cannot tell": the interval contains it). FAD has no chance: music of other videos is the same set.
    """
    out = []
    for dataset in DATASETS.values():
        for metric in dict.fromkeys(r.metric for r in record.rows if r.dataset == dataset and r.system == OURS):
            ours, top = record.row(OURS, dataset, metric), record.row(CODEC, dataset, metric)
            if ours.value is None or ours.chance is None or top.value is None or top.chance is None:
                continue
            lo, hi = (x - ours.chance for x in ours.ci95) if ours.ci95 else (-math.inf, math.inf)
            if ours.direction == "down":
                lo, hi = -hi, -lo
            verdict = "better than chance" if lo > 0 else "worse than chance" if hi < 0 else "cannot tell"
            share = (ours.value - ours.chance) / (top.value - top.chance)
            out.append({"dataset": dataset, "metric": metric, "share": share, "verdict": verdict})
    return out
