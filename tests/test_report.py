"""Tables and figures: what is printed is what the record holds, and every system has its own colour."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from vmas import config, records
from vmas.errors import DataError
from vmas.experiments import table3
from vmas.records import Record, Row
from vmas.report import palette, paper, table

A, B = table3.DATASETS["shifted"], table3.DATASETS["test"]
SYSTEMS = (table3.OURS, table3.REAL, table3.CODEC, table3.SHUFFLED)


@pytest.fixture
def record():
    rows = []
    for dataset in (A, B):
        for i, system in enumerate(SYSTEMS):
            same = {"status": "scaled_down", "n": 300, "seeds": 1}
            rows += [
                Row(system, dataset, "FAD (codec)", "down", 1.5 * i, (1.4 * i, 1.6 * i) if i else None, **same),
                Row(system, dataset, "KL", "down", 0.25 * i, (0.24 * i, 0.26 * i), **same),
                Row(system, dataset, "MV Align (2025, 9.6 fps)", "up", 0.4, (0.38, 0.42), chance=0.21, **same),
                Row(system, dataset, "Onsets per clip", "none", 21.25, (20.0, 22.0), **same),
            ]
    rows += paper.quoted_rows("table3")
    extra = {"note": "Scaled down.", "fad_floor": {B: {"value": 0.33, "n": 150}}}
    return Record("table3", "mini", table3.TITLE, "key", tuple(rows), {}, extra)


def test_frame_prints_interval_and_chance(record):
    t = table.frame(record, B)
    assert list(t.index) == list(SYSTEMS)
    assert t.loc[table3.OURS, "MV Align (2025, 9.6 fps) ↑"] == "0.400 [0.380, 0.420] (chance 0.210, lift +0.190)"
    assert t.loc[table3.OURS, "FAD (codec) ↓"] == "0.000"
    assert t.loc[table3.REAL, "FAD (codec) ↓"] == "1.500 [1.400, 1.600]"
    assert t.loc[table3.SHUFFLED, "Onsets per clip"] == "21.2 [20.0, 22.0]"


@pytest.mark.parametrize(
    ("x", "text"),
    [(-1e-7, "0.000"), (0.0, "0.000"), (9.9996, "10.0"), (0.12345, "0.123"), (-0.2, "-0.200"), (102.63, "102.6")],
)
def test_number(x, text):
    assert table.number(x) == text


def test_quoted_is_the_papers_table(record):
    t = table.quoted(record)
    assert t.loc["VMAs (paper)", "DISCO-MV, FAD ↓"] == "2.38"
    assert t.loc["CMT (paper)", "DISCO-MV, FAD ↓"] == "3.70"
    assert t.loc["V2Meow (paper)", "MusicCaps, KL ↓"] == "—"
    assert t.shape == (6, 6)


def test_markdown_keeps_ours_and_theirs_apart(record):
    text = table.markdown(record)
    sections = text.split("## ")
    assert len(sections) == 4
    assert all("(paper)" not in s for s in sections[1:3])
    assert "quoted" in sections[3]
    assert "| CMT (paper)" in sections[3]
    for line in table.footnotes(record):
        assert f"- {line}" in text
    assert "Scaled down." in text
    assert "300 clips per data set" in text
    assert "N = 150" in text


def test_plain_fits_and_says_what_numbers_are_worth(record):
    text = table.plain(record)
    assert table.MEANING["scaled_down"] in text
    assert table.MEANING["quoted"] in text
    assert max(map(len, text.splitlines())) <= table.WIDTH
    line = next(x for x in text.splitlines() if x.startswith("MV Align (2025, 9.6 fps), chance"))
    assert line.split()[-4:] == ["0.210"] * 4
    line = next(x for x in text.splitlines() if x.startswith("MV Align (2025, 9.6 fps), lift"))
    assert line.split()[-4:] == ["+0.190"] * 4
    assert not any(x.startswith("KL, lift") for x in text.splitlines()), "less is better: no lift"


def test_smoke_says_that_it_means_nothing(record):
    rows = tuple(Row("VMAs (ours)", B, "KL", "down", 0.1, status="smoke", n=24, seeds=1) for _ in range(1))
    text = table.plain(Record("table3", "smoke", "T", "k", rows, {}, {}))
    assert "the numbers mean nothing" in text


def test_csv_holds_every_row(record):
    rows = list(csv.DictReader(io.StringIO(table.csv(record))))
    assert len(rows) == len(record.rows)
    first = rows[1]
    assert (first["metric"], float(first["value"]), first["status"]) == ("KL", 0.0, "scaled_down")
    assert (float(rows[6]["ci_lo"]), float(rows[6]["ci_hi"])) == (0.38, 0.42)
    assert rows[-1]["value"] == ""
    assert rows[-1]["paper"] == "0.35"


def test_save_writes_four_files(record, tmp_path):
    import cv2

    out = table.save(record, tmp_path / "mini" / "table3")
    assert sorted(p.name for p in out.iterdir()) == ["figure.png", "result.json", "table.csv", "table.md"]
    image = cv2.imread(str(out / "figure.png"))
    assert min(image.shape[:2]) > 300
    assert image.std() > 5
    assert len(json.loads((out / "result.json").read_text())["rows"]) == len(record.rows)


def test_save_refuses_a_file_as_folder(record, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        table.save(record, tmp_path / "x" / "table3")


def test_figure_draws_the_numbers(record):
    fig = table.figure(record)
    assert len(fig.axes) == 2 * 4
    panel = fig.axes[4 + 2]
    assert panel.get_xlabel().startswith("MV Align (2025, 9.6 fps) ↑")
    lines = [np.asarray(line.get_xdata(), float).tolist() for line in panel.lines]
    assert lines.count([0.4]) == len(SYSTEMS)
    assert lines.count([0.21]) == len(SYSTEMS), "chance is drawn"
    assert lines.count([0.38, 0.42]) == len(SYSTEMS), "intervals are drawn"
    assert "squared distance" in fig.axes[4].get_xlabel()


def test_values_far_apart_stand_on_a_logarithmic_axis(record):
    """Else the one that is worst by far is all that one sees of a table."""
    (*_, last) = [r for r in record.rows if r.value is not None and r.metric.startswith("FAD")]
    assert {ax.get_xscale() for ax in table.figure(record).axes} == {"linear"}
    far = dataclasses.replace(last, value=21 * max(last.ci95), ci95=None)
    rows = tuple(r for r in record.rows if r.value is None or r.value > 0)
    axes = table.figure(dataclasses.replace(record, rows=(*rows, far))).axes
    scales = {ax.get_xlabel().split(" ↓")[0]: ax.get_xscale() for ax in axes if ax.get_xlabel()}
    assert {m for m, s in scales.items() if s == "log"} == {last.metric}
    apart = tuple(dataclasses.replace(last, metric="genre accuracy", value=v, ci95=None) for v in (0.01, 1.0))
    axes = table.figure(dataclasses.replace(record, rows=apart)).axes
    assert {ax.get_xscale() for ax in axes} == {"linear"}, "a share's axis ends at 1"


def test_palette_is_fixed_and_distinct():
    assert palette.colour("VMAs (ours)") == palette.colour("VMAs (paper)") == palette.colour("VMAs (Ours)")
    for system in SYSTEMS:
        assert palette.marker(system)
    for r in paper.quoted_rows("table3"):
        assert palette.colour(r.system).startswith("#")
    for together in (palette.SYSTEMS, palette.STEPS):
        marks = [(palette.colour(s), palette.marker(s)) for s in together]
        assert len(set(marks)) == len(marks)
        assert len({c for c, _ in marks}) == len(marks)
    assert palette.colour("+ beat weighting over Σw") == palette.colour("VMAs (ours)")
    assert palette.colour("+ contrastive, τ = .1") == palette.STEPS["+ contrastive"][0]
    with pytest.raises(KeyError):
        palette.colour("somebody")


def test_alignment_figure_of_a_corpus_clip(tmp_path):
    from vmas import corpus
    from vmas.beats import flow_to_grid
    from vmas.features import clip_features
    from vmas.report import alignment

    cfg = config.load("smoke")
    corpus.make(tmp_path, cfg, ids=["test-00000"], progress=False)
    path = tmp_path / "test" / "test-00000.mp4"
    ax = alignment.figure(path, cfg).axes[0]
    flow = clip_features(path, cfg, dense=False)["flow"]
    drawn = {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}
    np.testing.assert_allclose(drawn["O, mean optical flow"], flow_to_grid(flow, cfg.clip.fps, 250), rtol=1e-6)
    met = drawn["P_v met by an onset: weight 1"]
    assert len(met) >= 2
    assert set(np.round(met, 5)) <= set(np.round(drawn["O, mean optical flow"], 5))


def test_committed_results_belong_to_committed_records():
    import importlib

    from vmas import paths
    from vmas.experiments import registry

    for path in sorted(paths.runs().glob("*-seed0.json")):
        r = records.read(path)
        if "condition" in r.extra:
            continue  # one run of a sweep, which fills a row of another table
        folder = paths.target(r.profile, r.target)
        tell = getattr(importlib.import_module(registry.get(r.target).module), "as_markdown", table.markdown)
        assert (folder / "table.md").read_text(encoding="utf-8") == tell(r)
        assert (folder / "table.csv").read_text(encoding="utf-8") == table.csv(r)
        assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == json.loads(json.dumps(r.result()))
        assert (folder / "figure.png").stat().st_size > 10_000
