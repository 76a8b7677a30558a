# SPDX-License-Identifier: Apache-2.0
"""Laws of chance that a table of distributions is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Law(Protocol):
    """Something to draw a number from."""

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Any number between two, each as likely."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        return float(rng.uniform(self.low, self.high))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Normal:
    """A normal distribution, cut off at two ends."""

    mean: float
    deviation: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        return float(np.clip(rng.normal(self.mean, self.deviation), self.low, self.high))

    def __str__(self) -> str:
        return f"{self.mean:g} ± {self.deviation:g}, {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class LogNormal:
    """A number whose logarithm is normal, cut off at two ends."""

    median: float
    spread: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        return float(np.clip(self.median * np.exp(self.spread * rng.standard_normal()), self.low, self.high))

    def __str__(self) -> str:
        return f"median {self.median:g}, × or ÷ {np.exp(self.spread):.2g}, {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Sometimes:
    """One law in a share of the patients, another, or 0, in the rest."""

    share: float
    law: Law
    otherwise: Law | None = None

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        if rng.random() < self.share:
            return self.law.draw(rng)
        return 0.0 if self.otherwise is None else self.otherwise.draw(rng)

    def __str__(self) -> str:
        rest = "0" if self.otherwise is None else str(self.otherwise)
        return f"{100 * self.share:g} %: {self.law}; else {rest}"
