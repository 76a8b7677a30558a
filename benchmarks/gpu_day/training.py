# SPDX-License-Identifier: Apache-2.0
"""Steps of a stage's training by its own config: how fast, how much memory, what share is simulation, who waits."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from gpu_day.machine import busy, peak_gib, reset_peak, synchronize
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.paths import bundle_root
from progressive_cascade.phantom import generate_phantom

# What a step of training runs; what prints, writes files or validates is left out.
_HANDLERS = ("clip", "schedule", "average")
_WARM_UP, _SPLIT = 3, 5


def measure_steps(stage: int, device: str, *, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one batch of phantoms again and again, each time with new geometries and noise.

    Args:
        stage: 1, 2 or 3.
        device: ``cuda`` or ``cpu``.
        steps: timed together.
        settings: overrides of the stage's config.

    Returns:
        Steps and samples per second, peak memory, the share of the step that is simulation, and the places at which
        a step waits for the device.
    """
    parser = _parser(stage, device, settings)
    trainer = parser.get_parsed_content("train#trainer")
    watch = _Watch(trainer, device, steps)
    batch = _batch(parser.get_parsed_content("batch_size"), parser.get_parsed_content("simulation_grid"), device)
    trainer.data_loader = [batch] * watch.total
    trainer.state.epoch_length = watch.total
    watch.attach()
    trainer.run()
    size = len(batch["label"])
    row = {"stage": stage, "batch_size": size, "amp": parser.get_parsed_content("amp"), **watch.result()}
    trainer.data_loader = [batch] * 2
    return row | {"samples_per_s": size * row["steps_per_s"]} | _busy(trainer, device)


def _parser(stage: int, device: str, settings: dict[str, Any]) -> ConfigParser:
    os.chdir(bundle_root())
    parser = ConfigParser()
    parser.read_config(f"configs/stage{stage}.json")
    own = {"device": f"$torch.device('{device}')", "epochs": 1, "num_workers": 0, "predecessor": None}
    parser.update({**own, **settings})
    parser["train"]["handlers"] = [f"@train#named_handlers#{name}" for name in _HANDLERS]
    return parser


def _batch(size: int, grid: int, device: str) -> dict[str, torch.Tensor]:
    """A phantom, mirrored and shifted into as many as are wanted, on the host as a loader hands them over."""
    phantom = generate_phantom(0, shape=(grid, grid, grid), spacing=VOLUME_SHAPE[0] * VOXEL_SIZE / grid)
    hu = torch.from_numpy(phantom.hu).float()[None]
    label = torch.stack([hu.roll(2 * k, 3).flip(1) if k % 2 else hu.roll(2 * k, 3) for k in range(size)])
    batch = {"label": label, "valid": torch.ones_like(label)}
    return {name: values.pin_memory() if device == "cuda" else values for name, values in batch.items()}


def _busy(trainer: Engine, device: str) -> dict[str, Any]:
    def two_steps() -> None:
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.state.epoch_length = 2
        trainer.run()

    return {"busy_in_two_steps": busy(two_steps, device)} if device == "cuda" else {}


class _Watch:
    """Times steps together first, then simulation and step apart with waits in between, then one with waits told."""

    def __init__(self, trainer: Any, device: str, steps: int) -> None:
        self.trainer, self.device, self.steps = trainer, device, steps
        self.total = _WARM_UP + steps + _SPLIT + (1 if device == "cuda" else 0)
        self.simulating = self.stepping = self.start = self.step_start = self.together = 0.0
        self.peak: float | None = None
        self.prepare = trainer.prepare_batch
        self.catcher: Any = None
        self.caught: list[Any] = []
        self.waits: list[str] = []

    def attach(self) -> None:
        """Stand around every step and every simulation."""
        self.trainer.prepare_batch = self._simulate
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self._started)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._completed)

    @property
    def _is_split(self) -> bool:
        return _WARM_UP + self.steps < self.trainer.state.iteration <= _WARM_UP + self.steps + _SPLIT

    def _simulate(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_split:
            return self.prepare(*args, **kwargs)
        start = time.perf_counter()
        out = self.prepare(*args, **kwargs)
        synchronize(self.device)
        self.simulating += time.perf_counter() - start
        return out

    def _started(self, engine: Engine) -> None:
        iteration = engine.state.iteration
        if iteration == _WARM_UP + 1:
            synchronize(self.device)
            reset_peak(self.device)
            self.start = time.perf_counter()
        if self._is_split:
            synchronize(self.device)
            self.step_start = time.perf_counter()
        if iteration == _WARM_UP + self.steps + _SPLIT + 1 and self.device == "cuda":
            self.catcher = warnings.catch_warnings(record=True)
            self.caught = self.catcher.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def _completed(self, engine: Engine) -> None:
        iteration = engine.state.iteration
        if iteration == _WARM_UP + self.steps:
            synchronize(self.device)
            self.together = time.perf_counter() - self.start
            self.peak = peak_gib(self.device)
        if self._is_split:
            synchronize(self.device)
            self.stepping += time.perf_counter() - self.step_start
        if self.catcher is not None:
            torch.cuda.set_sync_debug_mode("default")
            self.catcher.__exit__(None, None, None)
            self.catcher = None
            told = [warning for warning in self.caught if "synchron" in str(warning.message)]
            self.waits = [f"{Path(warning.filename).name}:{warning.lineno}" for warning in told]

    def result(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "steps_per_s": self.steps / self.together,
            "step_ms": 1e3 * self.together / self.steps,
            "peak_gib": self.peak,
            "simulation_share": self.simulating / self.stepping,
            "waits_in_a_step": self.waits if self.device == "cuda" else None,
        }
