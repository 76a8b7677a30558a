# SPDX-License-Identifier: Apache-2.0
"""What many cases say together: means and intervals over patients, differences between methods, tables as files.

A record of a case is ``{"case": name, "patient": name, "scores": {method: {score: value}}, ...}``, as
:class:`.results.EvaluationReport` keeps them. Patients, not cases, are drawn at random from the
world: the cases of one patient are averaged first, and everything else is over patients.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from scipy import stats

from progressive_cascade.io import atomic_path

CONFIDENCE = "95 % bootstrap interval of the mean over patients (BCa, 9999 resamples)"
"""How :func:`confidence_interval` makes its intervals, for reports."""

_RESAMPLES = 9999

Case = Mapping[str, Any]


def confidence_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Interval that holds the mean of the population with a confidence of 95 %, by bootstrap.

    The bias-corrected and accelerated interval of Efron (1987, doi 10.1080/01621459.1987.10478410) over 9999
    resamples. Of two values it can be no more than their range.

    Args:
        values: one finite number per patient.
        seed: of the resampling.

    Returns:
        Its ends.

    Raises:
        ValueError: for fewer than two values, or one that is not finite.

    Example:
        >>> confidence_interval([3.0, 3.0, 3.0])
        (3.0, 3.0)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise ValueError(f"values must be those of at least two patients, got {numbers.size}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"values must be finite, got {numbers.tolist()}")
    if numbers.min() == numbers.max():  # nothing varies: BCa has no acceleration, and none is needed
        return float(numbers[0]), float(numbers[0])
    random = np.random.default_rng(seed)
    # scipy renamed random_state to rng in 1.15 and takes both; its type hints know the new name alone.
    found = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=_RESAMPLES,
        method="BCa",
        random_state=random,  # pyright: ignore[reportCallIssue]
    ).confidence_interval
    return float(found.low), float(found.high)


def summarize(cases: Sequence[Case], *, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """Every score of every method over the patients; scores that are not finite are left out.

    Args:
        cases: their records.
        seed: of the bootstrap.

    Returns:
        ``{method: {score: summary}}``, a summary as of :func:`summarize_values`; scores without a finite value are
        missing.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for method in cases[0]["scores"] if cases else ():
        summary[method] = {}
        for score in cases[0]["scores"][method]:
            values = list(patient_means(cases, method, score).values())
            if values:
                summary[method][score] = summarize_values(values, seed=seed)
    return summary


def summarize_values(values: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """Mean, spread and interval of one number per patient.

    Args:
        values: at least one finite number.
        seed: of the bootstrap.

    Returns:
        ``mean``; ``std``, the standard deviation between patients; ``ci95``, the two ends of
        :func:`confidence_interval`, None for a single patient; ``num_patients``.
    """
    interval = list(confidence_interval(values, seed=seed)) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "ci95": interval,
        "num_patients": len(values),
    }


def patient_means(cases: Sequence[Case], method: str, score: str) -> dict[str, float]:
    """A score's mean over each patient's cases, by patient; values that are not finite are left out.

    Args:
        cases: their records.
        method: which reconstruction.
        score: which number.

    Returns:
        Means by the patient's name, in the order of the cases.
    """
    values: dict[str, list[float]] = {}
    for case in cases:
        value = case["scores"].get(method, {}).get(score)
        if value is not None and math.isfinite(value):
            values.setdefault(case.get("patient", case["case"]), []).append(value)
    return {patient: float(np.mean(own)) for patient, own in values.items()}


def paired_gain(
    cases: Sequence[Case], method: str, reference: str, score: str, *, seed: int = 0
) -> dict[str, Any] | None:
    """How much better a method does than another on the same patients.

    The differences are resampled, not the scores: patients differ far more than methods on one patient do.

    Args:
        cases: their records.
        method: the one that should be better.
        reference: the one to compare with.
        score: which number.
        seed: of the bootstrap.

    Returns:
        Summary of the differences, method minus reference, as of :func:`summarize_values`; None without a patient
        whom both have scored.
    """
    ours, theirs = (patient_means(cases, name, score) for name in (method, reference))
    differences = [ours[patient] - theirs[patient] for patient in ours if patient in theirs]
    return summarize_values(differences, seed=seed) if differences else None


def save_csv(cases: Sequence[Case], path: str | PathLike[str]) -> None:
    """Writes a row for each case and method, a column for each score; inf and nan as they are.

    Args:
        cases: their records.
        path: CSV file; written whole or not at all.

    Raises:
        UserError: where the file cannot be written.
    """
    names = list(dict.fromkeys(name for case in cases for scores in case["scores"].values() for name in scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "method", *names])
    for case in cases:
        for method, scores in case["scores"].items():
            row = [scores.get(name, "") for name in names]
            writer.writerow([case["case"], case.get("patient", case["case"]), method, *row])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
