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


def test_a_model_of_several_files_is_known_by_all_of_them(home):
    w = weights.get("clap_htsat_unfused")
    assert all(address.startswith(w.source) and "/resolve/main/" not in address for _, address in w.parts())
    (home / w.file).mkdir()
    for f in w.files[:-1]:
        (home / w.file / f).write_text(f)
    assert weights.status(w.name) == "absent"
    with pytest.raises(WeightsUnavailable, match=r"clap lacks clap/vocab\.json"):
        weights.locate(w.name, "go on without")
    (home / w.file / "vocab.json").write_text("{}")
    assert weights.status(w.name) == "present"
    assert weights.locate(w.name) == home / "clap"
    first = weights.verify(w.name)
    (home / w.file / "vocab.json").write_text("{1}")
    assert weights.verify(w.name) != first
    (home / w.file / "vocab.json").write_text("{}")
    assert weights.verify(w.name) == first
    (home / w.file / weights.SAFE).write_text("other weights")  # transformers would take these
    safe = weights.verify(w.name)
    assert safe != first
    (home / w.file / weights.PICKLED).unlink()
    assert weights.verify(w.name) == safe
    (home / "weights.lock.json").write_text(json.dumps({w.name: first}))
    with pytest.raises(CheckpointError, match="sha256"):
        weights.locate(w.name)


def test_fetch_takes_every_file_and_locks_them(home, monkeypatch):
    taken = []

    def download(address, path, prefix, progress):
        taken.append(address)
        with open(path, "w") as f:
            f.write(address)

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    w = weights.get("clip_vit_b32")
    assert weights.fetch(w.name) == home / "clip"
    assert taken == [w.source + f for f in w.files]
    assert json.loads((home / "weights.lock.json").read_text()) == {w.name: weights.verify(w.name)}
    (home / "clip" / "config.json").unlink()
    weights.fetch(w.name)
    assert taken[2:] == [w.source + "config.json"]  # what is there is kept
