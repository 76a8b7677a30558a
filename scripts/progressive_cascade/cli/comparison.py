# SPDX-License-Identifier: Apache-2.0
"""`compare`: one reconstruction against a CT of the same patient."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import (
    add_assume_spacing,
    add_command,
    add_overwrite,
    add_protocols,
    check_output_file,
)
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    from progressive_cascade.ct.placement import PreparedCase
    from progressive_cascade.ct.scan import Scan
    from progressive_cascade.evaluation.comparison import Comparison

_Rows = dict[str, list[float | None]]

_HELP = """
Compare a reconstruction with a CT of the same patient.

Both are found by their places in the world and compared on the CT's cube of 256³ voxels of 1.4 mm, as `prepare` places
it: its table removed, what the scanner did not see, or the reconstruction does not reach, left out. Printed are the
scores by the protocol and what is measured on a chest, in CT and reconstruction. Any CT in HU may stand for the
reconstruction, other programs' too; --remove-table is for one that shows a table.

--align also moves, turns and scales the reconstruction onto the CT, for what projections leave open: a wrong distance
or pixel size only scales the answer, films do not say where the patient lay in a scanner. A body that shrinks
attenuates more by as much. Its scores stand beside those without.

examples:
  progressive-cascade compare reconstruction.nii.gz ct.nii.gz
  progressive-cascade compare reconstruction.nii.gz series --align --output scores.json --picture borders.png
"""


def add_compare(commands: Any) -> None:
    """Adds `compare`."""
    parser = add_command(commands, "compare", run=run_compare, text=_HELP)
    volume = "NIfTI, MHA, NRRD, or folder of one DICOM series"
    parser.add_argument("reconstruction", type=Path, metavar="RECONSTRUCTION", help=f"volume in HU: {volume}")
    parser.add_argument("ct", type=Path, metavar="CT", help=f"CT of the same patient: {volume}")
    parser.add_argument("--align", action="store_true", help="also after a similarity alignment")
    parser.add_argument("--remove-table", action="store_true", help="the reconstruction's too, where it is a scan")
    add_protocols(parser)
    add_assume_spacing(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="scores to write, .json")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="borders of both to draw, .png")
    add_overwrite(parser)


def run_compare(options: argparse.Namespace) -> None:
    """Reads both, compares, prints, writes."""
    from progressive_cascade.ct.placement import prepare_case
    from progressive_cascade.errors import UserError
    from progressive_cascade.evaluation.comparison import compare

    for path, suffix, name in ((options.output, ".json", "--output"), (options.picture, ".png", "--picture")):
        if path is not None:
            check_output_file(path, (suffix,), name)
    check_files(
        reads={"RECONSTRUCTION": options.reconstruction, "CT": options.ct},
        writes={f"--{name}": [path] for name in ("output", "picture") if (path := getattr(options, name))},
        overwrite=options.overwrite,
    )
    scan = _read(options)
    truth = prepare_case(options.ct, assume_spacing=options.assume_spacing)
    try:
        found = compare(scan.hu, scan.affine, truth, protocols=options.protocol, similarity=options.align)
    except UserError as error:
        raise UserError(f"{options.reconstruction} and {options.ct}: {error}") from error
    for name, notes in (("reconstruction", scan.notes), ("CT", truth.notes)):
        for note in notes:
            print(f"note: {name}: {note}")
    for line in describe(found, options.protocol):
        print(line)
    if options.align and found.similarity is None:
        print("\nwarning: no alignment lays the reconstruction's body on the CT's")
    _write(found, truth, options)


def _read(options: argparse.Namespace) -> Scan:
    """The reconstruction, in HU."""
    from progressive_cascade.ct.files import read_scan
    from progressive_cascade.ct.placement import check_hu
    from progressive_cascade.ct.table import without_table
    from progressive_cascade.errors import UserError

    scan = read_scan(options.reconstruction, assume_spacing=options.assume_spacing)
    try:
        check_hu(scan.hu)
        return without_table(scan) if options.remove_table else scan
    except UserError as error:
        raise UserError(f"{options.reconstruction}: {error}") from error


def describe(found: Comparison, protocols: list[str]) -> list[str]:
    """A comparison as lines: how it lies, a table of scores, a table of what is measured on a chest."""
    columns = {"as it lies": found.scores} if found.scores else {}
    lines = [f"{100 * found.overlap:.0f} % of the CT's body lies in the reconstruction"]
    if found.aligned_overlap is not None:
        lines[0] += f", {100 * found.aligned_overlap:.0f} % after the alignment"
    if not found.scores:
        lines.append("they lie apart: their middles were laid on each other")
    if found.aligned_scores is not None:
        columns["aligned"] = found.aligned_scores
        lines.append(f"the reconstruction was {found.similarity}")
    scores, chest = _score_rows(columns, protocols), _chest_rows(columns)
    width = max(map(len, (*scores, *chest)))
    return [
        *lines,
        "",
        *_table(["protocol and score", "", *columns], scores, width),
        "",
        *_table(["on the chest", "CT", *columns], chest, width),
    ]


def _score_rows(columns: Mapping[str, Mapping[str, float]], protocols: list[str]) -> _Rows:
    from progressive_cascade.evaluation.metrics import HEADLINES

    names = [f"{protocol}_{score}" for protocol in protocols for score in HEADLINES[protocol]]
    names += [name for name in ("native_body_mae_hu",) if name not in names and "native" in protocols]
    return {name: [None, *(scores.get(name) for scores in columns.values())] for name in names}


def _chest_rows(columns: Mapping[str, Mapping[str, float]]) -> _Rows:
    from progressive_cascade.evaluation.clinical import MASKS, MEASURES

    first = next(iter(columns.values()))
    measures: dict[str, list[float | None]] = {
        label: [first[f"clinical_true_{name}"], *(scores[f"clinical_{name}"] for scores in columns.values())]
        for name, label in MEASURES.items()
    }
    kinds = {"dice": "overlap (Dice)", "surface_mm": "distance of surfaces [mm]"}
    masks: dict[str, list[float | None]] = {
        f"{mask}, {words}": [None, *(scores[f"clinical_{mask}_{kind}"] for scores in columns.values())]
        for mask in MASKS
        for kind, words in kinds.items()
    }
    return {**measures, **masks}


def _table(head: list[str], rows: _Rows, width: int) -> list[str]:
    """Lines of a table of numbers behind labels of that width; what is not finite is a dash, None nothing."""
    widths = [max(len(title), 7) + 2 for title in head[1:]]
    lines = [[f"{title:>{room}s}" for title, room in zip(head[1:], widths, strict=True)]]
    lines += [[f"{_cell(value):>{room}s}" for value, room in zip(row, widths, strict=True)] for row in rows.values()]
    return [f"{label:<{width}s}{''.join(line)}" for label, line in zip((head[0], *rows), lines, strict=True)]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def _write(found: Comparison, truth: PreparedCase, options: argparse.Namespace) -> None:
    """The files that were asked for, all or none."""
    from progressive_cascade.io import atomic_paths, finite, save_json

    paths = {name: path for name in ("output", "picture") if (path := getattr(options, name)) is not None}
    if not paths:
        return
    with atomic_paths(*paths.values()) as names:
        temporary = dict(zip(paths, names, strict=True))
        if "output" in temporary:
            save_json(finite(_record(found, options.protocol)), temporary["output"])
        if "picture" in temporary:
            _draw(found, truth, temporary["picture"])


def _record(found: Comparison, protocols: list[str]) -> dict[str, Any]:
    """What the file of scores holds; no name of a file, which may be a patient's."""
    return {
        "protocols": protocols,
        "overlap": found.overlap,
        "scores": found.scores or None,
        "similarity": None if found.similarity is None else asdict(found.similarity),
        "aligned_overlap": found.aligned_overlap,
        "aligned_scores": found.aligned_scores,
    }


def _draw(found: Comparison, truth: PreparedCase, path: Path) -> None:
    import numpy as np

    from progressive_cascade.report import borders_figure

    volumes = {"as it lies": found.hu} if found.scores else {}
    volumes |= {} if found.aligned is None else {"aligned": found.aligned}
    spacing = float(np.linalg.norm(truth.affine[:3, 0]))
    borders_figure(truth.hu, volumes, path, title="borders of body and lungs", spacing=spacing)
