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
    """Everything after some steps: of the mean volume of a round so far, and of what it explains."""

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
    """Passes of stage 1 as its weights change; the last ones are a round with the cube in every frame.

    Args:
        evidence: what is explained.
        values: stage 1's weights, which steps change in place.
        frames: where the cube is laid in a round, the first one as it stands.
        steps: how many are taken at most: the round begins so early that it ends with the last.
    """

    def __init__(self, evidence: Evidence, values: dict[str, Tensor], frames: Sequence[Frame], steps: int = 0) -> None:
        self._evidence, self._values, self._frames = evidence, values, frames
        self._start = max(0, steps + 1 - len(frames))
        self._round: list[tuple[Frame, Tensor, Tensor]] = []

    @property
    def is_complete(self) -> bool:
        """Whether the round has seen every frame."""
        return len(self._round) == len(self._frames)

    @property
    def is_whole(self) -> bool:
        """Whether the last state is of one pass alone or of a whole round, and no part of one."""
        return len(self._round) in (1, len(self._frames))

    def run(self, step: int) -> tuple[Tensor, State]:
        """One more pass after so many steps: its loss, to be stepped down, and the state of the round so far.

        Before the round begins a pass, with the cube as it stands, is a state of its own.
        """
        if step <= self._start:
            self._round = []
        return self._run(step)

    def finish(self, step: int) -> State:
        """The state of the whole round, its missing passes made with weights that stay."""
        while True:
            state = self._run(step)[1]
            if self.is_complete:
                return state

    def take_back(self) -> None:
        """Forget the last pass; the next one is in its frame again."""
        del self._round[-1]

    def calibrate(self) -> None:
        """Fit intensities and pose to what the last pass explains."""
        frame, volume, explained = self._round[-1]
        self._evidence.calibrate(volume, explained, frame)

    def _run(self, step: int) -> tuple[Tensor, State]:
        evidence, frame = self._evidence, self._frames[len(self._round)]
        volume, explained = evidence.predict(self._values, frame)
        loss = evidence.losses(explained)[0]
        self._round.append((frame, volume.detach(), explained.detach()))
        frames, volumes, parts = zip(*self._round, strict=True)
        spread = deviate_frames(volumes, frames, above=_BODY)
        mean = torch.cat(parts).mean(dim=0, keepdim=True)
        return loss, self._look(step, average_frames(volumes, frames), mean, spread)

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
