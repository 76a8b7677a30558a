# SPDX-License-Identifier: Apache-2.0
"""The trainer of a stage: MONAI's, that ends as a signal asks, and tells in one line what broke under it."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers.stats_handler import StatsHandler

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.training.signals import SignalRequests

_RESUME = "the same command goes on from the last checkpoint"
_SHARED_MEMORY = re.compile(r"bus error|shared memory|shm", re.IGNORECASE)
_NO_SHARED_MEMORY = re.compile(r"unable to \w+ shared memory", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))?,? ?([\d, ]+)\)(?: is killed by signal: (.*?)\.| exited)")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|socket|NCCL", re.IGNORECASE)


class StageTrainer(SupervisedTrainer):
    """``SupervisedTrainer`` that listens to signals while it runs; the arguments are the same.

    Attributes:
        requests: what signals asked for; :class:`~.resume.ResumableCheckpoint` answers them.
        stopped_by: the signal that ended the run, 0 for none.
    """

    requests: SignalRequests | None = None
    stopped_by: int = 0

    def run(self) -> None:  # type: ignore[override]
        """Train to the end, or until a signal.

        Raises:
            SystemExit: with 128 + the number of the signal that ended it.
            RunError: for what broke: memory, a worker, a file, another process.
        """
        self.requests, self.stopped_by = SignalRequests(), 0
        self.requests.install()
        try:
            super().run()
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            told = self._explain(error)
            if told is None:
                raise
            raise RunError(told) from error
        finally:
            self.requests.remove()
        if self.stopped_by:
            sys.exit(128 + self.stopped_by)

    def try_step(self, batch: Mapping[str, Any]) -> float:
        """Simulates, predicts and differentiates a batch, without a step of the optimizer; how long it took [s].

        On a GPU the second of two is timed: the first one loads and compiles.

        Args:
            batch: of the loader.

        Raises:
            RunError: if it does not fit into the memory.
        """
        self.state.batch = batch  # type: ignore[assignment]
        on_gpu = torch.device(self.state.device).type == "cuda"
        begun = time.perf_counter()
        for _ in range(2 if on_gpu else 1):
            begun = time.perf_counter()
            if not self._fits(batch, len(batch["label"])):
                raise RunError(self._out_of_memory())
            if on_gpu:
                torch.cuda.synchronize()
        return time.perf_counter() - begun

    def _explain(self, error: Exception) -> str | None:
        """One line for what breaks under a run; None for what is a fault of the program."""
        text = str(error)
        if (worker := _WORKER.search(text)) is not None:
            return _explain_worker(worker, text)
        if isinstance(error, RuntimeError) and _NO_SHARED_MEMORY.search(text):
            return _tell_of_shared_memory("a loader's worker")
        if isinstance(error, RunError):
            # A loader's worker sends the traceback along; what it says itself comes last.
            return text.strip().splitlines()[-1].partition("RunError: ")[2] or text
        if isinstance(error, (ConnectionError, EOFError)):
            # What it had sent lies in memory that only it could hand over.
            return _tell_of_worker("a loader's worker ended unexpectedly")
        if isinstance(error, OSError) and error.strerror:
            return f"{error.filename or 'a file'}: {error.strerror}; {_RESUME}"
        if _is_memory(error):
            # The error's frames, and the engine's output, hold what the step had computed.
            traceback.clear_frames(error.__traceback__)
            self.state.output = None
            return self._out_of_memory()
        if not isinstance(error, RuntimeError):
            return None
        if idist.get_world_size() > 1 and _LOST.search(text):
            reason = " ".join(text.split())[:200]
            return (
                f"process {idist.get_rank()} lost the others ({reason}); the one that ended first says why; {_RESUME}"
            )
        return None

    def _out_of_memory(self) -> str:
        """Tries smaller batches on the spot: forward and backward, without a step."""
        batch: Any = self.state.batch
        size = len(batch["label"]) if isinstance(batch, Mapping) and "label" in batch else 0
        told = f"out of memory at step {self.state.iteration} with batch_size {size}"
        fits, tried = 0, size // 2
        while tried and not fits and idist.get_world_size() == 1:
            fits = tried if self._fits(batch, tried) else 0
            tried //= 2
        if fits:
            return f"{told}; {fits} fits: --set batch_size={fits}, --force-resume to go on with it"
        return f"{told}; try --preset low_memory, or num_workers 0 where the machine's own memory is full"

    def _fits(self, batch: Mapping[str, Any], size: int) -> bool:
        self.optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        part = {key: value[:size] for key, value in batch.items()}
        try:
            image, targets, args, kwargs = self.prepare_batch(part, self.state.device, self.non_blocking)
            prediction = self.inferer(image, self.network, *args, **kwargs)
            self.loss_function(prediction, targets).backward()
        except (RuntimeError, MemoryError) as error:
            if not _is_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            return False
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return True


class RunLog(StatsHandler):
    """MONAI's ``StatsHandler`` that leaves it to the trainer to tell what broke: no traceback in the log."""

    def exception_raised(self, _engine: Engine, e: Exception) -> None:
        """Pass it on."""
        raise e


class SkippedCases:
    """Handler: counts the cases that were passed over because they cannot be read, and names them at the end.

    Args:
        limit: so many may be skipped.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.seen: dict[str, None] = {}

    def attach(self, engine: Engine) -> None:
        """Look at every batch."""
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.look)
        engine.add_event_handler(Events.COMPLETED, self.tell)

    def look(self, engine: Engine) -> None:
        """Note what the batch had to do without.

        Raises:
            RunError: if there are more than the limit.
        """
        batch: Any = engine.state.batch
        for lines in batch.get("skipped", []) if isinstance(batch, Mapping) else []:
            for line in filter(None, lines.split("\n")):
                if line not in self.seen:
                    self.seen[line] = None
                    print(f"skipped: {line}", flush=True)
        if len(self.seen) > self.limit:
            raise RunError(f"at most {self.limit} cases may be skipped (skip_bad), got {len(self.seen)}: {_RESUME}")

    def tell(self, engine: Engine) -> None:
        """Name them."""
        if self.seen:
            print(f"{len(self.seen)} cases were skipped: " + "; ".join(self.seen), flush=True)


def _is_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def _explain_worker(worker: re.Match[str], text: str) -> str:
    pid, name = worker.group(1), worker.group(2)
    if _SHARED_MEMORY.search(text.partition("killed by signal")[2]):
        return _tell_of_shared_memory(f"a loader's worker ({pid})")
    how = f"was killed by signal {name}" if name else "ended unexpectedly"
    return _tell_of_worker(f"a loader's worker ({pid}) {how}")


def _tell_of_shared_memory(who: str) -> str:
    return (
        f"{who} found no shared memory: give the container more (docker run --shm-size=2g), or set num_workers to 0; "
        f"{_RESUME}"
    )


def _tell_of_worker(what: str) -> str:
    return (
        f"{what}; this is how a system ends what takes more memory than there is: lower num_workers or batch_size; "
        f"{_RESUME}"
    )
