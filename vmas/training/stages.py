"""The stages of a profile: motion → music → VMAs, each a run of the loop with a folder of its own.

Stage 1 stands for the public weights that the paper starts from (Hiera's and MusicGen's) and is shared by
every condition of a seed; stage 2 is the paper's objective.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vmas import checkpoint, config, paths, versions
from vmas.config import Profile, TrainConfig, sha256
from vmas.errors import UsageError
from vmas.training import sharded
from vmas.training.data import ROWS, Array, ClipDataset, Held, Source
from vmas.training.loop import Preempted, Stage, fit, preemptible, recipe, settled
from vmas.training.sources import Data, open_data
from vmas.training.state import Checkpoints

STAGE_1 = {
    "lr": 0.0,
    "pretrain_lr": 0.0,
    "freeze": (),
    "encoder_lr_scale": 1.0,
    "cfg_dropout": 0.0,
    "calibrate": False,
    "sample_every": 0,
}  # what only stage 2 has: its conditions share stage 1


HOLD = 2**30  # bytes of a stream's clips without pictures
CHUNK = 64  # clips
CALIBRATION = 256  # training clips over which the condition is standardised


@dataclass(frozen=True)
class Session:
    """What the stages of one seed share. `say` reports the stage that begins; `publish` commits what stage 1 learnt.

    `again` trains stage 2 anew where it had been finished; one that was interrupted goes on all the same.
    """

    profile: Profile
    seed: int
    device: str
    progress: bool
    say: Callable[[str], None]
    publish: bool = False
    again: bool = False

    def folder(self, cfg: TrainConfig, stage: Stage, *parts) -> Path:
        """Where a stage keeps its state: named by everything that it depends on."""
        key = sha256(self.profile.clip, self.profile.corpus, recipe(cfg), stage, versions.of("training"), *parts)
        return paths.cache() / "train" / self.profile.name / f"{stage.name}-seed{self.seed}-{key[:8]}"

    def stage_1(
        self, task: nn.Module, module: nn.Module, data: Callable[[], tuple], cfg: TrainConfig, stage: Stage, *parts
    ) -> dict:
        """`fit` of `task`, whose lasting part is `module`, unless what it learnt lies among the checkpoints.

        `data` gives the training and the validation source, and is asked for them only when something is trained: the
        further music of stage 1b takes minutes to make.

        Runs of one seed on several machines, or on several days, then start from the same bits. With `publish` it is
        put there, in half precision, and read back, so that the run that made it starts from what the others will.
        """
        from accelerate import PartialState
        from filelock import FileLock

        place = published(self.profile) / self.folder(cfg, stage, *parts).name
        if (place / checkpoint.MANIFEST).is_file():
            state, manifest = checkpoint.load(place, "stage1")
            checkpoint.load_into(module, state, place)
            return {**manifest["training"], "sha256": manifest["sha256"]}
        if PartialState().num_processes > 1:
            record = self.fit(task, data(), cfg, stage, *parts)
            return {**record, "state_sha256": checkpoint.state_sha256(sharded.full_state(module))}
        lock = paths.cache() / "locks" / f"{place.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # runs of a sweep side by side: the first trains, the others find its state
            record = self.fit(task, data(), cfg, stage, *parts)
        if self.publish:
            checkpoint.save(place, module.state_dict(), "stage1", {"stage": stage.name}, self.seed, record, half=True)
            return self.stage_1(task, module, data, cfg, stage, *parts)
        return {**record, "state_sha256": checkpoint.state_sha256(module.state_dict())}

    def stage_2(self, task: nn.Module, data, cfg: TrainConfig, stage: Stage, *parts) -> dict:
        folder = self.folder(cfg, stage, *parts)
        if self.again and stage.steps in Checkpoints(folder / "states").steps():
            shutil.rmtree(folder)
        return self.fit(task, data, cfg, stage, *parts)

    def fit(self, task: nn.Module, data, cfg: TrainConfig, stage: Stage, *parts) -> dict:
        folder = self.folder(cfg, stage, *parts)
        train, val = data
        return fit(task, train, val, cfg, stage, folder, self.seed, self.device, self.progress, say=self.say)


def pretrain_encoder(session: Session, data: Data) -> tuple[nn.Module, dict]:
    """Stage 1a: the encoder learns motion, thumbnails and scenes (stands for Hiera's weights); left out at 0 steps."""
    from vmas.model import build_encoder
    from vmas.training.tasks import MotionTask

    e = session.profile.encoder
    torch.manual_seed(session.seed)
    encoder = build_encoder(session.profile)
    if not e.motion_steps:
        return encoder, {}
    session.say("stage 1a: the encoder learns motion, thumbnails and scenes (stands for Hiera's weights)")
    task = MotionTask(encoder, *MotionTask.statistics(data.flow("train")), data.scenes)
    stage = Stage("motion", e.motion_steps, e.motion_batch, e.motion_lr, e.motion_steps // 10)
    cfg = replace(session.profile.train, optimizer="adamw", pieces_s=(), **STAGE_1)

    def both():
        return data.motion("train"), data.motion("val")

    return task.encoder, session.stage_1(task, task.encoder, both, cfg, stage, e, *named(data.keys[0]))


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
    task = MusicTask(decoder, p.piece_tokens)
    stage = Stage(
        "music", cfg.pretrain_steps, cfg.batch_size, cfg.pretrain_lr, min(cfg.warmup_steps, cfg.pretrain_steps // 4)
    )

    def both():
        return data.music("train"), data.music("val")

    # without a condition the time bias has nothing to act on: conditions with and without it share this stage
    parts = replace(p.decoder, time_bias_s=None, row_times="evenly"), codec_sha256, *_own_width(p), *named(data.keys[0])
    return task.decoder, session.stage_1(task, task.decoder, both, replace(cfg, **STAGE_1), stage, *parts)


def published(profile: Profile) -> Path:
    """Folder of the committed results of stage 1, one checkpoint a stage and seed, named by all that it depends on."""
    return paths.checkpoints(profile.name) / "stage1"


def named(key: str) -> list[str]:
    """[key], or nothing for the procedural corpus's own clips, which the profile already names."""
    return [key] if key else []


def _own_width(profile: Profile) -> list[int]:
    """[d] where X_v has another width than in the profile as it stands: the decoder is then another one."""
    d = profile.encoder.out_dim
    return [] if profile.name in config.PROFILES and d == config.load(profile.name).encoder.out_dim else [d]


@torch.no_grad()
def encode(model, frames: Array, batch: int = 16) -> torch.Tensor:
    """X_v float32 [N,t_v/2,d] of uint8 frames [N,t_v,H,W,3], without dropout."""
    training = model.training
    model.eval()
    parts = (torch.from_numpy(np.array(frames[i : i + batch])) for i in range(0, len(frames), batch))
    X_v = torch.cat([model.encode_video(part.to(model.device)).float() for part in parts])
    model.train(training)
    return X_v


@torch.no_grad()
def calibrate(model, frames: np.ndarray) -> None:
    """Let the projected condition begin with mean 0 and standard deviation 1 over `frames` uint8 [N,t_v,H,W,3].

    Every dimension of X_v is standardised first; both maps are folded into `cond_proj`, so nothing is added to the
    model. A pretrained encoder's tokens share a large mean, beside which what tells clips apart is small.
    """
    X_v = encode(model, frames).flatten(0, 1)
    mean, std = X_v.mean(0), X_v.std(0).clamp(min=1e-6)
    proj = model.decoder.cond_proj
    scale = ((X_v - mean) / std @ proj.weight.T).std().clamp(min=1e-6)
    proj.weight.copy_(proj.weight / std / scale)
    proj.bias.copy_(-proj.weight @ mean)


def seen_once(model, source: Source, hold: int = HOLD) -> Source:
    """`source` with "X_v" of every clip, where the encoder is frozen whole and says the same at every step.

    A stream of shards is then held in memory without its pictures, unless that takes more than `hold` bytes.
    """
    frozen = not any(p.requires_grad for p in model.encoder.parameters())
    if not frozen or model.profile.encoder.drop_path_rate:
        return source
    if isinstance(source, ClipDataset):
        arrays = {k: v for k, v in source.arrays.items() if k != "frames"}
        arrays["X_v"] = encode(model, source.arrays["frames"]).cpu().numpy()
        return Held(arrays, source, source.rows)
    one = {k: v for k, v in source.first(1).items() if k not in ("frames", ROWS)}
    p = model.profile
    one["X_v"] = torch.empty(1, p.num_video_tokens, p.encoder.out_dim)
    shapes = {k: (len(source), *v.shape[1:]) for k, v in one.items()}
    if sum(math.prod(shape) * one[k].element_size() for k, shape in shapes.items()) > hold:
        return source
    arrays = {k: np.empty(shape, one[k].numpy().dtype) for k, shape in shapes.items()}
    for i in range(0, len(source), CHUNK):
        batch = source.__getitems__(range(i, min(i + CHUNK, len(source))))
        batch["X_v"] = encode(model, batch.pop("frames").numpy()).cpu()
        for k, a in arrays.items():
            a[i : i + CHUNK] = batch[k].numpy()
    return Held(arrays, source)


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
    publish: bool = False,
    again: bool = False,
) -> Path:
    """All stages for one seed: motion → music → VMAs; returns the folder of the finished checkpoint.

    Public weights that the profile names (Hiera, MusicGen, EnCodec) take the place of the stages that stand for
    them. `share` is the share of the training clips that stage 2 sees, drawn by the seed (figures 6 and 7). `data`
    is a folder of shards or `Data` already open; without it the procedural corpus is read, whose codec must be there
    (`vmas.pipeline.train` makes what is missing). Every stage resumes from its own folder under the cache, so
    an interrupted command is simply given again; `again` trains a finished stage 2 anew. `publish` puts what stage 1
    learnt among the checkpoints, where every later run of the seed finds it.
    """
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    profile = replace(profile, train=settled(profile.train, device))
    if profile.train.precision == "fp32":  # a GPU's convolutions would else round what they multiply to TF32
        torch.backends.cudnn.allow_tf32 = False
    publish = publish and state.num_processes == 1
    again = again and state.num_processes == 1
    session = Session(profile, seed, device, progress, say if state.is_main_process else _silent, publish, again)
    out = Path(out) if out else paths.checkpoints(profile.name) / f"vmas-seed{seed}"
    try:
        with preemptible():
            return _all_stages(session, out, share, data, state)
    except Preempted as e:
        session.say(e.message)
        # without an orderly end gloo's threads may abort the exit with 0
        state.destroy_process_group()
        raise


def _all_stages(session: Session, out: Path, share: float, data, state) -> Path:
    from vmas.model import VMAs
    from vmas.training.tasks import VMAsTask

    profile, seed = session.profile, session.seed
    codec = the_codec(profile)
    with state.main_process_first():  # one process makes what is missing
        opened = data is not None and not isinstance(data, str | os.PathLike)
        found = data if opened else open_data(profile, codec, data, session.progress and state.is_main_process)
    record: dict = {}
    torch.manual_seed(seed + 2)
    model = VMAs(profile, codec)
    start(model, session, found, record)
    model.to(state.device)
    if profile.train.calibrate:
        calibrate(model, found.frames(CALIBRATION))

    session.say("stage 2: VMAs, L = βL_c + L_g")
    cfg = profile.train
    stage = Stage("vmas", cfg.steps, cfg.batch_size, cfg.lr, cfg.warmup_steps)
    both = found.vmas("train", shared_rows(found.clips("train"), share, seed)), found.vmas("val")
    parts = (profile.encoder, profile.decoder, profile.align, codec.sha256, *([] if share == 1 else [share]))
    # a state of stage 2 belongs to the stage 1 that it began from
    parts = *parts, *named(found.keys[1]), *_began(profile, record)
    task = VMAsTask(model)
    record["vmas"] = session.stage_2(task, [seen_once(model, part) for part in both], cfg, stage, *parts)
    record["threads"], record["device"] = torch.get_num_threads(), str(state.device)
    record["processes"] = state.num_processes
    weights = sharded.full_state(model)
    if state.is_main_process:
        model.save_pretrained(out, seed, record, half=True, state=weights)
    state.wait_for_everyone()
    state.destroy_process_group()
    return out


def _began(profile: Profile, record: dict) -> list:
    """What `recipe` and the encoder's options leave out of the stage 1 of a run: its length, and which bits it gave."""
    bits = [record.get(name, {}).get("sha256", "") for name in ("motion", "music")]
    return [0 if profile.decoder.weights else profile.train.pretrain_steps, *bits]


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
