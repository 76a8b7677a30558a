# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README and model card from the evaluations in benchmarks/results; nobody writes them by hand.

    python benchmarks/results_tables.py
    python benchmarks/results_tables.py --check      # writes nothing, exits with 1 where a table is not up to date

A table stands between two comments in a Markdown file,

    <!-- results: phantoms main -->
    <!-- end of results -->

the first of which names the evaluation (`phantoms`: evaluation_phantoms_metrics.json, `patients` likewise) and the
table: main, hopes, gains, tissues, papers or each (one row per patient). What stands between them is replaced. Tables
whose evaluation has not been run stay as they are.
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
from published.tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "bundle" / "docs" / "README.md")
EVALUATIONS = ("phantoms", "patients")
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
        evaluation, _, table = block["name"].partition(" ")
        if evaluation not in EVALUATIONS or table not in TABLES:
            raise UserError(
                f"{origin}: a marker must name one of {', '.join(EVALUATIONS)} and one of {', '.join(TABLES)}, "
                f"got {block['name']!r}"
            )
        if evaluation not in reports:
            return block[0]
        try:
            lines = TABLES[table](reports[evaluation])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{origin}: the evaluation of {evaluation} lacks {error} for the table {table!r}"
            ) from error
        written.append(block["name"])
        return "\n".join([f"<!-- results: {block['name']} -->", "", *lines, "", _END])

    return _BLOCK.sub(replace, text), written


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill every document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of evaluations")
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=list(DOCUMENTS), help="Markdown files with markers"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    options = parser.parse_args(arguments)
    stale = False
    try:
        paths = {name: options.results / f"evaluation_{name}_metrics.json" for name in EVALUATIONS}
        reports = {name: read_json(path) for name, path in paths.items() if path.is_file()}
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
