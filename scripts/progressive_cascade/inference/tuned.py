# SPDX-License-Identifier: Apache-2.0
"""Weights that are tuned on one case: copies of a stage's, stepped by Adam, which can take a step back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TunedWeights:
    """Copies of a stage's parameters in float32; those that are tuned are leaves that want a gradient.

    Args:
        stage: whose; it stays as it is.
        prefixes: what the names of the tuned ones start with; empty: all of them.
        rate: of Adam.

    Attributes:
        values: the copies by name, for ``torch.func.functional_call``.
        retreats: how many steps were taken back.

    Raises:
        ValueError: if no parameter has such a name.
    """

    def __init__(self, stage: nn.Module, prefixes: Sequence[str], rate: float) -> None:
        self.values: dict[str, Tensor] = {}
        for name, parameter in stage.named_parameters():
            # What closes the stage is no part of the network, and its λ follows the noise.
            tuned = not name.startswith("consistency.") and (not prefixes or name.startswith(tuple(prefixes)))
            self.values[name] = parameter.detach().float().clone().requires_grad_(tuned)
        self._tuned = [value for value in self.values.values() if value.requires_grad]
        if not self._tuned:
            raise ValueError(f"parameters must name parameters of stage 1, got {list(prefixes)}")
        self.retreats = 0
        self._rate = rate
        self._before: list[Tensor] = []
        self._optimizer = torch.optim.Adam(self._tuned, lr=rate)

    def shorten(self, share: float) -> None:
        """Make further steps shorter; Adam forgets those before."""
        self._rate *= share
        self._optimizer = torch.optim.Adam(self._tuned, lr=self._rate)

    def step(self, loss: Tensor) -> None:
        """One step down a loss of :attr:`values`."""
        self._before = [value.detach().clone() for value in self._tuned]
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def retreat(self, share: float) -> None:
        """Take the last step back, and make further ones shorter."""
        with torch.no_grad():
            for value, before in zip(self._tuned, self._before, strict=True):
                value.copy_(before)
        self.retreats += 1
        self.shorten(share)
