"""torch.compile of the blocks: the same training, under the same names."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from vmas import config
from vmas.codec import build_codec
from vmas.decoder import Block
from vmas.encoder import EncoderBlock
from vmas.model import VMAs
from vmas.training import loop, regional
from vmas.training.data import ClipDataset
from vmas.training.tasks import VMAsTask

PROFILE = config.load(
    "smoke",
    {
        "clip": {"seconds": 1.25},
        "encoder": {"depths": (1, 1), "pool": ((8, 8),), "windows": ((8, 8), None)},
        "train": {"steps": 3, "warmup_steps": 1, "pieces_s": (), "val_every": 3, "precision": "no"},
    },
)
CLIPS = 4


def task() -> VMAsTask:
    torch.manual_seed(0)
    return VMAsTask(VMAs(PROFILE, build_codec(PROFILE.codec)))


def clips() -> ClipDataset:
    rng, c = np.random.default_rng(0), PROFILE.clip
    return ClipDataset(
        {
            "frames": rng.integers(0, 256, (CLIPS, c.num_frames, c.img_size, c.img_size, 3), np.uint8),
            "codes": rng.integers(0, PROFILE.codec.bins, (CLIPS, PROFILE.codec.n_q, PROFILE.num_tokens), np.int16),
            "weights": np.ones((CLIPS, PROFILE.num_tokens), np.float32),
        }
    )


def test_every_block_and_nothing_else_is_compiled():
    one = task()
    names = list(one.state_dict())
    blocks = [m for m in one.modules() if isinstance(m, EncoderBlock | Block)]
    assert regional.compile_blocks(one) == len(blocks) == sum(PROFILE.encoder.depths) + PROFILE.decoder.layers
    compiled = [m for m in one.modules() if m._compiled_call_impl is not None]
    assert set(map(id, compiled)) == set(map(id, blocks))
    assert list(one.state_dict()) == names


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training_equals_eager(tmp_path, checkpointing):
    ends = []
    for compiled in (False, True):
        cfg = replace(PROFILE.train, compile=compiled, activation_checkpointing=checkpointing)
        one = task()
        stage = loop.Stage("vmas", cfg.steps, CLIPS, 1e-3, cfg.warmup_steps)
        folder = tmp_path / str(compiled)
        got = loop.fit(one, clips(), clips(), cfg, stage, folder, device="cpu", progress=False, say=lambda _: None)
        ends.append((one.state_dict(), got["val"]))
    for name, value in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-4)
