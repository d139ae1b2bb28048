"""Section 6.2: the sets of training clips that the filters leave, and training on them from the shared stage 1."""

import dataclasses
import json

import numpy as np
import pytest
from dataset_files import tiny_world

from vmas import checkpoint, config, paths
from vmas.dataset import shards
from vmas.errors import UsageError
from vmas.experiments import cleaning, cleaning_data, dirty, registry, runner, sweep, table5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A profile and its file, with an untrained codec and tagger."""
    with tiny_world(tmp_path_factory.mktemp("cleaning")) as found:
        yield found


def taken(p, name: str, seed: int = 0):
    """Truth of the clips that a set takes."""
    rows = cleaning_data.rows(p, name, seed, 1, False)
    here = cleaning_data.truth(p, name, 1, False)
    return here if rows is None else here.loc[rows]


def test_sets_hold_what_their_filters_leave(world):
    p, _ = world
    every = dirty.make(p, 1, False, cleaning_data.recipe(p)).truth
    unfiltered, similarity = taken(p, "dirty"), taken(p, "similarity")
    assert unfiltered["id"].tolist() == every["id"].tolist()
    still = every["static"] | every["near_static"]
    assert set(similarity["id"]) < set(every["id"])
    assert not set(similarity["id"]) & set(every[every["static"]]["id"]), "the filter finds what stands still"
    assert taken(p, "moving")["id"].tolist() == every[~still]["id"].tolist()
    assert set(taken(p, "filtered")["id"]) <= set(similarity["id"]), "duplicates may be left out besides"


def test_the_control_has_as_many_clips_drawn_by_the_seed(world):
    p, _ = world
    n = len(taken(p, "similarity"))
    draws = [taken(p, "dirty-same", s)["id"].tolist() for s in (0, 0, 1)]
    assert [len(d) for d in draws] == [n] * 3
    assert draws[0] == draws[1] != draws[2]


def test_keys_tell_sets_apart_and_leave_other_runs_alone(world):
    p, _ = world
    keys = {n: cleaning_data.key(p, n, 0) for n in cleaning_data.SETS}
    assert len(set(keys.values())) == len(keys)
    assert cleaning_data.key(p, "dirty-same", 1) != keys["dirty-same"]
    assert cleaning_data.key(p, "similarity", 1) == keys["similarity"]
    places = {n: cleaning_data.folder(p, n) for n in cleaning_data.SETS}
    assert places["dirty"] == places["moving"] == places["dirty-same"]
    assert len(set(places.values())) == 3
    with pytest.raises(UsageError, match="similarity"):
        cleaning_data.get("similarities")
    assert not {c.data for c in table5.CONDITIONS} & set(cleaning_data.SETS), "Table 5 sees no cleaning set"
    runs = {c.name: sweep.Run("cleaning", c, p, 0).key() for c in cleaning.CONDITIONS}
    assert len(set(runs.values())) == len(runs)


def test_only_the_filters_differ(world):
    p, _ = world
    one, two = (cleaning_data.options(p, n) for n in ("dirty", "filtered"))
    assert {s for s in shards_stages() if one.runs(s) != two.runs(s)} == {"similarity", "duplicates", "vocals"}
    assert dataclasses.replace(one, skip=()) == dataclasses.replace(two, skip=())
    kept = {n: shards.read_index(cleaning_data.build(p, n, 1, False))[0]["video"] for n in ("dirty", "similarity")}
    assert set(kept["similarity"]) < set(kept["dirty"])


def shards_stages():
    from vmas.dataset.stages import OPTIONAL

    return OPTIONAL


@pytest.mark.slow
def test_training_shares_stage_1_and_sees_the_set(world):
    """Two rows end to end: stage 1 is made once, stage 2 has a folder of its own, the table names the paper's rows."""
    from vmas import cli

    _, file = world
    line = ["reproduce", "cleaning", "--profile", str(file), "--device", "cpu", "-q", "--debug"]
    two = ["--only", "dirty", "--only", "similarity"]
    assert cli.main([*line, *two, "--seeds", "1"]) == 0
    assert cli.main(line) == 0, "puts the table together from the records"
    folders = sorted(d.name.split("-")[0] for d in (paths.cache() / "train" / "tiny").iterdir())
    assert folders == ["motion", "music", "vmas", "vmas"]
    models = [paths.cache() / "sweep" / "tiny" / f"cleaning-{n}-seed0" for n in ("dirty", "similarity")]
    assert len({checkpoint.read_manifest(m)["sha256"] for m in models}) == 2, "their clips differ"
    rows = json.loads((file.parent / "results/tiny/cleaning/result.json").read_text(encoding="utf-8"))["rows"]
    ours = {r["system"] for r in rows if r["status"] != "quoted"}
    sets = runner.sweep_record(registry.get("cleaning"), str(file)).extra["sets"]
    assert sets["Unfiltered"]["clips"] == len(taken(config.load(str(file)), "dirty"))
    assert sets["Unfiltered"]["still or nearly"] > sets["Frame similarity < 0.7"]["still or nearly"]
    assert ours == {c.label for c in cleaning.CONDITIONS if c.name in ("dirty", "similarity")}
    quoted = {(r["system"], r["metric"]): r["paper"] for r in rows if r["status"] == "quoted"}
    assert quoted[("full DISCO-10M (paper)", "MV Align")] == "0.18"
    assert np.isfinite([r["value"] for r in rows if r["system"] in ours and r["metric"] == "KL"]).all()
