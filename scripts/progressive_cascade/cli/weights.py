# SPDX-License-Identifier: Apache-2.0
"""Which of the shipped weights a pair is reconstructed with: those of the chest stand, or those of any geometry.

The latter were trained on what detectors and consoles make of a radiograph, too; the former know line integrals alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from progressive_cascade.errors import GeometryError

if TYPE_CHECKING:
    from progressive_cascade.networks import ProgressiveCascade

Result = TypeVar("Result")


class OtherWeights(Exception):
    """A pair that shipped weights other than those in use were trained for; the message says what it is."""


class Weights:
    """The networks of a command, each loaded when it is first needed.

    Args:
        checkpoint: the user's own; None: the shipped ones, of which each pair takes those that know its geometry.
        device: where networks lie.
    """

    def __init__(self, checkpoint: Path | None, device: str) -> None:
        self.checkpoint, self.device = checkpoint, device
        self._networks: dict[Path | None, ProgressiveCascade] = {}
        self.network(checkpoint)

    def network(self, checkpoint: Path | None) -> ProgressiveCascade:
        """The network of a checkpoint, None for the shipped one of a chest stand."""
        from progressive_cascade.inference.reconstruct import load_cascade

        if checkpoint not in self._networks:
            self._networks[checkpoint] = load_cascade(checkpoint, self.device)
        return self._networks[checkpoint]

    def run(
        self, options: argparse.Namespace, work: Callable[[argparse.Namespace, ProgressiveCascade], Result]
    ) -> Result:
        """Does a pair's work with the weights that know its geometry and its intensities.

        Args:
            options: of the command; `checkpoint` names the weights that were taken when the work is called.
            work: reads a pair with a network, and goes on.

        Returns:
            What the work gives.

        Raises:
            GeometryError: if none takes it, in the words of those that take most.
        """
        from progressive_cascade.inference.reconstruct import wide_checkpoint

        try:
            return work(options, self.network(self.checkpoint))
        except OtherWeights as other:
            wide, reason = wide_checkpoint(), str(other)
        except GeometryError:
            wide, reason = wide_checkpoint(), "not the geometry of a chest stand"
            if self.checkpoint is not None or not wide.is_file():
                raise
        own = copy(options)
        own.checkpoint = wide
        print(f"note: {reason}; taking the weights {wide.name}")
        return work(own, self.network(wide))
