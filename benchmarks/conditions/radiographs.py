# SPDX-License-Identifier: Apache-2.0
"""Radiographs taken otherwise than the reconstruction believes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from progressive_cascade import ConeBeam
from progressive_cascade.evaluation.perturbed import PERTURBATIONS, Perturbation
from progressive_cascade.geometry.views import view_name

NOMINAL = "nominal"
"""The condition in which nothing is wrong."""
LOOKED_FOR = "calibrated, size looked for"
"""What is told where stage 1 says how large the radiographs are, as `reconstruct --find-size` has it."""


@dataclass(frozen=True)
class Condition:
    """One thing that goes wrong, by degrees.

    Args:
        label: of the x axis.
        values: its degrees.
        nominal: the degree at which nothing is wrong; it is measured once for all conditions.
        told: what the reconstruction is told of the intensities, a curve for each.
        log_x: whether the degrees are powers of ten.
    """

    label: str
    values: tuple[float, ...]
    nominal: float | None = None
    told: tuple[str, ...] = ("calibrated",)
    log_x: bool = False

    @property
    def is_length(self) -> bool:
        """Whether it is a length that is wrong, which scales the answer."""
        return LOOKED_FOR in self.told


CONDITIONS = {
    "view_angle": Condition("error of the lateral's angle [degrees]", (0, 1, 2, 5, 10), 0),
    "distance": Condition("error of source_to_isocenter [%]", (0, 1, 2, 5, 10), 0, ("calibrated", LOOKED_FOR)),
    "pixel_size": Condition("error of the pixel spacing [%]", (0, 1, 2, 5), 0, ("calibrated", LOOKED_FOR)),
    "photons": Condition("photons per pixel", (1e5, 1e4, 1e3), log_x=True),
    "scale": Condition("unknown factor", (0.8, 0.9, 1.0, 1.1, 1.2), 1, ("calibrated", "scaled")),
    "offset": Condition("unknown offset", (0, 0.1, 0.3), 0, ("calibrated", "scaled")),
    "display": Condition("display curves", (1,), told=("display",)),
}
"""Conditions by name."""


@dataclass(frozen=True)
class Point:
    """A pair of radiographs to take: under which condition, to which degree, and what is told of its intensities."""

    condition: str
    value: float
    told: str

    def perturbation(self, stand: ConeBeam) -> Perturbation:
        """How such a pair is taken and told.

        Args:
            stand: the geometry that the reconstruction believes in.
        """
        value = self.value
        if self.condition == "view_angle":
            return Perturbation(stand, taken=replace(stand, views=(stand.views[0], view_name(90 - value))))
        if self.condition == "distance":
            longer = stand.source_to_isocenter * (1 + value / 100)
            return Perturbation(stand, taken=replace(stand, source_to_isocenter=longer))
        if self.condition == "pixel_size":
            rows, columns = (pitch * (1 + value / 100) for pitch in stand.pixel_spacing)
            return Perturbation(stand, taken=replace(stand, pixel_spacing=(rows, columns)))
        if self.condition == "photons":
            return Perturbation(stand, photons=value)
        if self.condition == "scale":
            return Perturbation(stand, intensities=self.told, change=lambda image: image * image.dtype.type(value))
        if self.condition == "offset":
            return Perturbation(stand, intensities=self.told, change=lambda image: image + image.dtype.type(value))
        return replace(PERTURBATIONS["display curve" if self.condition == "display" else NOMINAL], told=stand)


def plan_points(names: Sequence[str], *, quick: bool = False) -> Iterator[Point]:
    """The points of the curves: the nominal one first, then every condition's.

    Args:
        names: of the conditions.
        quick: the first and the last degree of each alone.

    Yields:
        Points, each once.
    """
    yield Point(NOMINAL, 0.0, "calibrated")
    for name in names:
        condition = CONDITIONS[name]
        values = (condition.values[0], condition.values[-1]) if quick else condition.values
        for told in condition.told:
            for value in dict.fromkeys(values):
                if not (told == "calibrated" and value == condition.nominal):
                    yield Point(name, float(value), told)
