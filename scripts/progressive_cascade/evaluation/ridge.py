# SPDX-License-Identifier: Apache-2.0
"""A line through a few signs, chosen and judged on patients that it has not seen; small enough to be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

SQUARE = "²"
MOST_TERMS = 2
"""Terms of a line: with a dozen patients three to six did no better on those left out (bundle/docs/EXPERIMENTS.md)."""
_PENALTIES = (1.0, 3.0, 10.0)
# A further term must lower the squared miss on unseen patients by this share.
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Table:
    """Cases to fit a line to.

    Args:
        names: of the columns.
        values: (case, column); NaN where a sign is not to be had, which then counts as the mean.
        targets: (case,).
        patients: whose, (case,).
        weights: of the cases (case,).
    """

    names: Sequence[str]
    values: np.ndarray
    targets: np.ndarray
    patients: np.ndarray
    weights: np.ndarray

    def rows(self, chosen: np.ndarray) -> Table:
        """Some of the cases."""
        parts = (part[chosen] for part in (self.values, self.targets, self.patients, self.weights))
        return Table(self.names, *parts)


@dataclass(frozen=True)
class Fit:
    """A fitted line: ``intercept + Σ slope_k z_k``, z standardised, squared where the name says so."""

    names: tuple[str, ...]
    centers: np.ndarray
    scales: np.ndarray
    slopes: np.ndarray
    intercept: float

    def predict(self, table: Table) -> np.ndarray:
        """(case,)."""
        return self.intercept + _columns(table, self.names, self.centers, self.scales) @ self.slopes


def fit_line(table: Table, names: Sequence[str], penalty: float) -> Fit:
    """Weighted ridge regression on standardised columns.

    Args:
        table: the cases.
        names: terms: names of columns, with :data:`SQUARE` behind where the square counts.
        penalty: on the squared slopes, in units of cases.
    """
    raw = _raw(table, names)
    weights = table.weights / table.weights.mean()
    known = np.isfinite(raw)
    share = np.where(known, weights[:, None], 0.0)
    total = np.maximum(share.sum(axis=0), 1e-12)
    filled = np.where(known, raw, 0.0)
    centers = (share * filled).sum(axis=0) / total
    spread = np.sqrt((share * np.where(known, raw - centers, 0.0) ** 2).sum(axis=0) / total)
    scales = np.where(spread > 1e-9, spread, 1.0)
    design = _columns(table, names, centers, scales)
    middle = np.average(design, axis=0, weights=weights) if len(names) else np.zeros(0)
    offset = float(np.average(table.targets, weights=weights))
    moved, target = design - middle, table.targets - offset
    normal = (moved * weights[:, None]).T @ moved + penalty * np.eye(len(names))
    slopes = np.linalg.solve(normal, (moved * weights[:, None]).T @ target) if len(names) else np.zeros(0)
    return Fit(tuple(names), centers, scales, slopes, offset - float(middle @ slopes))


def predict_unseen(table: Table, names: Sequence[str], penalty: float) -> np.ndarray:
    """Every case by the line of the other patients (case,)."""
    found = np.empty(len(table.targets))
    for patient in np.unique(table.patients):
        left_out = table.patients == patient
        found[left_out] = fit_line(table.rows(~left_out), names, penalty).predict(table.rows(left_out))
    return found


def choose_terms(table: Table, candidates: Sequence[str]) -> tuple[list[str], float]:
    """Terms and penalty: the set that predicts unseen patients best, of one term more where that gains enough.

    Args:
        table: the cases.
        candidates: terms to choose from.

    Returns:
        The terms in the order of the candidates, and the penalty.
    """
    candidates = [name for name in candidates if _varies(table, name)]
    sums = _PatientSums.of(table, candidates)
    chosen: list[int] = []
    best, penalty = float(sums.misses([[]], 0.0)[0]), _PENALTIES[0]
    for size in range(1, min(MOST_TERMS, len(candidates)) + 1):
        sets = [list(one) for one in combinations(range(len(candidates)), size)]
        misses = np.array([sums.misses(sets, strength) for strength in _PENALTIES])
        strength, index = np.unravel_index(int(misses.argmin()), misses.shape)
        if misses[strength, index] > best * (1 - _LEAST_GAIN):
            break
        best, penalty, chosen = float(misses[strength, index]), _PENALTIES[int(strength)], sets[int(index)]
    return [candidates[index] for index in chosen], penalty


@dataclass(frozen=True)
class _PatientSums:
    """Sums over each patient's cases, from which every line of the others, and what it misses, follows.

    Args:
        gram: weighted products of the columns, the last of which is 1 (patient, column, column).
        moments: of columns and targets (patient, column).
        squares: of the targets (patient,).
        total: of the weights.
    """

    gram: np.ndarray
    moments: np.ndarray
    squares: np.ndarray
    total: float

    @classmethod
    def of(cls, table: Table, candidates: Sequence[str]) -> _PatientSums:
        whole = fit_line(table, candidates, 1.0)
        design = _columns(table, candidates, whole.centers, whole.scales)
        design = np.concatenate((design, np.ones((len(design), 1))), axis=1)
        weights, targets = table.weights / table.weights.mean(), table.targets
        parts = [table.patients == patient for patient in np.unique(table.patients)]
        weighted = design * weights[:, None]
        return cls(
            np.stack([weighted[part].T @ design[part] for part in parts]),
            np.stack([weighted[part].T @ targets[part] for part in parts]),
            np.array([float(weights[part] @ targets[part] ** 2) for part in parts]),
            float(weights.sum()),
        )

    def misses(self, sets: Sequence[Sequence[int]], penalty: float) -> np.ndarray:
        """Mean squared miss on unseen patients by each of these sets of as many columns (set,)."""
        last = self.gram.shape[1] - 1
        places = np.array([[*columns, last] for columns in sets])
        own = self.gram[:, places[:, :, None], places[:, None, :]]
        moments = self.moments[:, places]
        # The intercept is not drawn to 0.
        ridge = penalty * np.diag([1.0] * (places.shape[1] - 1) + [1e-9])
        slopes = np.linalg.solve(own.sum(axis=0) - own + ridge, (moments.sum(axis=0) - moments)[..., None])[..., 0]
        explained = np.einsum("pfi,pfij,pfj->pf", slopes, own, slopes) - 2 * np.einsum("pfi,pfi->pf", slopes, moments)
        return (explained + self.squares[:, None]).sum(axis=0) / self.total


def conformal_bounds(misses: np.ndarray, weights: np.ndarray, confidence: float) -> tuple[float, float]:
    """What to add below and above a prediction, so that the interval holds the truth with this probability.

    Both ends are quantiles of misses on unseen cases, with the correction for their number (Vovk et al. 2005).

    Args:
        misses: truth minus prediction (case,).
        weights: of the cases.
        confidence: share of unseen cases that the interval shall hold.

    Returns:
        At most 0, and at least 0.
    """
    tail = (1 - confidence) / 2
    number = weights.sum() ** 2 / np.square(weights).sum()
    level = min(1.0, (1 - tail) * (1 + 1 / number))
    high, low = (_quantile(sign * misses, weights, level) for sign in (1.0, -1.0))
    return min(0.0, -low), max(0.0, high)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; ties share their mean rank; NaN where one side does not vary.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 40.0]))
        1.0
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def _quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The least value that has at least this share of the weight at or below it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, level - 1e-12)), len(values) - 1)])


def _raw(table: Table, names: Sequence[str]) -> np.ndarray:
    places = [list(table.names).index(name.removesuffix(SQUARE)) for name in names]
    return table.values[:, places]


def _varies(table: Table, name: str) -> bool:
    known = _raw(table, [name])
    known = known[np.isfinite(known)]
    return bool(len(known)) and float(np.ptp(known)) > 0


def _columns(table: Table, names: Sequence[str], centers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    z = (_raw(table, names) - centers) / scales
    z = np.where(np.isfinite(z), z, 0.0)
    squared = np.array([name.endswith(SQUARE) for name in names], dtype=bool)
    return np.where(squared, z * z, z)
