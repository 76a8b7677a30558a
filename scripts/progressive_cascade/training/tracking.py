# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: a run's numbers in MLflow's or Weights & Biases' own files, on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers.mlflow_handler import MLFlowHandler

from progressive_cascade.errors import UserError
from progressive_cascade.training.engine import StageObjective

TOOLS = ("mlflow", "wandb")


def check_tracking(tool: str | None) -> None:
    """Refuses a tool that is unknown or not installed.

    Raises:
        UserError: naming it, and how to install it.
    """
    if tool is None:
        return
    if tool not in TOOLS:
        raise UserError(f"tracker must be one of {', '.join(TOOLS)} or null, got {tool!r}")
    if find_spec(tool) is None:
        raise UserError(f"tracker must be installed, got {tool}: pip install 'progressive-cascade[tracking]'")


class Tracking:
    """Handler: sends the loss and its terms after every step, and the metrics after every epoch, to a tracker.

    Nothing leaves the machine: MLflow writes ``mlruns.db`` in the folder, Weights & Biases ``wandb``, offline, without
    the command line and what it printed.

    Args:
        tool: ``mlflow``, ``wandb``, or None for none.
        folder: where it writes.
        name: of the run.
        objective: whose terms are sent.
        validator: whose metrics are sent, too.
    """

    def __init__(
        self, tool: str | None, folder: str | Path, *, name: str, objective: StageObjective, validator: Engine
    ) -> None:
        check_tracking(tool)
        self.tool = tool
        self.folder = Path(folder)
        self.name = name
        self.objective = objective
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Start the tracker when the run starts."""
        if self.tool == "mlflow":
            self._attach_mlflow(engine)
        elif self.tool == "wandb":
            engine.add_event_handler(Events.STARTED, self._attach_wandb)

    def _attach_mlflow(self, engine: Engine) -> None:
        for each in (engine, self.validator):
            handler = MLFlowHandler(
                tracking_uri=f"sqlite:///{(self.folder / 'mlruns.db').resolve()}",
                artifact_location=(self.folder / "mlruns").resolve().as_uri(),
                experiment_name="progressive-cascade",
                run_name=self.name,
                iteration_log=each is engine,
                output_transform=lambda _: self.objective.terms,
                global_epoch_transform=lambda _: engine.state.epoch,
                tag_name="loss",
                close_on_complete=each is engine,
            )
            handler.attach(each)

    def _attach_wandb(self, engine: Engine) -> None:
        import wandb  # pyright: ignore[reportMissingImports]
        from ignite.handlers.wandb_logger import WandBLogger

        # An offline run is meant to be sent some day: nothing of the command line, its output or the machine is kept.
        settings = wandb.Settings(
            x_disable_meta=True,
            x_disable_machine_info=True,
            console="off",
            disable_git=True,
            save_code=False,
            quiet=True,
        )
        place = {"dir": str(self.folder), "mode": "offline", "resume": "allow"}
        logger: Any = WandBLogger(project="progressive-cascade", name=self.name, settings=settings, **place)

        def send(prefix: str, values: Any) -> None:
            logger.log({f"{prefix}/{name}": value for name, value in values.items()}, step=engine.state.iteration)

        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: send("train", self.objective.terms))
        self.validator.add_event_handler(Events.COMPLETED, lambda: send("validate", self.validator.state.metrics))
        engine.add_event_handler(Events.COMPLETED, logger.close)
