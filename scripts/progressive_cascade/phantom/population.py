# SPDX-License-Identifier: Apache-2.0
"""Populations that phantoms are drawn from: two by name, and the basic one with some families of the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from progressive_cascade.phantom.basic import draw_basic
from progressive_cascade.phantom.families import FAMILIES
from progressive_cascade.phantom.patient import Patient

POPULATIONS = ("basic", "clinical")
"""`basic`: healthy builds, upright and centred. `clinical`: patients as they lie in scanners and stand at detectors."""


@dataclass(frozen=True)
class Population:
    """What a patient is drawn from: basic numbers, and families of numbers that take their place.

    Args:
        families: of :data:`FAMILIES`, in its order.
    """

    families: tuple[str, ...] = ()

    def draw(self, rng: np.random.Generator, seed: int) -> Patient:
        """Draw one patient.

        Args:
            rng: of the basic numbers.
            seed: of the patient; every family has its own numbers, whichever others are drawn.
        """
        patient = draw_basic(rng)
        for name in self.families:
            key = list(FAMILIES).index(name)
            patient = FAMILIES[name](
                patient, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(100 + key,)))
            )
        return patient


def parse_population(name: str) -> Population:
    """The population of a name.

    Args:
        name: of :data:`POPULATIONS`; `basic+pose+lungs` is basic but for those families, `clinical-pose` clinical
            but for that one.

    Raises:
        TypeError: if `name` is no string.
        ValueError: if it names none.

    Example:
        >>> parse_population("basic+pose").families
        ('pose',)
    """
    if not isinstance(name, str):
        raise TypeError(f"population must be a name, got {name!r}")
    base, sign, rest = name, "", ""
    for mark, start in (("+", "basic"), ("-", "clinical")):
        if name.startswith(start + mark):
            base, sign, rest = start, mark, name[len(start) + 1 :]
    named = rest.split(sign) if sign else []
    if base not in POPULATIONS or not set(named) <= set(FAMILIES):
        raise ValueError(
            f"population must be one of {', '.join(POPULATIONS)}, or basic+FAMILY or clinical-FAMILY with families of "
            f"{', '.join(FAMILIES)}, got {name!r}"
        )
    wanted = set(named) if base == "basic" else set(FAMILIES) - set(named)
    return Population(tuple(family for family in FAMILIES if family in wanted))
