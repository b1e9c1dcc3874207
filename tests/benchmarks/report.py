"""Make the tables and plots of docs/performance.rst from the raw results of a run.

python -m tests.benchmarks.report RESULTS [--into FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

from . import tables

DOCS = Path(__file__).parents[2] / "docs" / "performance"


def write_tables(results: dict[str, Any], into: Path) -> None:
    """A file of comma-separated values for each table, its head first."""
    into.mkdir(parents=True, exist_ok=True)
    for name, table in tables.all_of(results).items():
        with (into / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [[_as_rst(cell) for cell in row] for row in (table.head, *table.rows)]
            csv.writer(file, lineterminator="\n").writerows(rows)


def _as_rst(cell: str) -> str:
    """What Sphinx reads as the text of a cell; what an error says may hold anything."""
    return cell if cell.startswith("``") else re.sub(r"([\\*`|]|_\b)", r"\\\1", cell)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, help="what python -m tests.benchmarks --results wrote")
    parser.add_argument("--into", type=Path, metavar="FOLDER", default=DOCS)
    given = parser.parse_args()
    results = json.loads(given.results.read_text("utf-8"))
    write_tables(results, given.into)
    from . import plots  # needs matplotlib; the tables do not

    plots.draw(results, given.into)


if __name__ == "__main__":
    main()
