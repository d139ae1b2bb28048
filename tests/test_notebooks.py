"""Hygiene of the notebooks: executed in order, portable, small, and literate. Their outputs are checked by nbval."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from vmas import config, paths
from vmas.experiments import registry

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
MAX_BYTES = 3_000_000
PARAMETERS = {"profile", "seed", "device", "force", "source"}
PLACES = re.compile(r"(?<![\w.])/(home|root|tmp|Users|work|mnt|opt|var)/\w")
TOLD = [t for t in registry.available() if t.notebook]  # a sweep's table may come before its notebook
ADMITTED_TAGS = {"parameters", "nbval-ignore-output"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def texts(cell):
    """Every textual output of a cell."""
    for out in cell.outputs:
        data = {"text/plain": out.get("text", ""), **out.get("data", {})}
        yield from (v for k, v in data.items() if k.startswith("text/") and isinstance(v, str))


def test_the_expected_ones_are_there():
    names = [p.name for p in NOTEBOOKS]
    assert {"00_start_here.ipynb", "02_mini_corpus.ipynb"} <= set(names)
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", n) for n in names)
    for target in TOLD:
        assert target.notebook in names, target.name


def test_format(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec"}, "run nbstripout with the flags of the README"
    assert all(not set(c.metadata) - {"tags"} for c in notebook.cells)
    ids = [c.id for c in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_executed_in_order_without_errors(notebook):
    cells = code(notebook)
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for c in cells:
        for out in c.outputs:
            assert out.output_type != "error"
            assert out.get("name") != "stderr", out.get("text")
    assert any(c.outputs for c in cells)


def test_tags(notebook):
    used = set().union(*(tags(c) for c in notebook.cells))
    assert used <= ADMITTED_TAGS, "no injected parameters, no skipped cell, no cell that raises"
    checked = [c for c in code(notebook) if c.outputs and "nbval-ignore-output" not in tags(c)]
    assert checked, "nbval has nothing to check"


def test_parameters_are_literals(notebook):
    found = [c for c in code(notebook) if "parameters" in tags(c)]
    assert len(found) == 1
    tree = ast.parse(found[0].source)
    values = {}
    for node in tree.body:
        assert isinstance(node, ast.Assign), "the parameters cell holds literals only"
        values[node.targets[0].id] = ast.literal_eval(node.value)
    assert values["profile"] in config.PROFILES
    assert set(values) == PARAMETERS
    assert values["profile"] == "mini"
    assert values["source"] == "records"


def test_no_place_of_the_author(notebook):
    for c in notebook.cells:
        for text in [c.source, *(texts(c) if c.cell_type == "code" else [])]:
            assert not PLACES.search(text), PLACES.search(text)


def test_it_uses_the_package_and_defines_nothing(notebook):
    trees = [ast.parse(c.source) for c in code(notebook)]
    defined = [n for t in trees for n in ast.walk(t) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert not defined, "functions belong into vmas/, where tests cover them"
    imported = {n.module.split(".")[0] for t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom)}
    assert "vmas" in imported


def test_it_tells_before_it_computes(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    words = sum(len(c.source.split()) for c in notebook.cells if c.cell_type == "markdown")
    assert words > 150
    assert any("> **Paper" in c.source for c in notebook.cells), "the paper's words are quoted as such"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_size(path: Path):
    assert path.stat().st_size <= MAX_BYTES
    for c in code(nbformat.read(path, as_version=4)):
        assert len(json.dumps(c.outputs)) <= 1_500_000


@pytest.mark.parametrize("target", TOLD, ids=lambda t: t.name)
def test_papermill_finds_the_parameters(target):
    import papermill

    assert set(papermill.inspect_notebook(str(paths.NOTEBOOKS / target.notebook))) == PARAMETERS
