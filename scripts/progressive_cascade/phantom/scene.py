# SPDX-License-Identifier: Apache-2.0
"""What the painters share: the canvas, the patient, and the fields that later shapes are cut by."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from progressive_cascade.phantom.labels import LABELS
from progressive_cascade.phantom.mediastinum import Mediastinum
from progressive_cascade.phantom.organs import Frame
from progressive_cascade.phantom.raster import Canvas
from progressive_cascade.phantom.tubes import Tubes, paint_tubes


@dataclass
class Scene:
    """A canvas and the patient on it.

    Args:
        canvas: where to paint.
        frame: the patient, and the lattice in the patient's frame.
        texture: smooth noise on the lattice, unit variance.
        blotches: another, independent one.
        layout: where the great vessels and airways run.
        fields: distances [mm] on the lattice by name, filled on the way.
    """

    canvas: Canvas
    frame: Frame
    texture: Tensor
    blotches: Tensor
    layout: Mediastinum
    fields: dict[str, Tensor] = field(default_factory=dict)

    def tissue(self, hu: float, noise: float = 4.0) -> Tensor:
        """HU of a tissue with soft texture, on the lattice."""
        return hu + noise * self.texture

    def paint_tubes(
        self, tubes: Tubes, value: float, label: str, *, add: bool = False, within: tuple[str, str] | None = None
    ) -> None:
        """Paint tubes that are given in the patient's frame; see :func:`.tubes.paint_tubes`."""
        placed = tubes.placed(self.frame.patient.pose)
        limits = None if within is None else (LABELS[within[0]], LABELS[within[1]])
        paint_tubes(self.canvas, placed, value=value, label=LABELS[label], add=add, within=limits)

    def paint_hollow(
        self,
        tubes: Tubes,
        values: tuple[float, float],
        label: str,
        *,
        wall: float,
        within: tuple[str, str] | None = None,
    ) -> None:
        """Paint tubes with a wall of so many mm, which is part of their radius.

        Args:
            tubes: in the patient's frame.
            values: HU of the wall and of what it encloses.
            label: name of the anatomy label.
            wall: thickness [mm].
            within: names of the first and last label that may be painted over.
        """
        self.paint_tubes(tubes, values[0], label, within=within)
        limits = None if within is None else (LABELS[within[0]], LABELS[within[1]])
        core = tubes.shrunk(wall).placed(self.frame.patient.pose)
        paint_tubes(self.canvas, core, value=values[1], label=LABELS[label], shell=values[0], within=limits)
