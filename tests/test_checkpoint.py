"""Checkpoint folders: whole or absent, checked by sha256, clear about what does not fit."""

import json

import pytest
import torch
from torch import nn

from vmas import checkpoint
from vmas.errors import CheckpointError


def saved(folder, half=False):
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    checkpoint.save(folder, net.state_dict(), "line", {"in": 3}, seed=4, training={"steps": 1}, half=half)
    return net


def test_round_trip(tmp_path):
    net = saved(tmp_path / "c")
    state, manifest = checkpoint.load(tmp_path / "c", "line")
    assert torch.equal(state["weight"], net.weight)
    assert (manifest["seed"], manifest["config"], manifest["training"]) == (4, {"in": 3}, {"steps": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_half_is_stored_and_read_back_in_float32(tmp_path):
    net = saved(tmp_path / "c", half=True)
    state, _ = checkpoint.load(tmp_path / "c")
    assert state["weight"].dtype == torch.float32
    assert torch.equal(state["weight"], net.weight.half().float())


def test_overwrite_leaves_one_folder(tmp_path):
    saved(tmp_path / "c")
    saved(tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_tampered_weights(tmp_path):
    saved(tmp_path / "c")
    raw = bytearray((tmp_path / "c" / checkpoint.WEIGHTS).read_bytes())
    raw[-1] ^= 1
    (tmp_path / "c" / checkpoint.WEIGHTS).write_bytes(raw)
    with pytest.raises(CheckpointError, match="differ from the manifest's sha256"):
        checkpoint.load(tmp_path / "c")


def test_corrupted_weights_with_a_matching_manifest(tmp_path):
    saved(tmp_path / "c")
    (tmp_path / "c" / checkpoint.WEIGHTS).write_bytes(b"not safetensors at all")
    manifest = json.loads((tmp_path / "c" / checkpoint.MANIFEST).read_text())
    manifest["sha256"] = checkpoint.file_sha256(tmp_path / "c" / checkpoint.WEIGHTS)
    (tmp_path / "c" / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sha256": 3, "kind": "line"}'])
def test_damaged_manifest(tmp_path, text):
    saved(tmp_path / "c")
    (tmp_path / "c" / checkpoint.MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path / "c")


def test_missing_and_other_kind(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.load(tmp_path / "none")
    saved(tmp_path / "c")
    with pytest.raises(CheckpointError, match="kind 'line', not 'codec'"):
        checkpoint.load(tmp_path / "c", "codec")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(4, 2), "weight is \\(2, 3\\), the model has \\(2, 4\\)"),
        (nn.Linear(3, 2, bias=False), "bias is unknown"),
        (nn.Sequential(nn.Linear(3, 2)), "0.bias is missing"),
    ],
)
def test_other_architecture(tmp_path, net, message):
    saved(tmp_path / "c")
    state, _ = checkpoint.load(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_into(net, state, tmp_path / "c")


def test_state_sha256_sees_names_shapes_and_bits():
    state = {
        "n": torch.tensor(3),
        "none": torch.zeros(0),
        "b": torch.arange(4.0),
        "a": torch.zeros(2, 2, dtype=torch.float16),
    }
    sha = checkpoint.state_sha256(state)
    assert sha == checkpoint.state_sha256(dict(reversed(state.items()))), "in the order of the names"
    assert sha == checkpoint.state_sha256({**state, "a": state["a"].T})
    others = [
        {**state, "b": torch.arange(4.0) + 1e-6},
        {**state, "a": torch.zeros(4, dtype=torch.float16)},
        {**state, "a": torch.zeros(2, 2)},
        {**{k: v for k, v in state.items() if k != "b"}, "c": state["b"]},
    ]
    assert len({sha, *map(checkpoint.state_sha256, others)}) == 5
