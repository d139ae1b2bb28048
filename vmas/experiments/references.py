"""What every system is judged against: the test sets' own music, its reconstruction, and the pictures' peaks.

It depends on data, codec and tagger alone, so that a sweep of many models computes it once: kept under the
cache, named by everything it depends on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmas import checkpoint, paths, versions
from vmas.config import Profile, sha256
from vmas.experiments import evaluate
from vmas.experiments.evaluate import Analysis, Evaluator, Reference
from vmas.features import SplitFeatures, load_split

STAGES = ("codec", "flow", "mv_align", "tagger", "evaluation")


@dataclass(frozen=True)
class TestSet:
    """One test set: its name in tables, its clips (the first n), and the reference for its metrics."""

    __test__ = False  # not a test, whatever its name says to pytest

    dataset: str
    split: SplitFeatures
    n: int
    reference: Reference
    coded: Analysis  # the same music through the codec


def through_codec(codec, tokens: np.ndarray, samples: int) -> np.ndarray:
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


def load(
    profile: Profile,
    name: str,
    dataset: str,
    codec,
    judge: Evaluator,
    progress: bool = True,
    fresh: bool = False,
    done: Callable[[], object] | None = None,
) -> TestSet:
    """The test set `name` (a split of the corpus) with its reference; `fresh` analyses the music again."""
    from vmas.corpus import data_sha256

    split = load_split(profile, name, codec, progress, judge.pool)
    assert split.tokens is not None  # a codec was given
    n = min(profile.eval.clips or len(split), len(split))
    tagger = checkpoint.read_manifest(paths.checkpoints(profile.name) / "tagger")["sha256"]
    key = sha256(data_sha256(profile), profile.clip, name, n, codec.sha256, tagger, versions.of(*STAGES))
    file = paths.cache() / "references" / f"{profile.name}-{name}-{key[:12]}.npz"
    kept = None if fresh else _read(file)
    if kept is None:
        real = judge.analyse(split.waveforms[:n], done)
        coded = judge.analyse(through_codec(codec, split.tokens[:n], profile.clip.num_samples), done)
        _write(file, real, coded)
    else:
        real, coded = kept
        for _ in range(2 * n if done else 0):
            done()  # type: ignore[misc]
    version = profile.eval.mv_align_version
    video = {
        profile.clip.fps: evaluate.video_peaks(split.flow[:n], profile.clip.fps, version),
        profile.clip.dense_fps: evaluate.video_peaks(split.dense_flow[:n], profile.clip.dense_fps, version),
    }
    return TestSet(dataset, split, n, Reference(real, coded, split.genres[:n], video), coded)


def generated(model, found: TestSet, seed: int, judge: Evaluator, bar) -> Analysis:
    """The analysis of the music that `model` makes for a test set; `bar` (tqdm) moves by two a clip."""
    n, before = found.n, bar.n
    bar.set_postfix_str("generating")

    def tell(step: int, steps: int) -> None:
        bar.update(before + n * step // steps - bar.n)

    waves = model.generate_waveform(found.split.frames[:n], seed=seed, progress=tell)
    bar.update(before + n - bar.n)
    bar.set_postfix_str("evaluating")
    return judge.analyse(np.round(np.clip(waves, -1, 1) * 32767).astype(np.int16), bar.update)


def _flat(a: Analysis, name: str) -> dict[str, np.ndarray]:
    lengths = np.array([len(o) for o in a.onsets], dtype=np.int64)
    onsets = np.concatenate(a.onsets) if lengths.sum() else np.zeros(0)
    parts = {"embeddings": a.embeddings, "logits": a.logits, "onsets": onsets, "lengths": lengths}
    return {f"{name}_{k}": v for k, v in parts.items()}


def _write(file: Path, real: Analysis, coded: Analysis) -> None:
    import os

    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{os.getpid()}-{file.name}")
    np.savez(aside, allow_pickle=False, **_flat(real, "real"), **_flat(coded, "coded"))  # type: ignore[arg-type]
    os.replace(aside, file)


def _read(file: Path) -> tuple[Analysis, Analysis] | None:
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as d:
            found = [
                Analysis(
                    d[f"{n}_embeddings"],
                    d[f"{n}_logits"],
                    np.split(d[f"{n}_onsets"], np.cumsum(d[f"{n}_lengths"])[:-1]),
                )
                for n in ("real", "coded")
            ]
    except (OSError, ValueError, KeyError):
        return None  # damaged: computed again
    return found[0], found[1]
