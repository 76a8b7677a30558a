# SPDX-License-Identifier: Apache-2.0
"""Radiographs taken otherwise than the reconstruction believes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from progressive_cascade import ConeBeam
from progressive_cascade.geometry.views import view_name
from progressive_cascade.inference.transforms import to_line_integrals
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose
from progressive_cascade.training.cases import Case

NOMINAL = "nominal"
"""The condition in which nothing is wrong."""
_GREY_SCALE, _GREY_OFFSET = 500.0, 100.0


@dataclass(frozen=True)
class Condition:
    """One thing that goes wrong, by degrees.

    Args:
        label: of the x axis.
        values: its degrees.
        nominal: the degree at which nothing is wrong; it is measured once for all conditions.
        declared: whether the radiographs are said to be calibrated, a curve for each.
        log_x: whether the degrees are powers of ten.
    """

    label: str
    values: tuple[float, ...]
    nominal: float | None = None
    declared: tuple[bool, ...] = (True,)
    log_x: bool = False


CONDITIONS = {
    "view_angle": Condition("error of the lateral's angle [degrees]", (0, 1, 2, 5, 10), 0),
    "distance": Condition("error of source_to_isocenter [%]", (0, 1, 2, 5, 10), 0),
    "photons": Condition("photons per pixel", (1e6, 1e5, 1e4, 1e3), log_x=True),
    "scale": Condition("unknown factor", (0.8, 0.9, 1.0, 1.1, 1.2), 1, (True, False)),
    "offset": Condition("unknown offset", (0, 0.1, 0.3), 0, (True, False)),
    "grey_levels": Condition("grey levels per unit", (_GREY_SCALE,), declared=(False,)),
    "missing_view": Condition("blank laterals", (0, 1), 0, (True, False)),
}
"""Conditions by name."""


@dataclass(frozen=True)
class Point:
    """A pair of radiographs to take: under which condition, to which degree, and whether said to be calibrated."""

    condition: str
    value: float
    calibrated: bool


def plan_points(names: Sequence[str], *, quick: bool = False) -> Iterator[Point]:
    """The points of the curves: the nominal one first, then every condition's.

    Args:
        names: of the conditions.
        quick: the first and the last degree of each alone.

    Yields:
        Points, each once.
    """
    yield Point(NOMINAL, 0.0, True)
    for name in names:
        condition = CONDITIONS[name]
        values = (condition.values[0], condition.values[-1]) if quick else condition.values
        for calibrated in condition.declared:
            for value in dict.fromkeys(values):
                if not (calibrated and value == condition.nominal):
                    yield Point(name, float(value), calibrated)


def take_radiographs(case: Case, beam: ConeBeam, point: Point, *, seed: int) -> tuple[Tensor, bool]:
    """The radiographs of a patient under a condition.

    Args:
        case: the patient; the central rays meet in the middle of the grid.
        beam: the nominal geometry.
        point: what is wrong with them.
        seed: of the noise.

    Returns:
        Line integrals (1, view, rows, cols) as the reconstruction gets them, and whether it takes them for true ones.
    """
    value, exposure = point.value, None
    if point.condition == "view_angle":
        beam = replace(beam, views=(beam.views[0], view_name(90 - value)))
    elif point.condition == "distance":
        beam = replace(beam, source_to_isocenter=beam.source_to_isocenter * (1 + value / 100))
    elif point.condition == "photons":
        exposure = Exposure(photons=value)
    x, y, z, _ = case.affine @ np.array([*((np.array(case.hu.shape) - 1) / 2), 1.0])
    image = expose(
        torch.from_numpy(case.hu.astype(np.float32))[None, None],
        beam.at((float(x), float(y), float(z))),
        affine=case.affine,
        exposure=exposure,
        generator=torch.Generator().manual_seed(seed),
    )
    if point.condition == "missing_view" and value:
        image[:, 1] = 0
    if point.condition == "scale":
        return value * image, point.calibrated
    if point.condition == "offset":
        return image + value, point.calibrated
    if point.condition == "grey_levels":
        given, calibrated = to_line_integrals((value * image + _GREY_OFFSET)[0].numpy())
        return torch.from_numpy(given)[None], calibrated
    return image, point.calibrated
