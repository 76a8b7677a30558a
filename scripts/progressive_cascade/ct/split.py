# SPDX-License-Identifier: Apache-2.0
"""How patients are divided into training, validation and test."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from progressive_cascade.ct.datalist import SECTIONS
from progressive_cascade.errors import UserError


@dataclass(frozen=True)
class Split:
    """How patients are divided; a patient's cases never part.

    Args:
        validation_fraction: fraction of the patients drawn for validation.
        test_fraction: fraction drawn for test.
        seed: of the draw.
        training: patients named by hand; where given, no others are used.
        validation: patients named by hand instead of drawn.
        test: patients named by hand instead of drawn.

    Raises:
        UserError: for fractions outside [0, 1) or a patient named twice.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    training: tuple[str, ...] | None = None
    validation: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise UserError(f"split fractions must be at least 0 and sum to less than 1, got {fractions}")
        named = [patient for section in SECTIONS for patient in getattr(self, section) or ()]
        twice = sorted({patient for patient in named if named.count(patient) > 1})
        if twice:
            raise UserError(f"split must name each patient once, got {twice} more than once")

    def renamed(self, names: Mapping[str, str]) -> Split:
        """The same split with other names for the patients that it names."""
        parts = {part: getattr(self, part) for part in SECTIONS}
        named = {part: tuple(names.get(name, name) for name in old) for part, old in parts.items() if old is not None}
        return replace(self, **named)

    def check_names(self, patients: set[str]) -> None:
        """Refuses a split that names patients who are not in the archive."""
        named = {patient for section in SECTIONS for patient in getattr(self, section) or ()}
        if named - patients:
            raise UserError(f"split must name patients of the input, got unknown {sorted(named - patients)}")

    def wants(self, patient: str) -> bool:
        """Whether the patient can be in any section."""
        return self.training is None or any(patient in (getattr(self, section) or ()) for section in SECTIONS)

    def assign(self, patients: set[str]) -> dict[str, str]:
        """Maps each patient to a section: as named, else drawn; at least one patient stays in training."""
        sections = {p: name for name in SECTIONS for p in getattr(self, name) or () if p in patients}
        free = sorted(patients - set(sections))
        random.Random(self.seed).shuffle(free)
        for name, fraction in (("test", self.test_fraction), ("validation", self.validation_fraction)):
            if getattr(self, name) is None and fraction > 0 and len(free) > 1:
                num = min(max(1, round(fraction * len(patients))), len(free) - 1)
                sections.update(dict.fromkeys(free[:num], name))
                free = free[num:]
        return {**sections, **dict.fromkeys(free, "training")}

    def name_together(self, names: Sequence[str]) -> str:
        """The name of one person who goes by several: one that the split names, else the first.

        Raises:
            UserError: where the split puts the names into different sections.
        """
        named = {name: part for part in SECTIONS for name in getattr(self, part) or () if name in names}
        if len(set(named.values())) > 1:
            places = ", ".join(f"{name} in {part}" for name, part in named.items())
            raise UserError(f"split must keep a patient together, but these share a CT: {places}")
        return next(iter(named), names[0])
