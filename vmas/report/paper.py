"""The paper's own numbers, as data (`results/paper/`): never typed anywhere else."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from vmas import paths
from vmas.errors import DataError, nearest
from vmas.records import Row

if TYPE_CHECKING:
    import pandas as pd

NOT_PRINTED = "-"  # how Table 3 marks what it does not report


def tables() -> list[str]:
    """Names that `load` takes."""
    return sorted(p.stem for p in paths.paper_numbers().glob("*.csv"))


def load(table: str) -> "pd.DataFrame":
    """A table of the paper: columns table, row, column, dataset, metric, direction, verbatim (the printed string).

    Raises DataError naming the nearest tables when there is none of this name.
    """
    import pandas as pd

    path = paths.paper_numbers() / f"{table}.csv"
    if not path.is_file():
        raise DataError(f"no numbers of the paper are called {table!r}: {nearest(table, tables())}")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def value(table: str, row: str, metric: str, dataset: str | None = None) -> str:
    """One verbatim string. Raises DataError unless exactly one number fits."""
    t = load(table)
    found = t[(t.row == row) & (t.metric == metric) & ((t.dataset == dataset) | (dataset is None))]
    if len(found) != 1:
        raise DataError(f"{table}: {len(found)} numbers fit row {row!r}, metric {metric!r}, dataset {dataset!r}")
    return str(found.iloc[0].verbatim)


def contradictions() -> list[dict[str, Any]]:
    """Where the paper disagrees with itself: id, about, statements [{where, verbatim}], taken."""
    import yaml

    return yaml.safe_load((paths.paper_numbers() / "contradictions.yaml").read_text(encoding="utf-8"))


def quoted_rows(table: str) -> list[Row]:
    """Every number of a table of the paper as a `quoted` row, and `unavailable` where it prints a dash."""
    out = []
    for r in cast(Iterable[Any], load(table).itertuples()):
        system = re.sub(r" (\[\d+\]|\(Ours\))", "", str(r.row)) + " (paper)"
        if r.verbatim == NOT_PRINTED:
            why = "The paper prints no value: its code and models are not public."
            out.append(Row(system, r.dataset, r.metric, r.direction, status="unavailable", note=why))
        else:
            out.append(Row(system, r.dataset, r.metric, r.direction, paper=r.verbatim, status="quoted"))
    return out
