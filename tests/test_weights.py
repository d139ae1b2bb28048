"""Public weights: named with source and licence, checked before use, never replaced."""

import json

import pytest

from vmas import weights
from vmas.errors import CheckpointError, UsageError, WeightsUnavailable


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", list(weights.REGISTRY))
def test_absent_weights_say_file_source_and_licence(home, name):
    w = weights.REGISTRY[name]
    with pytest.raises(WeightsUnavailable) as e:
        weights.locate(name)
    assert all(part in str(e.value) for part in (w.file, w.source, w.licence))
    assert weights.status(name) == "absent"


def test_hash_in_the_name_is_checked(home):
    (home / weights.get("vggish").file).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="sha256"):
        weights.locate("vggish")


def test_lock_is_checked(home):
    path = home / weights.get("encodec_32khz").file
    path.write_bytes(b"one")
    first = weights.verify("encodec_32khz")
    (home / "weights.lock.json").write_text(json.dumps({"encodec_32khz": first}))
    assert weights.locate("encodec_32khz") == path
    path.write_bytes(b"two")
    with pytest.raises(CheckpointError, match="sha256"):
        weights.locate("encodec_32khz")


def test_unknown_name(home):
    with pytest.raises(UsageError, match="did you mean vggish"):
        weights.get("vgish")
