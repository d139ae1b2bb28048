"""The paper's numbers as data: verbatim, complete, and really in the text."""

import re
from pathlib import Path

import pytest

from vmas.errors import DataError
from vmas.records import DIRECTIONS
from vmas.report import paper

TEXT = Path(__file__).parents[2] / "shared" / "paper" / "vmas.txt"
COLUMNS = ["table", "row", "column", "dataset", "metric", "direction", "verbatim"]
IMAGES = ("✓",)  # drawn in the paper, absent from its text


def squeeze(text: str) -> str:
    """Without white space, LaTeX and hyphens at line ends, so that typesetting does not matter."""
    text = text.replace("\\times", "×").replace("\\alpha", "α").replace("\\beta", "β")
    text = re.sub(r"(?<=\w)-\s*\n\s*(?=\w)", "", text)
    text = text.replace("²", "2").replace("**", "")
    return re.sub(r"[\s$^{}\\_]", "", text)


@pytest.mark.parametrize(
    ("table", "row", "metric", "dataset", "verbatim"),
    [
        ("table1", "Avg. Frame Similarity Within Video", "frame similarity", "DISCO-MV", "0.61"),
        ("table2", "Pooling Strides at 5th", "stride", "Ours", "1×7×7"),
        ("table3", "VMAs (Ours)", "FAD", "DISCO-MV", "2.38"),
        ("table3", "CMT [14]", "FAD", "DISCO-MV", "3.70"),
        ("table3", "V2Meow [43]", "KL", "MusicCaps", "-"),
        ("table4", "VMAs (Ours), MV100K", "KL (Leaf)", "MusicCaps", "1.15"),
        ("table5", "+ Video-Beat Alignment", "MV Align", "DISCO-MV", "0.352"),
        ("table6", "Ours", "GFLOPs", "DISCO-MV", "130.7"),
        ("table7", "VMAs, VMAs", "R@10", "DISCO-MV", "26.7"),
        ("fig6", "10%", "FAD", "MusicCaps", "4.7"),
        ("cleaning", "full DISCO-10M", "MV Align", "DISCO-MV", "0.18"),
    ],
)
def test_value(table, row, metric, dataset, verbatim):
    assert paper.value(table, row, metric, dataset) == verbatim


@pytest.mark.parametrize("table", paper.tables())
def test_columns(table):
    t = paper.load(table)
    assert list(t.columns) == COLUMNS
    assert set(t.table) == {table}
    assert set(t.direction) <= set(DIRECTIONS)
    assert not t.duplicated(["row", "column", "dataset", "metric"]).any()
    assert (t.verbatim.str.len() > 0).all()


def test_every_table_of_the_paper_is_there():
    assert {f"table{i}" for i in range(1, 8)} <= set(paper.tables())
    counts = {t: len(paper.load(t)) for t in ("table3", "table4", "table5", "table6", "table7")}
    assert counts == {"table3": 36, "table4": 9, "table5": 9, "table6": 15, "table7": 9}


@pytest.mark.skipif(not TEXT.is_file(), reason="the paper's text is not beside the repository")
@pytest.mark.parametrize("table", [*paper.tables(), "contradictions"])
def test_verbatim_is_in_the_text(table):
    text = squeeze(TEXT.read_text(encoding="utf-8"))
    if table == "contradictions":
        found = [s["verbatim"] for c in paper.contradictions() for s in c["statements"]]
    else:
        found = [v for v in paper.load(table).verbatim if v not in IMAGES]
    assert [v for v in found if squeeze(v) not in text] == []


def test_contradictions_disagree():
    known = paper.contradictions()
    assert len({c["id"] for c in known}) == len(known) >= 6
    for c in known:
        assert len({s["verbatim"] for s in c["statements"]}) >= 2
        assert c["about"]
        assert c["taken"]


def test_quoted_rows_carry_no_value_of_ours():
    rows = paper.quoted_rows("table3")
    assert len(rows) == 36
    assert all(r.value is None and r.system.endswith("(paper)") for r in rows)
    assert sum(r.status == "unavailable" for r in rows) == 5
    ours = [r for r in rows if r.system == "VMAs (paper)"]
    assert [r.paper for r in ours] == ["4.07", "1.09", "0.22", "2.38", "1.34", "0.35"]


def test_unknown_table_names_the_nearest():
    with pytest.raises(DataError, match="table3"):
        paper.load("tabel3")
    with pytest.raises(DataError, match="0 numbers"):
        paper.value("table3", "Nobody", "FAD")
