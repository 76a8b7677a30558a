# SPDX-License-Identifier: Apache-2.0
"""The index page of a folder of cases: one row each, with a link to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import quote


def index_page(rows: Sequence[Mapping[str, Any]], path: str | PathLike[str], *, title: str = "Reconstructions") -> None:
    """Writes an HTML table of cases, whole or not at all.

    Args:
        rows: one mapping per case. ``name`` is its name; ``page``, where there is one, the path of its report, which
            becomes a link relative to the index; ``warnings`` a list of texts; ``error`` what stopped it. Every other
            key is a column, in the order of its first appearance.
        path: the file, ``.html``.
        title: heading.

    Raises:
        UserError: where the file cannot be written.
    """
    from progressive_cascade.report.page import asset, fill, policy, save_text

    special = ("name", "page", "warnings", "error")
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in special))
    cases = [
        {
            "name": str(row.get("name", "")),
            "link": _link(row.get("page"), Path(path).parent),
            "values": [_text(row.get(column)) for column in columns],
            "warnings": [str(text) for text in row.get("warnings") or ()],
            "error": _text(row.get("error")),
        }
        for row in rows
    ]
    failed = sum(bool(case["error"]) for case in cases)
    html = fill(
        "index.html",
        policy=policy([]),
        style=asset("page.css"),
        title=title,
        subtitle=f"{len(cases)} cases" + (f", {failed} failed" if failed else ""),
        columns=[column.replace("_", " ") for column in columns],
        cases=cases,
    )
    save_text(html, path)


def _link(page: Any, folder: Path) -> str:
    """A page's address relative to the index's folder, or its absolute path as a file address."""
    if not page:
        return ""
    target = Path(page).absolute()
    try:
        return quote(target.relative_to(folder.absolute()).as_posix())
    except ValueError:
        return target.as_uri()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
