# SPDX-License-Identifier: Apache-2.0
"""What a run needs to go on after any interruption, to the bit: kept while it trains, and taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.training.identity import RunIdentity
from progressive_cascade.training.kept import list_states, load_state, save_state, state_path, whole_states
from progressive_cascade.training.signals import stops
from progressive_cascade.training.stream import SampleStream

_ENGINE_KEYS = ("epoch", "iteration", "epoch_length")
_WAY_OUT = "--force-resume (force_resume: true) goes on all the same, --resume no starts afresh"


class ResumableCheckpoint:
    """Handler: keeps what a run needs to go on after an interruption, apart from the weights that are shipped.

    After every epoch, every so many minutes, and when a signal asks for it, one file is written: the objects, epoch and
    step, the run's identity. Its name is temporary until it is on the disk. No random state is kept: all that is random
    follows from the seed and the step (:mod:`.stream`). Of several processes the first one writes, and all load.

    A resumed run takes the newest file that is whole, and refuses one of other settings, data or code.

    Args:
        folder: of the files, ``step_N.pt``.
        objects: by name, what has ``state_dict`` and ``load_state_dict``; None is passed over.
        stream: the order of the samples, set to the step at which the run goes on.
        identity: of the run; None compares nothing.
        resume: True: go on, from a file that must exist; "auto": go on where there is one; False: start afresh, and
            remove what an earlier run left as soon as the first own file is whole.
        force: go on although settings, data or code have changed.
        minutes: between files within an epoch.
        keep: how many files to keep.

    Raises:
        ValueError: if ``keep`` is below 1 or ``minutes`` not positive.
    """

    def __init__(
        self,
        folder: str | Path,
        objects: Mapping[str, Any],
        *,
        stream: SampleStream | None = None,
        identity: RunIdentity | None = None,
        resume: bool | str = False,
        force: bool = False,
        minutes: float = 10.0,
        keep: int = 2,
    ) -> None:
        if keep < 1 or not minutes > 0:
            raise ValueError(f"keep must be at least 1 and minutes positive, got {keep} and {minutes}")
        self.folder = Path(folder)
        self.objects = {name: value for name, value in objects.items() if value is not None}
        self.stream = stream
        self.identity = identity
        self.resume = resume
        self.force = force
        self.minutes = minutes
        self.keep = keep
        self._own: list[Path] = []
        self._last_save = self._start = time.monotonic()
        self._seconds_before = 0.0
        self._asked = 0

    def attach(self, engine: Engine) -> None:
        """Load when the run starts; attach it after whatever changes the objects in a step or an epoch."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.after_epoch)

    @property
    def seconds(self) -> float:
        """Time spent training, over all attempts [s]."""
        return self._seconds_before + time.monotonic() - self._start

    def start(self, engine: Engine) -> None:
        """Go on from the newest whole file, or from nothing.

        Raises:
            UserError: if there is no file and there must be one, or it belongs to another run.
            RunError: if there are files and none is whole.
        """
        self._last_save = self._start = time.monotonic()
        engine.state.iteration = engine.state.epoch = 0
        # The first process decides for all, and is the only one to complain.
        name = self._choose(engine) if idist.get_rank() == 0 else ""
        if idist.get_world_size() > 1:
            name = str(idist.broadcast(name, safe_mode=True))
        if name:
            self._load(engine, Path(name))
        if self.stream is not None:
            self.stream.step = engine.state.iteration

    def after_step(self, engine: Engine) -> None:
        """Save where it is time or asked for; where the epoch ends here, its validation comes first."""
        self._listen(engine)
        if engine.state.iteration % (engine.state.epoch_length or 1) == 0:
            return
        if self._asked or time.monotonic() - self._last_save >= 60 * self.minutes:
            self.save(engine)
        self._answer(engine)

    def after_epoch(self, engine: Engine) -> None:
        """Save; end where a signal asked for it."""
        self.save(engine)
        self._listen(engine)
        self._answer(engine)

    def save(self, engine: Engine) -> Path | None:
        """Write the file, then remove those that are no longer kept.

        Returns:
            The file; None in other processes than the first.

        Raises:
            RunError: where it cannot be written.
        """
        self._last_save = time.monotonic()
        if idist.get_rank() != 0:
            return None
        state = {name: _bare(value).state_dict() for name, value in self._objects(engine).items()}
        iteration, length = engine.state.iteration, engine.state.epoch_length or 1
        about = {"iteration": iteration, "epoch": iteration // length, "epoch_length": length, "seconds": self.seconds}
        if self.identity is not None:
            about["identity"] = self.identity.state_dict()
        path = state_path(self.folder, iteration)
        save_state({**state, **about}, path)
        self._own = [*(own for own in self._own if own != path), path][-self.keep :]
        for other in list_states(self.folder):
            if other not in self._own:
                other.unlink(missing_ok=True)
        return path

    def _objects(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        return {**self.objects, **({} if scaler is None else {"scaler": scaler})}

    def _choose(self, engine: Engine) -> str:
        """The file to go on from, or nothing; what is to be known about it is told."""
        found = list_states(self.folder) if self.resume else []
        if not found:
            if self.resume is True:
                raise UserError(f"resume must find a checkpoint in {self.folder}, got none; --resume no starts afresh")
            return ""
        for path, state, damaged in whole_states(self.folder):
            for line in damaged:
                print(f"{line}: passed over for {path.name}", flush=True)
            self._check(path, state)
            done = f"{state['epoch']} epochs, {state['iteration']} steps, {state['seconds'] / 3600:.1f} h"
            if engine.state.max_epochs is not None and state["epoch"] >= engine.state.max_epochs:
                print(f"{path.parent}: this run is finished ({done}); --resume no trains anew", flush=True)
            else:
                print(f"going on from {path}: {done}", flush=True)
            return str(path)
        raise RunError(f"{self.folder} holds {len(found)} checkpoints, all damaged; --resume no starts afresh")

    def _check(self, path: Path, state: Mapping[str, Any]) -> None:
        missing = sorted({*self.objects, *_ENGINE_KEYS} - set(state))
        if missing:
            raise UserError(f"{path} must hold {missing}; it is no checkpoint of this workflow")
        if self.identity is None:
            return
        changed = self.identity.differences(state.get("identity", {}))
        versions = changed.pop("versions", [])
        if versions:
            print(f"other versions than at {path.name}, results may differ in the last bits: {'; '.join(versions)}")
        lines = [f"{part}: {line}" for part, lines in changed.items() for line in lines]
        if lines and not self.force:
            raise UserError(f"{path} belongs to another run; {'; '.join(lines)}; {_WAY_OUT}")
        for line in lines:
            print(f"resumed although changed: {line}", flush=True)

    def _load(self, engine: Engine, path: Path) -> None:
        state = load_state(path)
        for name, value in self._objects(engine).items():
            if name not in state:
                continue
            try:
                _bare(value).load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{path} must hold this {name}, got another: {reason}") from error
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if engine.state.epoch_length != state["epoch_length"]:
            # Epochs of another length, after --force-resume: steps count.
            engine.state.epoch = state["iteration"] // (engine.state.epoch_length or 1)
        self._seconds_before = state["seconds"]
        self._own = [path]

    def _listen(self, engine: Engine) -> None:
        requests = getattr(engine, "requests", None)
        asked = 0 if requests is None else requests.take()
        self._asked = asked if stops(asked) or not self._asked else self._asked

    def _answer(self, engine: Engine) -> None:
        asked, self._asked = self._asked, 0
        if stops(asked):
            if idist.get_rank() == 0:
                print(f"stopped after step {engine.state.iteration}; the same command goes on from there", flush=True)
            engine.stopped_by = asked  # type: ignore[attr-defined]
            engine.terminate()


def _bare(value: Any) -> Any:
    """A network without the wrapper for distributed training, so that any number of processes goes on with it."""
    return getattr(value, "module", value)
