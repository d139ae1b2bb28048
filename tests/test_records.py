"""Records: what a row may say, the schema of result.json, keys, atomic writing, comparison."""

import dataclasses
import json
import os
import re

import pytest

from vmas import config, paths, records, versions
from vmas.errors import DataError
from vmas.records import Record, Row

GOOD = {"system": "VMAs (ours)", "dataset": "test", "metric": "KL", "direction": "down", "value": 0.3}
GOOD |= {"status": "scaled_down", "ci95": (0.2, 0.4), "n": 300, "seeds": 1}


def record(value: float = 0.3, key: str = "k", **more) -> Record:
    rows = (
        Row(**{**GOOD, "value": value, **more}),
        Row("CMT (paper)", "DISCO-MV", "KL", "down", paper="1.82", status="quoted"),
    )
    prov = records.provenance("vmas reproduce table3", 1.234, "a", "b", "c")
    return Record("table3", "mini", "Table 3", key, rows, prov, {"note": "n"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "great"}, "unknown status"),
        ({"direction": "higher"}, "direction"),
        ({"value": None, "ci95": None}, "needs a value"),
        ({"value": float("nan")}, "the value is nan"),
        ({"value": float("inf")}, "the value is inf"),
        ({"status": "quoted", "paper": "1.34"}, "carries no value"),
        ({"status": "quoted", "value": None}, "needs the paper's string"),
        ({"status": "unavailable", "value": None}, "needs its reason"),
        ({"ci95": (0.4, 0.2)}, "upside down"),
        ({"ci95": (float("nan"), 0.2)}, "not a number"),
        ({"n": 0}, "n is 0"),
    ],
)
def test_row_refuses(change, says):
    with pytest.raises(DataError, match=says) as e:
        Row(**{**GOOD, **change})
    assert "VMAs (ours) / test / KL" in str(e.value)


def test_result_json_has_exactly_the_schema(tmp_path):
    path = records.write_result(record(), tmp_path / "deep" / "result.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert list(data) == ["target", "profile", "title", "rows", "provenance"]
    fields = "system dataset metric direction value ci95 n seeds chance paper status note"
    assert [list(r) for r in data["rows"]] == [fields.split()] * 2
    assert data["rows"][0]["ci95"] == [0.2, 0.4]
    assert data["rows"][1]["value"] is None
    fields = "git_sha dirty config_sha256 data_sha256 checkpoint_sha256 command hardware versions wall_s"
    assert list(data["provenance"]) == fields.split()


def test_provenance_names_no_place_or_host():
    prov = record().provenance
    text = json.dumps(prov)
    assert not re.search(r"(^|[\"\s=])/\w", text)
    assert not re.search(rf"\b{re.escape(os.uname().nodename)}\b", text)
    assert prov["versions"]["torch"].startswith("2.11")
    assert re.fullmatch(r"[0-9a-f]{40}|", prov["git_sha"])


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    have = records.metadata.version

    def version(name):
        if name == "audiocraft":
            raise records.metadata.PackageNotFoundError(name)
        return have(name)

    monkeypatch.setattr(records.metadata, "version", version)
    versions = record().provenance["versions"]
    assert "audiocraft" not in versions
    assert versions["av"] == have("av")


def test_round_trip(tmp_path):
    path = records.write(record(), tmp_path / "r.json")
    assert records.read(path) == record_like(record(), records.read(path))
    assert os.listdir(tmp_path) == ["r.json"]


def record_like(a: Record, b: Record) -> Record:
    """`a` with the provenance of `b` (git's state may change while the test runs)."""
    return dataclasses.replace(a, provenance=b.provenance)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": []}', '{"rows": [{"x": 1}]}', '{"rows": 3}'])
def test_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"bad\.json"):
        records.read(path)


def test_missing_record(tmp_path):
    with pytest.raises(DataError, match="no such record"):
        records.read(tmp_path / "none.json")
    assert records.find(tmp_path / "none.json", "k") is None


def test_find_needs_the_same_key(tmp_path):
    path = records.write(record(key="one"), tmp_path / "r.json")
    assert records.find(path, "one") is not None
    assert records.find(path, "two") is None


def test_nothing_is_left_when_the_folder_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        records.write(record(), tmp_path / "file" / "r.json")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("here", "counts"), [(0.3, (1, 0, 0)), (0.3 + 1e-9, (1, 0, 0)), (0.35, (0, 1, 0)), (0.9, (0, 0, 1))]
)
def test_compare(here, counts):
    found = records.compare(record(here, ci95=None), record(0.3))
    assert (found.equal, found.inside, found.outside) == counts
    assert len(found.lines) == counts[1] + counts[2]
    assert f"{counts[0]} of 1 numbers equal" in str(found)


def test_row_lookup():
    assert record().row("VMAs (ours)", "test", "KL").value == 0.3
    with pytest.raises(DataError, match="there is KL"):
        record().row("VMAs (ours)", "test", "FAD")


def test_places_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAS_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("VMAS_RESULTS", str(tmp_path / "r"))
    assert records.local("table3", "mini", 0) == tmp_path / "c" / "records" / "table3-mini-seed0.json"
    assert records.committed("table3", "mini", 0) == tmp_path / "r" / "runs" / "table3-mini-seed0.json"


def test_versions():
    assert all(isinstance(v, int) and v >= 1 for v in versions.STAGES.values())
    assert versions.of("fad")["fad"] == versions.STAGES["fad"]
    assert {"corpus", "features"} <= set(versions.of())
    with pytest.raises(KeyError):
        versions.of("nothing")


def test_key_follows_config_seed_and_stage_versions(monkeypatch, tmp_path):
    from vmas.experiments import table3

    monkeypatch.setenv("VMAS_CACHE", str(tmp_path))
    smoke = config.load("smoke")
    keys = {table3.key(smoke, 0), table3.key(smoke, 1)}
    keys.add(table3.key(config.load("smoke", {"sampling": {"top_k": 7}}), 0))
    keys.add(table3.key(config.load("smoke", {"corpus": {"seed": 9}}), 0))
    monkeypatch.setitem(versions.STAGES, "kl", versions.STAGES["kl"] + 1)
    keys.add(table3.key(smoke, 0))
    assert len(keys) == 5
    assert table3.key(config.load("smoke", {"note": "other words"}), 0) == table3.key(smoke, 0)


def test_committed_records_are_valid():
    found = sorted(paths.runs().glob("*.json"))
    for path in found:
        r = records.read(path)
        assert path.name.startswith(f"{r.target}-{r.profile}-seed"), path
        assert r.provenance["dirty"] is False, f"{path}: recorded from changed code"
