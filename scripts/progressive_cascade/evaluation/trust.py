# SPDX-License-Identifier: Apache-2.0
"""Calibrate the expected error of a reconstruction, and sigma by tissue, on patients whose truth is known.

Of each error a line is chosen and fitted (:mod:`.ridge`), whose interval comes from what it missed on patients that it
had not seen; everything that a table says of it was predicted without the patient. Every patient counts the same,
however many trials he has; phantoms, whose errors are smaller, count half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.ridge import (
    SQUARE,
    Table,
    choose_terms,
    conformal_bounds,
    fit_line,
    predict_unseen,
    rank_correlation,
)
from progressive_cascade.evaluation.sigma import fit_sigma, sigma_report
from progressive_cascade.evaluation.trials import ERRORS
from progressive_cascade.inference.signs import SIGNS
from progressive_cascade.inference.trust import CONFIDENCE, EXPECTED, FIRST, parse_line

CANDIDATES: tuple[str, ...] = (
    *("residual_before", "residual_after", "held_out_after", "first_shape", "first_worst", "spread"),
    *("change", "second", "second_change", "second_residual", "sigma", "noise"),
    *("dense_hu", "lung_hu", "body", "lung_share", "bone_share"),
    *("scaled", "display", "wide"),
    *(f"{name}{SQUARE}" for name in ("dense_hu", "lung_hu")),
)
"""Terms to choose from: few, because a dozen patients teach few."""
FOLLOWS: dict[str, tuple[str, ...]] = {"psnr_3d_db": (EXPECTED, "body")}
"""Errors that follow from the one that is expected first, with what they may follow from."""
LOGARITHMIC = {"body_mae_hu": True, "psnr_3d_db": False, "lungs_surface_mm": True, "body_surface_mm": True}
"""Errors whose logarithm the line is of."""
_GUARDS = ("beyond", "residual_before", "body", "lung_share")
_PHANTOM_WEIGHT = 0.5
# A sign may lie so far outside of what the calibration saw, as a share of its span.
_MARGIN = 0.25
_LEAST_PATIENTS = 4
# An abdomen shows the bases of lungs alone, whose borders may lie anywhere.
_CHEST_LUNG_SHARE = 0.1


def make_table(records: Sequence[Mapping[str, Any]], error: str) -> tuple[Table, list[Mapping[str, Any]]]:
    """The cases that have an error, as a table, and their records."""
    needed = {error, FIRST} if error in FOLLOWS else {error}
    kept = [record for record in records if all(record["errors"][name] is not None for name in needed)]
    if error == "lungs_surface_mm":
        kept = [record for record in kept if record["signs"]["lung_share"] >= _CHEST_LUNG_SHARE]
    values = np.array([[_number(record["signs"][name]) for name in SIGNS] for record in kept])
    targets = np.array([record["errors"][error] for record in kept], dtype=np.float64)
    patients = np.array([record["patient"] for record in kept])
    counts = {patient: int((patients == patient).sum()) for patient in set(patients)}
    weights = np.array(
        [(_PHANTOM_WEIGHT if r["group"] == "phantoms" else 1.0) / counts[r["patient"]] for r in kept], dtype=np.float64
    )
    targets = np.log(np.maximum(targets, 1e-3)) if LOGARITHMIC[error] else targets
    return Table(list(SIGNS), values, targets, patients, weights), kept


def fit_errors(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A line for every error, and what it said of patients that it had not seen.

    Args:
        records: of :meth:`.trials.Trials.collect`.

    Returns:
        The lines as their file holds them, and a row per case and error: ``error``, ``name``, ``patient``, ``group``,
        ``perturbation``, ``true``, and ``expected`` and ``interval``, or None for a case unlike the others'.

    Raises:
        UserError: if there are too few patients.
    """
    if len({record["patient"] for record in records}) < _LEAST_PATIENTS:
        raise UserError(f"there must be at least {_LEAST_PATIENTS} patients or phantoms to calibrate on")
    lines, rows = {}, []
    for error in ERRORS:
        table, kept = make_table(records, error)
        if len(np.unique(table.patients)) < _LEAST_PATIENTS:
            continue
        first = make_table(kept, FIRST)[0] if error in FOLLOWS else None
        lines[error] = _fit_error(_with_expected(table, first, np.ones(len(kept), dtype=bool)), error)
        rows += _unseen_rows(table, first, kept, error)
    return lines, rows


def _with_expected(table: Table, first: Table | None, seen: np.ndarray) -> Table:
    """The table, with what is expected of the first error as a sign, where there is a table of that.

    Each patient that is seen is expected by the other ones that are, the others by all that are seen.
    """
    if first is None:
        return table
    known = first.rows(seen)
    names, penalty = choose_terms(known, CANDIDATES)
    found = fit_line(known, names, penalty).predict(first)
    found[seen] = predict_unseen(known, names, penalty)
    values = np.concatenate((table.values, found[:, None]), axis=1)
    return replace(table, names=[*table.names, EXPECTED], values=values)


def _fit_error(table: Table, error: str) -> dict[str, Any]:
    """The line of an error, as its file holds it."""
    logarithmic = LOGARITHMIC[error]
    names, penalty = choose_terms(table, FOLLOWS.get(error, CANDIDATES))
    misses = table.targets - predict_unseen(table, names, penalty)
    below, above = conformal_bounds(misses, table.weights, CONFIDENCE)
    fit = fit_line(table, names, penalty)
    numbers = np.stack((fit.slopes, fit.centers, fit.scales), axis=1)
    terms = [_term(table, name, *row) for name, row in zip(names, numbers.tolist(), strict=True)]
    terms += [_term(table, name, 0.0, 0.0, 1.0) for name in _GUARDS if name not in names]
    ends = {"intercept": fit.intercept, "below": below, "above": above}
    return {**ends, "logarithmic": logarithmic, "penalty": penalty, "terms": terms}


def fit_trust(records: Sequence[Mapping[str, Any]], **about: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole calibration, as its file holds it, and the report on unseen patients.

    Args:
        records: of :meth:`.trials.Trials.collect`.
        about: what else the file says: ``checkpoints``, ``uncertainty``, ``refine_steps``,
            ``refine_revision``.
    """
    lines, rows = fit_errors(records)
    told_rightly = [r for r in records if not r["undeclared"] and r["group"] == "patients"]
    report = {"errors": summarize(rows), "rows": rows, "sigma": sigma_report(told_rightly)}
    sigma = fit_sigma(told_rightly) if helps(report["sigma"]) else {}
    content = {**about, "calibrated_on": describe(records), "errors": lines, "sigma": sigma}
    return content, report


def helps(sigma: Mapping[str, Any]) -> bool:
    """Whether recalibrated sigma covers unseen patients better, within 1 and 2 sigma together."""
    if not sigma:
        return False
    before, after = (sum(abs(each) for each in sigma["body"][key]["off"]) for key in ("before", "after"))
    return after < before


def describe(records: Sequence[Mapping[str, Any]]) -> str:
    """What a calibration was made on, in words."""
    cts = len({record["patient"] for record in records if record["group"] == "patients"})
    phantoms = len({record["patient"] for record in records if record["group"] == "phantoms"})
    wrong = sum(bool(record["undeclared"]) for record in records)
    return (
        f"{len(records)} reconstructions of {cts} CTs (those of the training as mirror images) and {phantoms} unseen "
        f"phantoms, {wrong} of them told a wrong geometry or scale"
    )


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rank correlation and coverage by error, over everything and over parts of it."""
    found: dict[str, Any] = {}
    for error in dict.fromkeys(row["error"] for row in rows):
        own = [row for row in rows if row["error"] == error]
        parts = {
            "all": own,
            "patients × perturbations": [row for row in own if row["group"] == "patients"],
            "patients, nominal": [r for r in own if r["group"] == "patients" and r["perturbation"] == "nominal"],
            "phantoms": [row for row in own if row["group"] == "phantoms"],
        }
        found[error] = {name: judge(part) for name, part in parts.items() if part}
    return found


def judge(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How well expected errors of one kind fit the true ones, of the cases that are not ``unlike`` all others."""
    known = [row for row in rows if row["expected"] is not None]
    about: dict[str, float] = {"cases": len(rows), "unlike": len(rows) - len(known)}
    if not known:
        return about
    true, expected = (np.array([row[key] for row in known]) for key in ("true", "expected"))
    low, high = np.array([row["interval"] for row in known]).T
    return {
        **about,
        "patients": len({row["patient"] for row in rows}),
        "rank_correlation": rank_correlation(true, expected) if len(known) > 2 else math.nan,
        "coverage": float(np.mean((low <= true) & (true <= high))),
        "median_width": float(np.median(high - low)),
        "median_miss": float(np.median(np.abs(true - expected))),
    }


def _unseen_rows(
    table: Table, first: Table | None, kept: Sequence[Mapping[str, Any]], error: str
) -> list[dict[str, Any]]:
    """Each patient by all that the others chose: terms, line, interval, and the range in which a number is given."""
    rows = []
    for patient in np.unique(table.patients):
        others = table.patients != patient
        given = _with_expected(table, first, others)
        line = parse_line(_fit_error(given.rows(others), error))
        for index in np.flatnonzero(~others).tolist():
            record = kept[index]
            told = {key: record[key] for key in ("name", "patient", "group", "perturbation")}
            row = {"error": error, **told, "true": float(record["errors"][error])}
            signs = dict(zip(given.names, given.values[index].tolist(), strict=True))
            unlike = bool(line.problems(signs))
            value, *ends = line.expect(signs)
            rows.append({**row, "expected": None if unlike else value, "interval": None if unlike else ends})
    return rows


def _term(table: Table, name: str, slope: float, center: float, scale: float) -> dict[str, Any]:
    column = table.values[:, list(table.names).index(name.removesuffix(SQUARE))]
    known = column[np.isfinite(column)]
    margin = _MARGIN * float(np.ptp(known))
    span = {"low": float(known.min()) - margin, "high": float(known.max()) + margin}
    given = {"name": name, "slope": float(slope), "center": float(center), "scale": float(scale), **span}
    return {**given, "optional": bool(len(known) < len(column))}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
