# SPDX-License-Identifier: Apache-2.0
"""Passes of stage 1 over one patient's radiographs, frame after frame, and what is known after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.attenuation import HU_MAX, HU_MIN, hu_to_unit
from progressive_cascade.inference.evidence import Evidence
from progressive_cascade.inference.frames import Frame, average_frames, deviate_frames

# What is denser counts as body.
_BODY = float(hu_to_unit(np.array(-500.0)))


@dataclass(frozen=True)
class State:
    """Everything after some steps: of the mean volume of the last passes, and of what it explains."""

    step: int
    loss: float
    held_loss: float
    residuals: tuple[float, float]
    spread: float
    volume: Tensor
    image: Tensor
    matrices: Tensor
    calibration: list[dict[str, object]]
    edges: list[str]


class Passes:
    """The last passes of stage 1, one for each frame, whose mean a volume is.

    Args:
        evidence: what is explained.
        values: stage 1's weights, which steps change in place.
        frames: where the cube is laid, in turns.
    """

    def __init__(self, evidence: Evidence, values: dict[str, Tensor], frames: Sequence[Frame]) -> None:
        self._evidence, self._values, self._frames = evidence, values, frames
        self._seen: list[tuple[Frame, Tensor, Tensor]] = []
        self._number = 0

    @property
    def is_round(self) -> bool:
        """Whether every frame was seen."""
        return len(self._seen) == len(self._frames)

    def run(self, step: int) -> tuple[Tensor, State]:
        """One more pass, in the next frame: its loss, to be stepped down, and the round's state after so many steps."""
        evidence, frame = self._evidence, self._frames[self._number % len(self._frames)]
        self._number += 1
        volume, explained = evidence.predict(self._values, frame)
        loss = evidence.losses(explained)[0]
        self._seen = [*self._seen, (frame, volume.detach(), explained.detach())][-len(self._frames) :]
        frames, volumes, parts = zip(*self._seen, strict=True)
        spread = deviate_frames(volumes, frames, above=_BODY)
        mean = torch.cat(parts).mean(dim=0, keepdim=True)
        return loss, self._look(step, average_frames(volumes, frames), mean, spread)

    def finish(self, step: int) -> State:
        """What is left of a round, with weights that stay."""
        while True:
            state = self.run(step)[1]
            if self.is_round:
                return state

    def take_back(self) -> None:
        """Forget the last pass; the next one is in its frame again."""
        del self._seen[-1]
        self._number -= 1

    def calibrate(self) -> None:
        """Fit intensities and pose to what the last pass explains."""
        frame, volume, explained = self._seen[-1]
        self._evidence.calibrate(volume, explained, frame)

    def _look(self, step: int, volume: Tensor, explained: Tensor, spread: float) -> State:
        evidence = self._evidence
        loss, held_loss = (float(part) for part in evidence.losses(explained))
        return State(
            step=step,
            loss=loss,
            held_loss=held_loss,
            residuals=evidence.residuals(explained),
            spread=spread * (HU_MAX - HU_MIN),
            volume=volume,
            image=evidence.image,
            matrices=evidence.matrices,
            calibration=[view.to_dict() for view in evidence.views] if evidence.searches else [],
            edges=[
                f"{name} of view {index} is {value:.3g}, at the edge of what is believed possible "
                f"({low:.3g} to {high:.3g})"
                for index, view in enumerate(evidence.views)
                for name, (value, low, high) in view.at_edge().items()
            ],
        )
