# SPDX-License-Identifier: Apache-2.0
"""What one sees while a stage trains: speed, waiting, memory, the time that is left; and when it is enough."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, Timer

from progressive_cascade.training.engine import StageObjective

MAX_WAIT_SHARE = 0.05
"""Share of the time that may be spent waiting for the next batch before the run says what to change."""
_GIGABYTE = 1e9


def peak_memory() -> float:
    """The most memory this process has held so far [bytes]: of its GPU where it uses one; NaN where unknown."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(largest) * (1 if sys.platform == "darwin" else 1024)


class Speed:
    """Handler: puts ``samples_per_second``, ``wait_share`` and ``memory_gb`` among the trainer's metrics.

    Each is of the epoch so far; the samples are those of all processes, the wait is the time until a batch is there. An
    epoch that waits for more than :data:`MAX_WAIT_SHARE` of its time says so, and what to change.
    """

    def __init__(self) -> None:
        self._whole, self._wait = Timer(), Timer()
        self._samples = 0

    def attach(self, engine: Engine) -> None:
        """Measure from the start of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        self._whole.attach(engine, start=Events.EPOCH_STARTED)
        self._wait.attach(
            engine,
            start=Events.EPOCH_STARTED,
            resume=Events.GET_BATCH_STARTED,
            pause=Events.GET_BATCH_COMPLETED,
        )
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        # Before the validation, whose time is none of the loader's.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)

    def _start(self) -> None:
        self._samples = 0

    def _measure(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        size = len(batch["label"]) if isinstance(batch, Mapping) and "label" in batch else 1
        self._samples += size * idist.get_world_size()
        seconds = max(self._whole.value(), 1e-9)
        metrics = engine.state.metrics
        metrics["samples_per_second"] = self._samples / seconds
        metrics["wait_share"] = min(1.0, self._wait.value() / seconds)
        metrics["memory_gb"] = peak_memory() / _GIGABYTE

    def _tell(self, engine: Engine) -> None:
        share = engine.state.metrics.get("wait_share", 0.0)
        if share <= MAX_WAIT_SHARE or idist.get_rank() != 0:
            return
        loader: Any = engine.state.dataloader
        workers, cores = getattr(loader, "num_workers", 0), os.cpu_count() or 1
        if engine.state.iteration <= len(loader):
            hint = "cases are read for the first time and kept in cache_dir; later passes are faster"
        elif workers < cores:
            hint = f"raise num_workers ({workers} now, {cores} cores), or put cache_dir on a local disk"
        else:
            hint = f"all {cores} cores read already: put cache_dir on a faster disk, or take fewer processes"
        print(f"epoch {engine.state.epoch} waited for its cases {share:.0%} of the time: {hint}", flush=True)


class Progress:
    """Handler: one line that says where the run is: loss and terms, samples/s, wait, memory, the time that is left.

    On a terminal the line is written over; elsewhere, as in a batch system's log, there is one after every epoch and
    every ``seconds``.

    Args:
        label: what it begins with.
        objective: whose terms are shown.
        seconds: between lines where there is no terminal.
    """

    def __init__(self, label: str, objective: StageObjective, seconds: float = 60.0) -> None:
        self.label = label
        self.objective = objective
        self.terminal = sys.stdout.isatty()
        self.seconds = 0.5 if self.terminal else seconds
        self._started = self._told = 0.0
        self._first_step = 0

    def attach(self, engine: Engine) -> None:
        """Attach it last: what it shows is of the step, and of the epoch's validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)

    def line(self, engine: Engine) -> str:
        """What is shown."""
        state, metrics = engine.state, engine.state.metrics
        length, epochs = state.epoch_length or 1, state.max_epochs or 1
        left = epochs * length - state.iteration
        spent = (time.monotonic() - self._started) / max(1, state.iteration - self._first_step)
        terms = dict(self.objective.terms)
        loss = terms.pop("loss", float("nan"))
        shown = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        step = (state.iteration - 1) % length + 1
        return (
            f"{self.label}: epoch {state.epoch}/{epochs} step {step}/{length} | loss {loss:.4f} ({shown}) | "
            f"{metrics.get('samples_per_second', 0):.3g} samples/s, waiting {metrics.get('wait_share', 0):.0%}, "
            f"{metrics.get('memory_gb', 0):.1f} GB | {timedelta(seconds=round(left * spent))} left"
        )

    def _start(self, engine: Engine) -> None:
        self._started = self._told = time.monotonic()
        self._first_step = engine.state.iteration

    def _after_step(self, engine: Engine) -> None:
        if time.monotonic() - self._told >= self.seconds:
            self._tell(engine, end="" if self.terminal else "\n")

    def _after_epoch(self, engine: Engine) -> None:
        self._tell(engine, end="\n")

    def _tell(self, engine: Engine, end: str) -> None:
        self._told = time.monotonic()
        begin = "\r\x1b[K" if self.terminal else ""
        print(f"{begin}{self.line(engine)}", end=end, flush=True)


class EarlyStop:
    """Handler: ends a run whose validation has not become better several times in a row, by ignite's EarlyStopping.

    Args:
        validator: its engine; the key metric is the score.
        patience: so many validations; None: the run goes on to its last epoch.
    """

    def __init__(self, validator: Engine, patience: int | None = None) -> None:
        self.validator = validator
        self.patience = patience
        self.handler: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Look after every validation, and, after what resumes a run, whether it had ended already."""
        if self.patience is None:
            return
        self.handler = EarlyStopping(self.patience, self._score, engine)
        self.handler.logger.disabled = True
        self.validator.add_event_handler(Events.COMPLETED, self.handler)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)
        engine.add_event_handler(Events.STARTED, self._stay_ended)

    @property
    def counter(self) -> int:
        """Validations in a row that were no better."""
        return 0 if self.handler is None else self.handler.counter

    def state_dict(self) -> dict[str, Any]:
        """The counter and the best score; empty without patience."""
        return {} if self.handler is None else {"counter": self.counter, "best_score": self.handler.best_score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting."""
        if self.handler is not None and state:
            self.handler.counter, self.handler.best_score = state["counter"], state["best_score"]

    def _score(self, engine: Any) -> float:
        return float(engine.state.metrics[engine.state.key_metric_name])

    def _tell(self, engine: Engine) -> None:
        if self.patience is not None and self.counter >= self.patience and idist.get_rank() == 0:
            print(f"stopped after epoch {engine.state.epoch}: no better for {self.counter} validations", flush=True)

    def _stay_ended(self, engine: Engine) -> None:
        if self.patience is not None and self.counter >= self.patience:
            self._tell(engine)
            engine.terminate()
