# SPDX-License-Identifier: Apache-2.0
"""The small helpers' trainings in pieces: what was interrupted goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade.training.kept import load_state, save_state


class Progress:
    """Keeps the state of a training in a file beside the weights it makes.

    Args:
        path: of the file; None: nothing is kept.
        parts: what has a state, by name: modules, optimizers, schedules, random generators of torch and numpy.
        settings: numbers and words on which the training depends; with others it begins anew.
    """

    def __init__(self, path: Path | None, parts: Mapping[str, Any], settings: Mapping[str, int | float | str]) -> None:
        self._path, self._parts, self._settings = path, dict(parts), dict(settings)

    @staticmethod
    def beside(output: Path) -> Path:
        """Where the state of a training is kept that makes this file."""
        return output.with_name(f"{output.stem}_progress.pt")

    def resume(self) -> int:
        """Brings all parts to where they were; the step that was reached, 0 where there is nothing to go on with.

        Raises:
            RunError: if the file is damaged.
        """
        if self._path is None or not self._path.is_file():
            return 0
        state = load_state(self._path)
        if state["settings"] != self._settings:
            print(f"{self._path.name} is of other settings: begun anew", flush=True)
            return 0
        for name, part in self._parts.items():
            kept = state["parts"][name]
            if isinstance(part, torch.Generator):
                part.set_state(kept)
            elif isinstance(part, np.random.Generator):
                part.bit_generator.state = kept
            else:
                part.load_state_dict(kept)
        return int(state["step"])

    def keep(self, step: int) -> None:
        """Writes the state after a step, whole or not at all.

        Raises:
            RunError: where it cannot be written.
        """
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            parts = {name: _state(part) for name, part in self._parts.items()}
            save_state({"step": step, "settings": self._settings, "parts": parts}, self._path)

    def end(self) -> None:
        """Removes the file: the weights are written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    return part.state_dict()
