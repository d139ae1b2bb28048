"""The stages of a profile: motion → music → VMAs, each a run of the loop with a folder of its own.

Stage 1 stands for the public weights that the paper starts from (Hiera's and MusicGen's) and is shared by
every condition of a seed; stage 2 is the paper's objective.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vmas import paths, versions
from vmas.config import Profile, TrainConfig, sha256
from vmas.errors import UsageError
from vmas.training import sharded
from vmas.training.loop import Preempted, Stage, fit, recipe
from vmas.training.sources import Data, open_data

STAGE_1 = {
    "lr": 0.0,
    "pretrain_lr": 0.0,
    "freeze": (),
    "encoder_lr_scale": 1.0,
    "cfg_dropout": 0.0,
    "sample_every": 0,
}  # what only stage 2 has: its conditions share stage 1


@dataclass(frozen=True)
class Session:
    """What the stages of one seed share. `say` reports the stage that begins."""

    profile: Profile
    seed: int
    device: str
    progress: bool
    say: Callable[[str], None]

    def folder(self, cfg: TrainConfig, stage: Stage, *parts) -> Path:
        """Where a stage keeps its state: named by everything that it depends on."""
        key = sha256(self.profile.clip, self.profile.corpus, recipe(cfg), stage, versions.of("training"), *parts)
        return paths.cache() / "train" / self.profile.name / f"{stage.name}-seed{self.seed}-{key[:8]}"

    def fit(self, task: nn.Module, data, cfg: TrainConfig, stage: Stage, *parts) -> dict:
        folder = self.folder(cfg, stage, *parts)
        train, val = data
        try:
            return fit(task, train, val, cfg, stage, folder, self.seed, self.device, self.progress, say=self.say)
        except Preempted as e:
            self.say(e.message)
            raise


def pretrain_encoder(session: Session, data: Data) -> tuple[nn.Module, dict]:
    """Stage 1a: the encoder learns motion and thumbnails (stands for Hiera's weights); left out at 0 steps."""
    from vmas.model import build_encoder
    from vmas.training.tasks import MotionTask

    e = session.profile.encoder
    torch.manual_seed(session.seed)
    encoder = build_encoder(session.profile)
    if not e.motion_steps:
        return encoder, {}
    session.say("stage 1a: the encoder learns motion and thumbnails (stands for Hiera's weights)")
    task = MotionTask(encoder, *MotionTask.statistics(data.flow("train")))
    stage = Stage("motion", e.motion_steps, e.motion_batch, e.motion_lr, e.motion_steps // 10)
    cfg = replace(session.profile.train, optimizer="adamw", **STAGE_1)
    return task.encoder, session.fit(task, (data.motion("train"), data.motion("val")), cfg, stage, e)


def pretrain_decoder(session: Session, data: Data, codec_sha256: str) -> tuple[nn.Module, dict]:
    """Stage 1b: the decoder learns music without video (stands for MusicGen's weights); left out at 0 steps."""
    from vmas.model import build_decoder
    from vmas.training.tasks import MusicTask

    p, cfg = session.profile, session.profile.train
    torch.manual_seed(session.seed + 1)
    decoder = build_decoder(p)
    if not cfg.pretrain_steps:
        return decoder, {}
    session.say("stage 1b: the decoder learns music without video (stands for MusicGen's weights)")
    task = MusicTask(decoder, p.encoder.out_dim, p.num_video_tokens)
    stage = Stage(
        "music", cfg.pretrain_steps, cfg.batch_size, cfg.pretrain_lr, min(cfg.warmup_steps, cfg.pretrain_steps // 4)
    )
    both = data.music("train"), data.music("val")
    return task.decoder, session.fit(task, both, replace(cfg, **STAGE_1), stage, p.decoder, codec_sha256)


def shared_rows(n: int, share: float, seed: int) -> np.ndarray | None:
    """Rows of a random share of n clips, smaller shares inside larger ones; None for all. Raises UsageError."""
    if not 0 < share <= 1:
        raise UsageError(f"the share of the training data must lie in (0, 1], got {share}")
    if share == 1:
        return None
    return np.sort(np.random.default_rng([seed, 90]).permutation(n)[: max(1, round(share * n))])


def train_profile(
    profile: Profile,
    seed: int = 0,
    device: str = "auto",
    out=None,
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
    share: float = 1.0,
    data=None,
) -> Path:
    """All stages for one seed: motion → music → VMAs; returns the folder of the finished checkpoint.

    Public weights that the profile names (Hiera, MusicGen, EnCodec) take the place of the stages that stand for
    them. `share` is the share of the training clips that stage 2 sees, drawn by the seed (figures 6 and 7). `data`
    is a folder of shards; without it the procedural corpus is read, whose codec must be there
    (`vmas.pipeline.train` makes what is missing). Every stage resumes from its own folder under the cache, so
    an interrupted command is simply given again.
    """
    from accelerate import PartialState

    from vmas.model import VMAs
    from vmas.training.tasks import VMAsTask

    out = Path(out) if out else paths.checkpoints(profile.name) / f"vmas-seed{seed}"
    state = PartialState(cpu=device == "cpu")
    session = Session(profile, seed, device, progress, say if state.is_main_process else _silent)
    codec = the_codec(profile)
    with state.main_process_first():  # one process makes what is missing
        found = open_data(profile, codec, data, progress and state.is_main_process)
    record: dict = {}
    torch.manual_seed(seed + 2)
    model = VMAs(profile, codec)
    start(model, session, found, record)

    session.say("stage 2: VMAs, L = βL_c + L_g")
    cfg = profile.train
    stage = Stage("vmas", cfg.steps, cfg.batch_size, cfg.lr, cfg.warmup_steps)
    both = found.vmas("train", shared_rows(found.clips("train"), share, seed)), found.vmas("val")
    parts = (profile.encoder, profile.decoder, profile.align, codec.sha256, *([] if share == 1 else [share]))
    record["vmas"] = session.fit(VMAsTask(model), both, cfg, stage, *parts)
    record["threads"], record["device"] = torch.get_num_threads(), str(state.device)
    record["processes"] = state.num_processes
    weights = sharded.full_state(model)
    if state.is_main_process:
        model.save_pretrained(out, seed, record, half=True, state=weights)
    state.wait_for_everyone()
    state.destroy_process_group()
    return out


def _silent(_: str) -> None:
    pass


def the_codec(profile: Profile):
    """The public codec that the profile names, else the one trained for it. Raises WeightsUnavailable."""
    from vmas import codec

    if profile.codec.weights:
        return codec.pretrained_codec(profile.codec)
    return codec.load_codec(paths.checkpoints(profile.name) / "codec")


def start(model, session: Session, data: Data, record: dict) -> None:
    """Put into `model` what stage 2 starts from: public weights where the profile names them, else stage 1's."""
    from vmas import decoder_weights, encoder_weights, weights

    p = session.profile
    if p.encoder.weights:
        session.say(f"encoder: {p.encoder.weights}")
        encoder_weights.load_pretrained(model.encoder, weights.locate(p.encoder.weights))
    else:
        encoder, record["motion"] = pretrain_encoder(session, data)
        model.encoder.load_state_dict(encoder.state_dict())
    if p.decoder.weights:
        session.say(f"decoder: {p.decoder.weights}")
        decoder_weights.load_musicgen(model.decoder, weights.locate(p.decoder.weights))
    else:
        decoder, record["music"] = pretrain_decoder(session, data, model.codec.sha256)
        model.decoder.load_state_dict(decoder.state_dict())
