"""What a target needs before it can start, made in order when it is missing.

    corpus → features → codec → tokens → tagger → motion, music, VMAs

In profile mini the weights are committed, so only the test clips are made; in profile smoke
everything is; in profile paper nothing is made: the weights and the data are the user's.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vmas import checkpoint, config, paths
from vmas.config import CodecConfig, Profile
from vmas.errors import CheckpointError, ConfigError, UsageError, WeightsUnavailable

TEST_SPLITS = ("test", "shifted")


def _missing(folder: Path) -> bool:
    return not (folder / checkpoint.MANIFEST).is_file()


def _of_weights(profile: Profile) -> dict[str, Any]:
    """The part of a profile that its trained weights depend on."""
    from vmas.training.loop import pace

    free = ("note", "status", "sampling", "eval")
    train = dataclasses.replace(pace(profile.train), precision="auto")  # weights serve whatever they were rounded to
    return {k: v for k, v in config.plain(dataclasses.replace(profile, train=train)).items() if k not in free}


def stale(folder: Path, profile: Profile) -> str:
    """Why the checkpoint in `folder` ("codec", "tagger" or "vmas-seed…") is not the profile's; "" when it is.

    Its manifest names the config that made it, and for what was trained on tokens the codec. Raises CheckpointError
    for weights that differ from their manifest.
    """
    manifest = checkpoint.verify(folder)
    about, training = manifest["config"], manifest["training"]
    where = f"{folder}/{checkpoint.MANIFEST}"
    try:
        if manifest["kind"] == "codec":
            same = config.from_dict(CodecConfig, about, source=where) == profile.codec
        elif manifest["kind"] == "tagger":
            wanted = (profile.eval.tagger_width, profile.eval.tagger_steps)
            same = (about["width"], training["steps"]) == wanted
        else:
            same = _of_weights(config.from_dict(Profile, about, source=where)) == _of_weights(profile)
    except (ConfigError, KeyError, TypeError):
        same = False
    if not same:
        return "was made with other settings than the profile has now"
    codec, made_with = folder.parent / "codec", training.get("codec_sha256")
    if made_with and not _missing(codec) and checkpoint.read_manifest(codec)["sha256"] != made_with:
        return "was trained on the tokens of another codec"
    return ""


def _to_make(folder: Path, profile: Profile, say: Callable[[str], None]) -> bool:
    """Whether a checkpoint has to be made: it is missing, or stale where it lies in the cache.

    Raises CheckpointError for a stale or altered one among the committed: those are nobody's to replace unasked.
    """
    if _missing(folder):
        return True
    if not (why := stale(folder, profile)):
        return False
    if folder.is_relative_to(paths.cache()):
        say(f"{folder.name}: {why}; it is made again")
        return True
    again = f"'vmas train --profile {profile.name}'"
    raise CheckpointError(folder, why, f"restore the profile or the folder, or remove it and train again ({again})")


def check_sizes(profile: Profile) -> None:
    """Build the model's parts without memory: impossible sizes stop here and not after minutes of work.

    Raises ConfigError.
    """
    import torch

    from vmas.encoder_cost import Unfilled
    from vmas.model import build_decoder, build_encoder

    with torch.device("meta"), Unfilled():
        build_encoder(profile)
        build_decoder(profile)


def plan(profile: Profile, seed: int = 0) -> list[tuple[str, Path, bool]]:
    """(what, where, already there) for everything that `ensure` looks after."""
    root, corpus = paths.checkpoints(profile.name), paths.corpus(profile.name)
    names = ["codec", "tagger", f"vmas-seed{seed}"]
    steps = [(f"{n} weights", root / n, not _missing(root / n)) for n in names]
    splits = TEST_SPLITS if all(done for *_, done in steps) else ("train", "val", *TEST_SPLITS)
    clips = [(f"corpus, split {s}", corpus / s, (corpus / f"{s}.parquet").is_file()) for s in splits]
    return clips + steps


def ensure(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Make what is missing for generation and evaluation; returns the folder of the checkpoints.

    Raises WeightsUnavailable in profile paper when a checkpoint is missing: nothing is ever replaced by a
    smaller model.
    """
    root = paths.checkpoints(profile.name)
    model = root / f"vmas-seed{seed}"
    check_sizes(profile)
    missing = [d for d in (root / "codec", root / "tagger", model) if _to_make(d, profile, say)]
    if profile.name == "paper" and missing:
        raise WeightsUnavailable(
            f"profile paper needs {missing[0].name} in {missing[0].parent}: train it with 'vmas train --profile paper'"
            " on the real data (weights of Hiera, MusicGen and EnCodec: 'vmas weights list')"
        )
    parts(profile, seed, progress, workers, say, ("train", "val", *TEST_SPLITS) if missing else TEST_SPLITS)
    if _to_make(model, profile, _no_word):
        from vmas.train import train_profile

        train_profile(profile, seed, device, model, progress, say)
    return root


def _no_word(_: str) -> None:
    pass


def parts(
    profile: Profile,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    splits: tuple[str, ...] = ("train", "val", *TEST_SPLITS),
) -> Path:
    """Corpus, codec and tagger, made where they are missing: what every training run of a profile shares."""
    from vmas.corpus import make

    root = paths.checkpoints(profile.name)
    for name in ("codec", "tagger"):  # before any work
        _to_make(root / name, profile, _no_word)
    say(f"corpus: {', '.join(splits)}")
    make(paths.corpus(profile.name), profile, splits=splits, workers=workers, progress=progress)
    if _to_make(root / "codec", profile, _no_word):
        say("codec: training")
        ensure_codec(profile, root / "codec", seed, progress)
    if _to_make(root / "tagger", profile, _no_word):
        say("tagger: training")
        ensure_tagger(profile, root / "tagger", seed, progress)
    return root


def train(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    out=None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    data=None,
) -> Path:
    """`vmas train`: corpus and codec when missing, then all training stages; returns the checkpoint's folder.

    `data`: a folder of shards to train on instead of the corpus. Raises UsageError for profile paper without it,
    WeightsUnavailable when the public weights are not there.
    """
    from accelerate import PartialState

    from vmas.corpus import make
    from vmas.train import train_profile

    root = paths.checkpoints(profile.name)
    if data is None and profile.name == "paper":
        raise UsageError(
            "profile paper trains on real data: name a folder of shards with --data ('vmas dataset build' writes them)"
        )
    check_sizes(profile)
    state = PartialState(cpu=device == "cpu")
    with state.main_process_first():  # one process makes what is missing, the others find it
        if data is None and state.is_main_process:
            say("corpus: train, val")
            make(paths.corpus(profile.name), profile, splits=("train", "val"), progress=progress)
            if _to_make(root / "codec", profile, say):
                say("codec: training")
                ensure_codec(profile, root / "codec", seed, progress)
    return train_profile(profile, seed, device, out, progress, say, data=data)


def ensure_codec(profile: Profile, out: Path, seed: int, progress: bool) -> None:
    """Train the mini codec on the training split."""
    from vmas.codec_train import train_codec
    from vmas.features import build_split

    waves = {
        s: np.load(build_split(profile, s, progress=progress) / "waveforms.npy", mmap_mode="r")
        for s in ("train", "val")
    }
    train_codec(profile, waves["train"], out, val=waves["val"], seed=seed, progress=progress)


def ensure_tagger(profile: Profile, out: Path, seed: int, progress: bool) -> None:
    """Train the mini tagger on the training split and on its reconstructions by the codec."""
    from vmas.codec import load_codec
    from vmas.embedders.tagger_train import train_tagger
    from vmas.features import load_split

    train, val = (load_split(profile, s, progress=progress) for s in ("train", "val"))
    codec = load_codec(paths.checkpoints(profile.name) / "codec")
    train_tagger(
        profile,
        train.waveforms,
        train.genres,
        codec,
        out,
        val=(val.waveforms, val.genres),
        seed=seed,
        progress=progress,
    )
