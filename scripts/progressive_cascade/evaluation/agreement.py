# SPDX-License-Identifier: Apache-2.0
"""Measures of reconstruction and CT side by side: of one case, and over patients with their limits of agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from progressive_cascade.evaluation.clinical import MASKS, MEASURES
from progressive_cascade.evaluation.scores import patient_means
from progressive_cascade.report.agreement import agreement_limits, bland_altman_figure

_AGREEMENT = {"dice": "Dice", "surface_mm": "mean distance of borders [mm]", "surface95_mm": "95 % within [mm]"}


def clinical_table(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Of a case's scores what a page shows: every measure in reconstruction and CT, and how masks agree.

    Args:
        scores: with those of :func:`score_chests` among them.

    Returns:
        Numbers by label; what is not finite is left out.
    """
    table = {
        label: {"reconstruction": scores.get(f"clinical_{name}"), "CT": scores.get(f"clinical_true_{name}")}
        for name, label in MEASURES.items()
    }
    for mask in MASKS:
        table[mask] = {word: scores.get(f"clinical_{mask}_{name}") for name, word in _AGREEMENT.items()}
    finite = {
        label: {word: value for word, value in row.items() if value is not None and math.isfinite(value)}
        for label, row in table.items()
    }
    return {label: row for label, row in finite.items() if row}


def limits_of_agreement(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """How far measures of reconstruction and CT lie apart over the patients (Bland and Altman 1986).

    Args:
        cases: their records, see :mod:`.scores`.

    Returns:
        By method, for every measure that two patients have: ``bias``, the mean difference, reconstruction minus CT;
        ``low`` and ``high``, 1.96 standard deviations from it; ``num_patients``. doi 10.1016/S0140-6736(86)90837-8.
    """
    limits: dict[str, dict[str, dict[str, float]]] = {}
    for method in cases[0]["scores"] if cases else ():
        for name in MEASURES:
            differences = [found - true for found, true in measured_pairs(cases, method, name)]
            if len(differences) < 2:
                continue
            bias, low, high = agreement_limits(differences)
            ends = {"bias": bias, "low": low, "high": high, "num_patients": len(differences)}
            limits.setdefault(method, {})[name] = ends
    return limits


def draw_agreement(cases: Sequence[Mapping[str, Any]], path: str | PathLike[str]) -> None:
    """Draws the measures of the first method against the CTs', of three patients or more.

    Args:
        cases: their records; see :func:`progressive_cascade.report.agreement.bland_altman_figure`.
        path: PNG file; not written for fewer patients.
    """
    if not cases:
        return
    method = next(iter(cases[0]["scores"]))
    panels = {label: measured_pairs(cases, method, name) for name, label in MEASURES.items()}
    if max(map(len, panels.values())) > 2:
        bland_altman_figure(panels, path)


def measured_pairs(cases: Sequence[Mapping[str, Any]], method: str, name: str) -> list[tuple[float, float]]:
    """A measure in reconstruction and CT, patient by patient.

    Args:
        cases: their records.
        method: which reconstruction.
        name: of :data:`MEASURES`.

    Returns:
        Pairs of the patients who have both.
    """
    found, true = (patient_means(cases, method, f"clinical_{prefix}{name}") for prefix in ("", "true_"))
    return [(found[patient], true[patient]) for patient in found if patient in true]
