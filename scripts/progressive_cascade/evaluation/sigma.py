# SPDX-License-Identifier: Apache-2.0
"""Sigma recalibrated by tissue: which factor and power bring the shares within 1 and 2 sigma to a Gaussian's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from progressive_cascade.ct.tissues import TISSUES
from progressive_cascade.evaluation.trials import EDGES_HU
from progressive_cascade.inference.trust import SIGMA_PIVOT_HU

GAUSSIAN = (math.erf(1 / math.sqrt(2)), math.erf(2 / math.sqrt(2)))
"""Share of a Gaussian within one and two standard deviations."""
_POWERS = np.linspace(0.2, 1.4, 13)
_FACTORS = np.geomspace(0.4, 8.0, 76)
_LEAST_VOXELS = 1000
_CENTERS = np.sqrt(EDGES_HU[:-1] * EDGES_HU[1:])


def fit_sigma(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Factor and power of every tissue, every patient counting the same.

    Args:
        records: with a ``tally`` of :func:`.trials.tally_sigma`.
    """
    return {name: list(_best(_pooled(records, index))) for index, name in enumerate(TISSUES)}


def sigma_report(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of the body's voxels within 1 and 2 sigma, before and after, each patient by the fit of the others.

    Returns:
        For ``body`` and each tissue ``before`` and ``after``: ``shares``, the patients' mean, and ``off``, how far
        they lie from a Gaussian's; empty with fewer than two patients.
    """
    patients = sorted({record["patient"] for record in records})
    if len(patients) < 2:
        return {}
    pairs = []
    for patient in patients:
        fitted = fit_sigma([record for record in records if record["patient"] != patient])
        pairs.append(_before_after(records, patient, fitted))
    return _report(pairs)


def judge_sigma(records: Sequence[Mapping[str, Any]], fitted: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """As :func:`sigma_report`, of a recalibration that is given; empty without one."""
    patients = sorted({record["patient"] for record in records})
    return _report([_before_after(records, patient, fitted) for patient in patients]) if fitted and patients else {}


def _before_after(
    records: Sequence[Mapping[str, Any]], patient: str, fitted: Mapping[str, Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    tally = np.sum([record["tally"] for record in records if record["patient"] == patient], axis=0)
    return _within(tally, {name: [1.0, 1.0] for name in TISSUES}), _within(tally, fitted)


def _report(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    sides = {"before": [pair[0] for pair in pairs], "after": [pair[1] for pair in pairs]}
    named = enumerate(["body", *TISSUES])
    found = {name: {key: _mean(part, index) for key, part in sides.items()} for index, name in named}
    return {**found, "patients": len(pairs)}


def shares_within(tally: np.ndarray, factor: Any, power: Any) -> np.ndarray:
    """Shares of the errors within 1 and 2 recalibrated sigma.

    Args:
        tally: counts by sigma and error (96, 96).
        factor: of sigma, a number or an array.
        power: of sigma over 100 HU, likewise.

    Returns:
        The two shares, behind the axes of factor and power.
    """
    rows = np.flatnonzero(tally.any(axis=1))
    below = np.concatenate((np.zeros((len(rows), 1)), np.cumsum(tally[rows], axis=1, dtype=np.float64)), axis=1)
    # Within a bin errors are taken to be evenly spread; the first one begins at 0.
    edges = np.concatenate(([0.0], EDGES_HU[1:]))
    factor, power = (np.asarray(each, dtype=np.float64)[..., None] for each in (factor, power))
    sigma = factor * SIGMA_PIVOT_HU * (_CENTERS[rows] / SIGMA_PIVOT_HU) ** power
    shares = []
    for times in (1.0, 2.0):
        reach = np.minimum(times * sigma, edges[-1])
        left = np.clip(np.searchsorted(edges, reach, side="right") - 1, 0, len(edges) - 2)
        part = (reach - edges[left]) / (edges[left + 1] - edges[left])
        places = np.arange(len(rows))
        inside = below[places, left] * (1 - part) + below[places, left + 1] * part
        shares.append(inside.sum(axis=-1) / max(float(tally.sum()), 1e-12))
    return np.stack(shares, axis=-1)


def _within(tally: np.ndarray, fitted: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Shares within 1 and 2 sigma in the body and in each tissue (1 + tissue, 2); NaN where there is too little."""
    counts = tally.sum(axis=(1, 2))
    shares = np.array([shares_within(tally[i], *fitted[name]) for i, name in enumerate(TISSUES)])
    body = (shares * counts[:, None]).sum(axis=0) / counts.sum()
    shares[counts < _LEAST_VOXELS] = np.nan
    return np.vstack((body, shares))


def _mean(parts: Sequence[np.ndarray], index: int) -> dict[str, list[float]]:
    found = np.array([part[index] for part in parts if np.isfinite(part[index]).all()])
    shares = found.mean(axis=0) if len(found) else np.full(2, math.nan)
    return {"shares": shares.tolist(), "off": (shares - GAUSSIAN).tolist()}


def _pooled(records: Sequence[Mapping[str, Any]], tissue: int) -> np.ndarray:
    """One tally of a tissue, every patient's voxels in it counting as one."""
    parts = [record["tally"][tissue].astype(np.float64) for record in records]
    found = [part / part.sum() for part in parts if part.sum() >= _LEAST_VOXELS]
    return np.sum(found, axis=0) if found else np.zeros((len(_CENTERS),) * 2)


def _best(tally: np.ndarray) -> tuple[float, float]:
    """Factor and power whose worse share lies nearest to a Gaussian's; nothing changes where nothing was seen."""
    if not tally.any():
        return 1.0, 1.0
    factors, powers = np.meshgrid(_FACTORS, _POWERS, indexing="ij")
    # Errors have longer tails than a Gaussian's: where both shares cannot be met, they shall be missed alike.
    miss = np.abs(shares_within(tally, factors, powers) - GAUSSIAN).max(axis=-1)
    # Of pairs that do as well the one that changes least.
    miss += 1e-4 * (np.log(factors) ** 2 + (powers - 1) ** 2)
    place = np.unravel_index(int(miss.argmin()), miss.shape)
    return float(factors[place]), float(powers[place])
