# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README and bundle/docs from the evaluations in benchmarks/results; nobody writes them by hand.

    python benchmarks/results_tables.py
    python benchmarks/results_tables.py --check      # writes nothing, exits with 1 where a table is not up to date

A table stands between two comments in a Markdown file,

    <!-- results: phantoms main -->
    <!-- end of results -->

the first of which names the evaluation (`phantoms`: evaluation_phantoms_metrics.json, `patients` likewise) and the
table: main, hopes, gains, tissues, papers or each (one row per patient). `ablation main` shows cascade.json,
`robustness main` robustness.json, `geometries main` geometries.json, `acquired main` acquired.json, `uncertainty main`
uncertainty.md, `trust …` trust.json, `refine …` and `refine_256 …` the files of refine.py, `radiographs …`
radiographs.json, and `speed main` projector.json, inference.json and the gpu_*.json of every
card. What stands between them is replaced. Tables whose evaluation has not been run, or not to its end, stay as they
are.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path, read_json
from published.ablation import ablation_table
from published.acquired import acquired_table
from published.geometries import geometries_table
from published.radiographs import RADIOGRAPH_TABLES
from published.refinement import REFINEMENT_TABLES
from published.robustness import robustness_table
from published.speed import speed_table
from published.tables import TABLES
from published.trust import TRUST_TABLES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT / "bundle" / "docs" / name for name in ("README.md", "RESULTS.md", "EXPERIMENTS.md")),
)
EVALUATIONS = ("phantoms", "patients")
# Every table by the name a marker gives it.
ALL_TABLES = {f"{evaluation} {name}": table for evaluation in EVALUATIONS for name, table in TABLES.items()} | {
    "ablation main": ablation_table,
    "robustness main": robustness_table,
    "uncertainty main": lambda report: list(report["lines"]),
    "geometries main": geometries_table,
    "acquired main": acquired_table,
    **REFINEMENT_TABLES,
    **RADIOGRAPH_TABLES,
    **TRUST_TABLES,
    "speed main": speed_table,
}
_END = "<!-- end of results -->"
_BLOCK = re.compile(rf"<!-- results: (?P<name>[^>]*?) -->\n(?P<body>.*?){re.escape(_END)}", re.DOTALL)


def fill(text: str, reports: Mapping[str, Any], origin: str = "document") -> tuple[str, list[str]]:
    """Replaces the tables of a document.

    Args:
        text: Markdown with markers.
        reports: evaluations by name, those that have been run.
        origin: what to name in an error.

    Returns:
        The new text, and the names of the tables that were written.

    Raises:
        UserError: if a marker names no table or is not closed, or an evaluation lacks what a table shows.
    """
    if text.count("<!-- results:") != len(_BLOCK.findall(text)) or text.count(_END) != len(_BLOCK.findall(text)):
        raise UserError(f"{origin}: every '<!-- results: ... -->' must be closed by '{_END}'")
    written = []

    def replace(block: re.Match[str]) -> str:
        evaluation = block["name"].partition(" ")[0]
        if block["name"] not in ALL_TABLES:
            raise UserError(f"{origin}: a marker must name one of {', '.join(ALL_TABLES)}, got {block['name']!r}")
        if evaluation not in reports:
            return block[0]
        try:
            lines = ALL_TABLES[block["name"]](reports[evaluation])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{origin}: the evaluation of {evaluation} lacks {error} for the table {block['name']!r}"
            ) from error
        written.append(block["name"])
        return "\n".join([f"<!-- results: {block['name']} -->", "", *lines, "", _END])

    return _BLOCK.sub(replace, text), written


def _other_reports(results: Path) -> dict[str, Any]:
    reports: dict[str, Any] = {}
    if (results / "cascade.json").is_file():
        reports["ablation"] = read_json(results / "cascade.json")
    if (results / "robustness.json").is_file() and "summary" in (report := read_json(results / "robustness.json")):
        reports["robustness"] = report
    reports |= {
        name: read_json(path) for name in ("refine", "refine_256") if (path := results / f"{name}.json").is_file()
    }
    for name in ("geometries", "acquired"):
        if (results / f"{name}.json").is_file():
            reports[name] = read_json(results / f"{name}.json")
    if (results / "trust.json").is_file():
        reports["trust"] = read_json(results / "trust.json")
    if (results / "radiographs.json").is_file():
        reports["radiographs"] = read_json(results / "radiographs.json")
    if (results / "uncertainty.md").is_file():
        reports["uncertainty"] = {"lines": (results / "uncertainty.md").read_text(encoding="utf-8").splitlines()}
    on_cpu = {name: results / f"{name}.json" for name in ("projector", "inference")}
    reports["speed"] = {name: read_json(path) if path.is_file() else None for name, path in on_cpu.items()}
    cards = [read_json(path) for path in sorted(results.glob("gpu_*.json"))]
    reports["speed"]["cards"] = [card for card in cards if card["machine"]["cards"]]
    return reports


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill every document."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of evaluations")
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=list(DOCUMENTS), help="Markdown files with markers"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    options = parser.parse_args(arguments)
    stale = False
    try:
        paths = {name: options.results / f"evaluation_{name}_metrics.json" for name in EVALUATIONS}
        found = {name: read_json(path) for name, path in paths.items() if path.is_file()}
        # The summary is what an evaluation writes last.
        reports = {name: report for name, report in found.items() if "summary" in report}
        reports |= _other_reports(options.results)
        for document in options.documents:
            text = document.read_text(encoding="utf-8")
            filled, written = fill(text, reports, origin=str(document))
            if filled != text:
                stale = True
                if not options.check:
                    with atomic_path(document) as temporary:
                        temporary.write_text(filled, encoding="utf-8")
            state = "up to date" if filled == text else "out of date" if options.check else "written"
            print(f"{document}: {', '.join(written) or 'no evaluation yet'}: {state}")
    except (UserError, FileNotFoundError) as error:
        print(f"results_tables: error: {error}", file=sys.stderr)
        return 2
    return int(stale and options.check)


if __name__ == "__main__":
    sys.exit(main())
