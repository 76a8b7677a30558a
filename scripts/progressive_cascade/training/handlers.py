# SPDX-License-Identifier: Apache-2.0
"""Handlers of the trainer: a dictionary of them by name, the seed of each step, gradients that are kept finite."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from progressive_cascade.errors import RunError
from progressive_cascade.training.stream import LOSS, derive


class NamedHandlers:
    """Handler: attaches a dictionary of handlers in its order.

    Args:
        handlers: by name.
        first_process: names of those that only the first of several processes attaches: they print or write.
    """

    def __init__(self, handlers: Mapping[str, Any], first_process: Collection[str] = ()) -> None:
        self.handlers = dict(handlers)
        self.first_process = frozenset(first_process)

    def attach(self, engine: Engine) -> None:
        """Attach all that this process needs."""
        is_first = idist.get_rank() == 0
        for name, handler in self.handlers.items():
            if is_first or name not in self.first_process:
                handler.attach(engine)


class SeedSteps:
    """Handler: sets python's, numpy's and torch's random state before every step, from the seed and the step's number.

    What a step draws from them, such as the slices of the perceptual loss, is then the same in every process, and the
    same after an interruption: no random state has to be kept.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Seed when a step starts."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed."""
        drawn = int(derive(self.seed, LOSS, engine.state.iteration).integers(2**32))
        random.seed(drawn)
        np.random.seed(drawn)  # noqa: NPY002 - what third parties draw from
        torch.manual_seed(drawn)


class ClipGradients:
    """Handler: limits the gradient's norm, drops steps that are not finite, and stops the run after several in a row.

    A step with a non-finite loss or gradient, in any process, changes neither parameters nor the optimizer's state.
    Their number so far stands among the trainer's metrics as ``bad_steps``, where the log and tensorboard find it.

    Args:
        network: whose gradients.
        max_norm: largest norm.
        max_bad_steps: so many in a row end the run.

    Raises:
        ValueError: if ``max_bad_steps`` is not positive.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0, max_bad_steps: int = 10) -> None:
        if max_bad_steps < 1:
            raise ValueError(f"max_bad_steps must be positive, got {max_bad_steps}")
        self.network = network
        self.max_norm = max_norm
        self.max_bad_steps = max_bad_steps
        self.bad_steps = 0
        self.bad_steps_in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return {"bad_steps": self.bad_steps, "bad_steps_in_a_row": self.bad_steps_in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting."""
        self.bad_steps, self.bad_steps_in_a_row = state["bad_steps"], state["bad_steps_in_a_row"]

    def attach(self, engine: Engine) -> None:
        """Run after every backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip, or drop the step.

        Raises:
            RunError: after ``max_bad_steps`` non-finite steps in a row.
        """
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        output: Any = engine.state.output
        finite = torch.isfinite(norm) & torch.isfinite(output[Keys.LOSS].detach())
        # Gradients are shared by all processes, losses are not; they must agree, or their networks would part.
        bad = bool(idist.all_reduce(float(not finite)))
        self.bad_steps += bad
        self.bad_steps_in_a_row = self.bad_steps_in_a_row + 1 if bad else 0
        engine.state.metrics["bad_steps"] = self.bad_steps
        if not bad:
            return
        # An optimizer passes over parameters without a gradient.
        for parameter in self.network.parameters():
            parameter.grad = None
        iteration = engine.state.iteration
        if self.bad_steps_in_a_row >= self.max_bad_steps:
            raise RunError(
                f"the loss must be finite, got {self.bad_steps_in_a_row} non-finite steps in a row, the last at "
                f"iteration {iteration}; lower learning_rate, set amp to false, or look for NaN in the data"
            )
        engine.logger.warning("iteration %d dropped: its loss or gradient is not finite", iteration)
