# SPDX-License-Identifier: Apache-2.0
"""The order of the training data: which case comes at which step is a function of the seed, and needs no memory.

A run that is taken up again, by as many processes or by another number, sees at step 1000 the cases that it would have
seen without the interruption, augmented and simulated alike.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sized
from copy import deepcopy
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.data.dataset import PersistentDataset
from monai.data.utils import pickle_hashing
from monai.utils.type_conversion import convert_to_tensor
from torch.utils.data import Sampler

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.io import atomic_path

# Numbers that keep apart what is drawn from one seed: order, augmentation, simulation, windows, loss, spectra.
ORDER, AUGMENTATION, SIMULATION, WINDOW, LOSS, SPECTRUM, UNTOLD = range(7)


def derive(seed: int, purpose: int, number: int) -> np.random.Generator:
    """The random numbers of one purpose at one place in a run.

    Args:
        seed: of the run.
        purpose: one of :data:`ORDER`, :data:`AUGMENTATION` and so on.
        number: which sample, step or pass.

    Returns:
        A generator of its own.
    """
    return np.random.default_rng((seed % 2**63, purpose, number))


class SampleStream(Sampler[tuple[int, int, int]]):
    """One endless sequence of samples, pass after pass over the shuffled cases, dealt out to steps and processes.

    Sample n of the run is entry ``n mod N`` of permutation ``n // N``. Step s takes samples ``sB`` to ``(s + 1) B - 1``
    with B the batch over all processes, and process r the r-th part of them: two processes with half a batch each
    see what one with the whole would see. A batch may reach into the next pass, so that all have one size.

    Args:
        dataset: the N cases.
        batch_size: samples per step of one process.
        seed: of the permutations.
        repeat_passes: after so many passes over the cases the same samples, augmented and simulated alike, come again
            in another order, so that what is costly to make of one may be kept; None: never.

    Attributes:
        step: where the next iteration begins; one iteration ends after ``ceil(N / B)`` steps, at a multiple of that.

    Raises:
        UserError: if a batch or the number of passes is not positive, or there is no case.

    Example:
        >>> stream = SampleStream([10, 20, 30], batch_size=2)
        >>> [draw for _, draw, _ in stream], [draw for _, draw, _ in stream]
        ([0, 1, 2, 3], [4, 5, 6, 7])
    """

    def __init__(self, dataset: Sized, batch_size: int, seed: int = 0, *, repeat_passes: int | None = None) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be a whole number of at least 1, got {batch_size}")
        if repeat_passes is not None and repeat_passes < 1:
            raise UserError(f"repeat_passes must be a whole number of at least 1 or null, got {repeat_passes}")
        if len(dataset) == 0:
            raise UserError("the training dataset must hold at least one case, got none")
        self.num_cases = len(dataset)
        self.batch_size = batch_size
        self.seed = seed
        self.repeat_passes = repeat_passes
        self.step = 0

    def __len__(self) -> int:
        """Samples of this process in one iteration."""
        return self._steps() * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yields (case, number of the sample in the run, step)."""
        batch = self.batch_size * idist.get_world_size()
        last = (self.step // self._steps() + 1) * self._steps()
        for step in range(self.step, last):
            first = step * batch + self.batch_size * idist.get_rank()
            for draw in range(first, first + self.batch_size):
                case = self._case(draw)
                yield case, self._sample(case, draw), step
        self.step = last

    def _steps(self) -> int:
        return -(-self.num_cases // (self.batch_size * idist.get_world_size()))

    def _sample(self, case: int, draw: int) -> int:
        """The number that a sample is drawn from: its place in the run, or case and pass where these come again."""
        if self.repeat_passes is None:
            return draw
        return draw // self.num_cases % self.repeat_passes * self.num_cases + case

    def _case(self, draw: int) -> int:
        number, place = divmod(draw, self.num_cases)
        if getattr(self, "_permuted", None) != number:
            self._permuted = number
            self._order = derive(self.seed, ORDER, number).permutation(self.num_cases)
        return int(self._order[place])


class CaseDataset(PersistentDataset):
    """MONAI's ``PersistentDataset`` whose random transforms are seeded by the sample, and whose cache cannot be torn.

    An index of :class:`SampleStream` seeds the transforms by (seed, sample), and leaves ``draw``, ``step`` and
    ``skipped`` in the item. The cache is written under a temporary name on its own disk: the original moves files in
    from the system's temporary folder, which copies them where that is another disk, and a kill in between leaves
    half a file that no later run can read. Where the cache cannot be written, the run goes on without it.

    Args:
        data: items.
        transform: deterministic transforms, then random ones.
        cache_dir: folder of the deterministic part's results.
        seed: of the run.
        skip_bad: so many cases that cannot be read may be replaced by the next one; 0: the first one ends the run.
    """

    def __init__(self, data: Any, transform: Any, cache_dir: str | Path, *, seed: int = 0, skip_bad: int = 0) -> None:
        super().__init__(data=data, transform=transform, cache_dir=cache_dir)
        self.seed = seed
        self.skip_bad = skip_bad

    def __getitem__(self, index: Any) -> Any:
        """The item of an index, or of (index, sample, step).

        Raises:
            RunError: if a case cannot be read, and none may be skipped.
        """
        if not isinstance(index, tuple):
            return self._read(index)
        number, draw, step = index
        skipped: list[str] = []
        while True:
            seed = derive(self.seed, AUGMENTATION, draw).integers(2**32)
            self.transform.set_random_state(seed=int(seed))
            place = (number + len(skipped)) % len(self)
            try:
                return {**self._read(place), "draw": draw, "step": step, "skipped": "\n".join(skipped)}
            except RunError as error:
                skipped.append(str(error))
                if not self.skip_bad or len(skipped) == len(self):
                    raise

    def _read(self, index: int) -> Any:
        try:
            return super().__getitem__(index)
        except Exception as error:  # whatever a damaged file makes a reader raise
            while error.__cause__ is not None and not isinstance(error, UserError):
                error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            name = self.data[index].get("label", f"phantom {self.data[index].get('seed')}")
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RunError(f"case {name} cannot be read: {reason}") from None

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> Any:
        path = Path(self.cache_dir or ".") / f"{_cache_name(item_transformed)}.pt"
        if path.is_file():
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                warnings.warn(f"{path} is damaged ({type(error).__name__}) and made anew", stacklevel=2)
        item = self._pre_transform(deepcopy(item_transformed))
        content = io.BytesIO()
        torch.save(convert_to_tensor(item, convert_numeric=False, track_meta=False), content)
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(content.getbuffer())
        except (OSError, UserError) as error:
            warnings.warn(f"cache {path.parent} cannot be written, going on without it: {error}", stacklevel=2)
        return item


def start_worker(_worker: int) -> None:
    """What a loader's worker does first: leaves signals to the process that trains, and computes with one thread.

    A batch system, and a terminal, sends its signal to every process; a worker that followed it would take the run
    down before its checkpoint is written. Of SIGTERM it heeds its parent's alone: that ends it, and a parent that is
    about to exit waits until it has.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows, where whoever sends SIGTERM ends the worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)


def _end_by_parent(parent: int) -> None:
    """Waits for the parent's SIGTERM, and passes over everybody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _cache_name(item: Mapping[str, Any]) -> str:
    """Of the item and of its files' sizes and dates: a CT that is prepared anew is cached anew."""
    stats = [Path(item[key]).stat() for key in ("label", "valid") if key in item]
    return pickle_hashing({**item, "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats]}).decode()
