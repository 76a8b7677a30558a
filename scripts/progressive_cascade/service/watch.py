# SPDX-License-Identifier: Apache-2.0
"""A folder that is watched: pairs that have settled are reconstructed, and moved to `done` or `failed`.

No state is kept but in the folders. A pair is in the input until its result is whole in the output; an interruption so
leaves a pair that is reconstructed again, or one whose result is found and which is only moved.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from progressive_cascade.errors import UserError
from progressive_cascade.io import NIFTI_SUFFIXES, atomic_path, nifti_stem, sync
from progressive_cascade.radiograph.folder import PairFiles, find_pairs
from progressive_cascade.service.intake import BESIDE, take_pair
from progressive_cascade.service.pool import Worker
from progressive_cascade.service.settings import MAX_DEATHS, Outcome

LOG = logging.getLogger("progressive_cascade.service")
DONE, FAILED, REASON, MADE_OF = "done", "failed", "reason.txt", "made_of.txt"
"""Folders for what has been seen to, the file that says why it failed, and the one that says what a result is of."""
_WORK = ".work-"


@dataclass(frozen=True)
class WatchSettings:
    """What a watch is told.

    Attributes:
        source: folder into which radiographs come; receives `done` and `failed`.
        target: receives a folder for each pair.
        arguments: of `reconstruct`, beyond the files; what stands here counts.
        with_geometry: whether a geometry.json beside a pair counts.
        settle_seconds: a file is whole when it has not changed for so long.
        wait_seconds: a view waits so long for the other, then it has failed.
        job_seconds: in which a reconstruction has to end.
        poll_seconds: between two looks.
    """

    source: Path
    target: Path
    arguments: tuple[str, ...] = ()
    with_geometry: bool = True
    settle_seconds: float = 5.0
    wait_seconds: float = 3600.0
    job_seconds: float = 900.0
    poll_seconds: float = 2.0


class Watch:
    """Looks into a folder, again and again.

    Args:
        settings: of the watch.
        workers: one for each pair at a time.
    """

    def __init__(self, settings: WatchSettings, workers: Sequence[Worker]) -> None:
        self.settings, self._workers, self._count = settings, list(workers), len(workers)
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self.is_stopping = threading.Event()
        for folder in (settings.source, settings.target):
            folder.mkdir(parents=True, exist_ok=True)
        for left in settings.target.glob(f"{_WORK}*"):
            shutil.rmtree(left, ignore_errors=True)

    def run(self, each: Callable[[], None] = lambda: None) -> None:
        """Looks until it is asked to stop; `each` is called after every look, beside the next ones while it takes long.

        What `each` raises ends the watch, as being asked to stop does: pairs under way are stopped and stay in the
        input, and no worker is left behind.
        """
        try:
            with ThreadPoolExecutor(self._count + 1) as pool:
                try:
                    beside = self._look_again_and_again(pool, each)
                finally:
                    self.is_stopping.set()
            beside.result()
        finally:
            for worker in self._workers:
                worker.stop()

    def _look_again_and_again(self, pool: ThreadPoolExecutor, each: Callable[[], None]) -> Future[None]:
        """Gives pairs to the pool until it is asked to stop; returns the last call of `each`, which may go on."""
        beside: Future[None] = Future()
        beside.set_result(None)
        while not self.is_stopping.is_set():
            for pair in self.settled():
                with self._lock:
                    if pair.case in self._busy or len(self._busy) >= self._count:
                        continue
                    self._busy.add(pair.case)
                pool.submit(self._see_to, pair)
            if beside.done():
                beside.result()
                beside = pool.submit(each)
            self.is_stopping.wait(self.settings.poll_seconds)
        return beside

    def settled(self) -> list[PairFiles]:
        """Pairs whose files have not changed for a while, and views that waited in vain for the other."""
        try:
            pairs = find_pairs(self.settings.source, without=(DONE, FAILED))
        except (UserError, OSError):  # there is none, or one vanished just now
            return []
        now, settled = time.monotonic(), []
        seen = {}
        for pair in pairs:
            ages = [self._age(path, now, seen) for path in _files(pair)]
            wait = self.settings.wait_seconds if pair.problem else self.settings.settle_seconds
            if ages and min(ages) >= wait:
                settled.append(pair)
        self._seen = seen
        return settled

    def _age(self, path: Path, now: float, seen: dict[Path, tuple[tuple[int, int], float]]) -> float:
        """Seconds since a file was seen to change."""
        try:
            status = path.stat()
        except OSError:
            return 0.0
        state = (status.st_size, status.st_mtime_ns)
        before, since = self._seen.get(path, (None, now))
        seen[path] = (state, since if before == state else now)
        return now - seen[path][1]

    def _see_to(self, pair: PairFiles) -> None:
        # A case's name may be a patient's; that of a study is a hash already, and its folder's.
        name = pair.case if pair.study else hashlib.sha256(pair.case.encode()).hexdigest()[:8]
        begun = time.monotonic()
        try:
            if not all(path.is_file() for path in _files(pair)):  # seen to while the folder was looked into
                return
            outcome = Outcome("refused", pair.problem) if pair.problem else self._reconstruct(pair)
            if outcome.kind != "stopped":
                self._move(pair, outcome)
                where = "" if outcome.kind == "done" else f", {REASON} says why"
                LOG.info("pair %s: %s after %.1f s%s", name, outcome.kind, time.monotonic() - begun, where)
        except Exception as error:  # a full disk must not end the watch
            LOG.error("pair %s: %s", name, type(error).__name__)
        finally:
            with self._lock:
                self._busy.discard(pair.case)

    def _reconstruct(self, pair: PairFiles) -> Outcome:
        """The result into the output, where it is not yet."""
        target, content = self.settings.target / pair.case, _content(pair)
        if any(_is_of(folder, content) for folder in target.parent.glob(f"{glob.escape(pair.case)}*")):
            return Outcome("done")
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=self.settings.target) as name:
            folder = Path(name)
            try:
                (folder / "input").mkdir()
                given = take_pair(pair, folder / "input", with_geometry=self.settings.with_geometry)
            except UserError as error:
                return Outcome("refused", str(error))
            outcome = self._run(folder, ["--output", "work/ct.nii.gz", *given, *self.settings.arguments])
            if outcome.kind == "done":
                (folder / "work" / MADE_OF).write_text(content, encoding="utf-8")
                sync(folder / "work" / MADE_OF)
                os.replace(folder / "work", _unused(target))
                sync(self.settings.target)
        return outcome

    def _run(self, folder: Path, arguments: list[str]) -> Outcome:
        with self._lock:
            worker = self._workers.pop()
        try:
            outcome = Outcome("stopped")
            for _ in range(MAX_DEATHS):
                while not worker.ensure():
                    if self.is_stopping.wait(0.1):
                        return Outcome("stopped")
                shutil.rmtree(folder / "work", ignore_errors=True)
                (folder / "work").mkdir()
                outcome = worker.run(
                    folder,
                    arguments,
                    seconds=self.settings.job_seconds,
                    is_wanted=lambda: not self.is_stopping.is_set(),
                )
                if outcome.kind != "died":
                    return outcome
            return Outcome("died", f"it ended its worker {MAX_DEATHS} times (out of memory, perhaps)")
        finally:
            with self._lock:
                self._workers.append(worker)

    def _move(self, pair: PairFiles, outcome: Outcome) -> None:
        """Files to `done` or `failed`, under a name that nothing has yet."""
        is_done = outcome.kind == "done"
        folder = _unused(self.settings.source / (DONE if is_done else FAILED) / pair.case)
        folder.mkdir(parents=True)
        if not is_done:
            with atomic_path(folder / REASON) as reason:
                reason.write_text(pair.said(outcome.line, self.settings.source) + "\n", encoding="utf-8")
        for path in _all_files(pair, self.settings.source):
            os.replace(path, folder / path.name)
            sync(path.parent)
        sync(folder)


def _files(pair: PairFiles) -> list[Path]:
    """The radiographs, and files of the same study that have no place in the pair."""
    return [path for path in (pair.frontal, pair.lateral, *pair.others) if path is not None]


def _all_files(pair: PairFiles, source: Path) -> Iterator[Path]:
    """The radiographs, their sidecars, and what lies beside them in a folder of their own."""
    for path in _files(pair):
        stem = nifti_stem(path) if path.name.endswith(NIFTI_SUFFIXES) else path.stem
        yield from (one for one in (path, path.with_name(f"{stem}.json")) if one.is_file())
    own = {path.parent for path in _files(pair)} - {source}
    yield from (folder / name for folder in sorted(own) for name in BESIDE if (folder / name).is_file())


def _content(pair: PairFiles) -> str:
    """What tells these radiographs from others of the same names."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(pair)]
    return "\n".join(digests) + "\n"


def _is_of(folder: Path, content: str) -> bool:
    return (folder / MADE_OF).is_file() and (folder / MADE_OF).read_text(encoding="utf-8") == content


def _unused(path: Path) -> Path:
    """A name that nothing has: nothing is ever replaced."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
