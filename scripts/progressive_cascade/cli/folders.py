# SPDX-License-Identifier: Apache-2.0
"""`reconstruct --input`: every pair of a folder, one network, one progress bar, one summary."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import check_output_folder, describe_error
from progressive_cascade.cli.radiographs import STRICT_EXIT, Warned
from progressive_cascade.cli.results import case_files
from progressive_cascade.errors import UserError
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    from progressive_cascade.radiograph.folder import PairFiles

SUMMARY, INDEX = "summary.csv", "index.html"
"""What tells of a folder's pairs, in its output."""
_EXPECTED = ("expected_body_mae_hu", "expected_low_hu", "expected_high_hu", "expected_psnr_db")
_COLUMNS: tuple[str, ...] = (
    "case",
    "status",
    "intensities",
    "agreement_db",
    *_EXPECTED,
    "assumptions",
    "warnings",
    "reason",
)
_FAILED_EXIT = 2


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `reconstruct` wants to know of a folder."""
    folders = parser.add_argument_group("folders")
    folders.add_argument("--input", type=Path, metavar="DIR", help="reconstruct every pair in DIR into --output DIR")
    folders.add_argument("--pairs", type=Path, metavar="CSV", help="of --input: a table of case, pa, lateral")
    names = folders.add_mutually_exclusive_group()
    names.add_argument(
        "--keep-names",
        action="store_true",
        help="of --input: name DICOM pairs by StudyInstanceUID, list paths (default: a hash)",
    )
    names.add_argument(
        "--key", type=Path, metavar="FILE", help="of --input: keep what leads back to StudyInstanceUIDs, mode 0600"
    )
    folders.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="pass over the pairs that are done and whole; --overwrite makes them again (default: --resume)",
    )


def run_folder(options: argparse.Namespace, run_one: Callable[[argparse.Namespace], Mapping[str, Any]]) -> int:
    """Reconstructs every pair of `--input`; one that fails is told in a line and does not stop the others.

    Args:
        options: of the command; each pair gets a copy with its own files.
        run_one: reconstructs the pair of such a copy and returns its sidecar.

    Returns:
        0; 2 where a pair failed; 3 with `--strict` where one was warned of, and none failed.

    Raises:
        UserError: for options that do not go together, or a folder without pairs.
    """
    from tqdm import tqdm

    single = ("pa", "lateral", "uncertainty", "report")
    if any(getattr(options, name) is not None for name in single):
        raise UserError(f"--input must come without {', '.join(f'--{name}' for name in single)}")
    check_output_folder(options.output)
    check_files(reads={"--input": options.input}, writes={"--output": [options.output]}, overwrite=True)
    rows: list[dict[str, Any]] = []
    for pair in (bar := tqdm(_find_pairs(options), desc="pairs", unit="pair")):
        row = _reconstruct_one(pair, options, run_one)
        rows.append(row)
        if row["reason"]:
            bar.write(f"{row['case']}: {row['status']}: {row['reason']}")
        _write_summary(rows, options.output)
    done = sum(row["status"] == "done" for row in rows)
    print(f"{done} of {len(rows)} pairs are reconstructed: {options.output / SUMMARY}")
    states = {row["status"] for row in rows}
    return _FAILED_EXIT if "failed" in states else STRICT_EXIT if "warned" in states else 0


def _find_pairs(options: argparse.Namespace) -> list[PairFiles]:
    """The pairs of `--input`, by names that hide whose they are unless they are to be kept."""
    from progressive_cascade.ct.pseudonyms import Key, read_key, save_key
    from progressive_cascade.radiograph.folder import find_pairs

    if options.keep_names:
        return find_pairs(options.input, options.pairs, name_study=lambda study: f"study_{study}")
    if options.key is None:
        return find_pairs(options.input, options.pairs)
    check_files(reads={"--input": options.input}, writes={"--key": [options.key]}, overwrite=True)
    key = read_key(options.key) if options.key.exists() else Key(secrets.token_hex(32), {})
    pairs = find_pairs(options.input, options.pairs, name_study=lambda study: f"case_{key.name(study)}")
    found = {pair.case: pair.study for pair in pairs if pair.study}
    save_key(replace(key, patients={**key.patients, **found}), options.key)
    return pairs


def _reconstruct_one(
    pair: PairFiles, options: argparse.Namespace, run_one: Callable[[argparse.Namespace], Mapping[str, Any]]
) -> dict[str, Any]:
    """The pair's row of the summary."""
    from progressive_cascade.io import read_json
    from progressive_cascade.radiograph.folder import is_complete

    output = options.output / (pair.case if options.format == "dicom" else f"{pair.case}.nii.gz")
    files = case_files(argparse.Namespace(**{**vars(options), "output": output})).fixed()
    row = {**dict.fromkeys(_COLUMNS, ""), "case": pair.case, "status": "done"}
    try:
        if options.resume and not options.overwrite and is_complete(files.values()):
            return {**row, **_described(read_json(files["sidecar"]))}
        check_files(reads={}, writes={"--output": list(files.values())}, overwrite=options.overwrite or options.resume)
        # What is printed for a single pair stands in the sidecar and in the summary.
        with contextlib.redirect_stdout(io.StringIO()):
            return {**row, **_described(run_one(_own_options(pair, output, options)))}
    except Warned as warned:
        return {**row, "status": "warned", "reason": str(warned)}
    except Exception as error:
        line = describe_error(error)
        if line is None or options.debug:
            raise
        return {**row, "status": "failed", "reason": line if options.keep_names else pair.said(line, options.input)}


def _own_options(pair: PairFiles, output: Path, options: argparse.Namespace) -> argparse.Namespace:
    """The command's options with the files of one pair; a geometry.json beside them counts as --geometry."""
    if pair.problem or pair.frontal is None:
        raise UserError(pair.problem)
    beside = pair.frontal.parent / "geometry.json"
    geometry = options.geometry or (beside if beside.is_file() and options.preset is None else None)
    own = {"pa": pair.frontal, "lateral": pair.lateral, "output": output, "geometry": geometry}
    return argparse.Namespace(**{**vars(options), **own})


def _described(record: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the summary out of a sidecar."""
    scores = record.get("first_agreement") or {}
    return {
        "intensities": record.get("intensities", ""),
        "agreement_db": " ".join(f"{score:.1f}" for score in scores.values()),
        **_expected(record.get("expected_error") or {}),
        "assumptions": len(record.get("assumptions") or ()),
        "warnings": "; ".join(record.get("warnings") or ()),
    }


def _expected(errors: Mapping[str, Any]) -> dict[str, str]:
    """Columns of what error is expected; empty where none is known."""
    body, psnr = errors.get("body_mae_hu"), errors.get("psnr_3d_db")
    numbers = [None] * 3 if body is None else [body["value"], *body["interval"]]
    said = ["" if number is None else f"{number:.0f}" for number in numbers]
    return dict(zip(_EXPECTED, [*said, "" if psnr is None else f"{psnr['value']:.1f}"], strict=True))


def _write_summary(rows: list[dict[str, Any]], folder: Path) -> None:
    from progressive_cascade.io import atomic_paths
    from progressive_cascade.report import index_page

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    # Staged like a case, so that the next run clears away what a killed one leaves.
    with atomic_paths(folder / SUMMARY) as (temporary,):
        temporary.write_text(text.getvalue(), encoding="utf-8")
    cases = [
        {
            "name": row["case"],
            "page": page if (page := folder / f"{row['case']}.html").is_file() else None,
            "warnings": [line for line in row["warnings"].split("; ") if line],
            "error": row["reason"],
            **{
                name: row[name]
                for name in ("status", "intensities", "agreement_db", "expected_body_mae_hu", "assumptions")
            },
        }
        for row in rows
    ]
    index_page(cases, folder / INDEX)
