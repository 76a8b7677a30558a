# SPDX-License-Identifier: Apache-2.0
"""What a run was like, epoch by epoch: kept with its state, and told in a page beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor

from progressive_cascade.training.engine import StageObjective
from progressive_cascade.training.kept import write_whole
from progressive_cascade.training.pictures import AXES, slices, to_bytes
from progressive_cascade.training.resume import ResumableCheckpoint
from progressive_cascade.training.summary import build_summary

_PICTURE_SIDE = 256
_MEASURED = ("samples_per_second", "wait_share", "memory_gb")


class History:
    """Handler: the terms' means, the score, speed and memory of every epoch, and pictures of one validation case.

    Attach it after the validation and before what keeps the run's state.

    Args:
        objective: whose terms.
        validator: the validation's engine.
    """

    def __init__(self, objective: StageObjective, validator: Engine) -> None:
        self.objective = objective
        self.validator = validator
        self.epochs: list[dict[str, float]] = []
        self.pictures: dict[str, Tensor] = {}
        self.pictures_epoch = 0
        self._sums: dict[str, float] = {}
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        """Follow the training and its validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close)
        self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    def state_dict(self) -> dict[str, Any]:
        """The epochs and the pictures."""
        return {"epochs": self.epochs, "pictures": self.pictures, "pictures_epoch": self.pictures_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.epochs, self.pictures = list(state["epochs"]), dict(state["pictures"])
        self.pictures_epoch = state["pictures_epoch"]

    def _clear(self) -> None:
        self._sums, self._steps = {}, 0

    def _add(self, engine: Engine) -> None:
        self._steps += 1
        for name, value in self.objective.terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _close(self, engine: Engine) -> None:
        row = {name: value / self._steps for name, value in self._sums.items()}
        row |= {name: float(engine.state.metrics[name]) for name in _MEASURED if name in engine.state.metrics}
        state: Any = self.validator.state
        if state.metrics and state.key_metric_name in state.metrics and state.epoch == engine.state.epoch:
            row["score"] = float(state.metrics[state.key_metric_name])
        self.epochs.append({**row, "epoch": engine.state.epoch, "step": engine.state.iteration})

    def _look(self, engine: Engine) -> None:
        """The validation's first case: radiographs, truth and reconstruction, in grey values."""
        if engine.state.iteration != 1:
            return
        output: Any = engine.state.output
        targets = output["label"]
        pictures = {}
        for name, view in zip(("PA", "lateral"), targets["image"][0].detach(), strict=False):
            step = max(1, view.shape[0] // _PICTURE_SIDE)
            # More matter is lighter, as on film.
            pictures[f"radiograph {name}"] = to_bytes(view[::step, ::step], high=float(view.max()))
        for name, volume in (("truth", targets["label"][0, 0]), ("reconstruction", output["pred"][0, 0])):
            for axis, picture in zip(AXES, slices(volume.detach()), strict=True):
                pictures[f"{name} {axis}"] = to_bytes(picture)
        self.pictures, self.pictures_epoch = pictures, engine.state.epoch


class Summary:
    """Handler: writes ``stageN_summary.html`` beside the weights, anew after every epoch.

    Args:
        path: of the page.
        title: its heading.
        history: what it tells.
        checkpoint: which knows the run's time and its identity.
    """

    def __init__(self, path: str | Path, title: str, history: History, checkpoint: ResumableCheckpoint) -> None:
        self.path = Path(path)
        self.title = title
        self.history = history
        self.checkpoint = checkpoint

    def attach(self, engine: Engine) -> None:
        """Write when an epoch's state is kept; attach it after that."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        identity = self.checkpoint.identity
        page = build_summary(
            self.title,
            self.history.epochs,
            pictures=self.history.pictures,
            pictures_epoch=self.history.pictures_epoch,
            seconds=self.checkpoint.seconds,
            versions={} if identity is None else identity.parts["versions"],
            hashes={} if identity is None else identity.hashes(),
        )
        write_whole(page.encode(), self.path)
