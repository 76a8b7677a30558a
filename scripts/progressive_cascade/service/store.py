# SPDX-License-Identifier: Apache-2.0
"""The queue on the disk: a job that was accepted is there after any crash, and ends in one whole result or a word.

A job is a row in SQLite (WAL, flushed at every commit) and a folder ``jobs/ID``: ``input`` is whole before the row
exists, ``work`` is where a worker writes, ``result`` is `work` renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.io import sync
from progressive_cascade.service.settings import MAX_DEATHS, MAX_INTERRUPTIONS, Outcome

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, key TEXT UNIQUE, state TEXT NOT NULL,
    arguments TEXT NOT NULL, error TEXT NOT NULL DEFAULT '', fault TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL, started REAL, finished REAL,
    deaths INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0
)
"""
_OPEN = ("queued", "running")


class QueueFull(Exception):
    """As many jobs as may wait are waiting."""


@dataclass(frozen=True)
class Job:
    """A row of the queue.

    Attributes:
        id: random, names nobody.
        state: ``queued``, ``running``, ``done`` or ``failed``.
        arguments: of the command, paths relative to the job's folder.
        error: one line where it failed.
        fault: ``refused`` where the input is wrong, else what broke.
        created: seconds since 1970, like the other times.
    """

    id: str
    state: str
    arguments: tuple[str, ...]
    error: str
    fault: str
    created: float
    started: float | None
    finished: float | None
    deaths: int


class Store:
    """The queue of one service; threads may share it, a second service may not.

    Args:
        folder: made where it is missing, readable by its owner alone.
        max_queue: jobs that may wait or run.

    Raises:
        UserError: where the folder cannot be written, or another service has it.
    """

    def __init__(self, folder: Path, *, max_queue: int = 32) -> None:
        self.folder, self.max_queue = folder, max_queue
        self._lock = threading.RLock()
        try:
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o700)
            self._guard = _connect(folder / "lock.sqlite")
            self._guard.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._guard.execute("BEGIN EXCLUSIVE")
            self._db = _connect(folder / "queue.sqlite")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
        except OSError as error:
            raise UserError(f"--data must be a folder that can be written, got {folder}: {error.strerror}") from error
        except sqlite3.Error as error:
            reason = "another service uses it" if "locked" in str(error) else str(error)
            raise UserError(f"--data must be a folder for one service, got {folder}: {reason}") from error
        self._recover()

    def job_folder(self, identifier: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / identifier

    def new_folder(self) -> tuple[str, Path]:
        """A name for a job and its empty folder, which belongs to nobody until :meth:`add`."""
        identifier = secrets.token_hex(16)
        folder = self.job_folder(identifier)
        (folder / "input").mkdir(parents=True)
        return identifier, folder

    def add(self, identifier: str, arguments: Sequence[str], *, key: str | None = None) -> Job:
        """Accepts a job whose folder is whole; when this returns, it survives a loss of power.

        Args:
            identifier: of :meth:`new_folder`.
            arguments: of the command.
            key: of the client; a second job of the same key is the first one.

        Raises:
            QueueFull: where no more may wait.
        """
        folder = self.job_folder(identifier)
        for path in (*(folder / "input").iterdir(), folder / "input", folder, folder.parent):
            sync(path)
        with self._lock:
            known = None if key is None else self._one("SELECT * FROM jobs WHERE key = ?", key)
            if known is not None:
                shutil.rmtree(folder)
                return known
            if self.num_open() >= self.max_queue:
                raise QueueFull
            self._db.execute(
                "INSERT INTO jobs (id, key, state, arguments, created) VALUES (?, ?, 'queued', ?, ?)",
                (identifier, key, json.dumps(list(arguments)), time.time()),
            )
            return self._known(identifier)

    def get(self, identifier: str) -> Job | None:
        """A job, None where there is none."""
        return self._one("SELECT * FROM jobs WHERE id = ?", identifier)

    def of_key(self, key: str) -> Job | None:
        """The job of a client's key, None where there is none."""
        return self._one("SELECT * FROM jobs WHERE key = ?", key)

    def num_open(self) -> int:
        """Jobs that wait or run."""
        return sum(self.count(state) for state in _OPEN)

    def count(self, state: str) -> int:
        """Jobs in a state."""
        with self._lock:
            return self._db.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()[0]

    def num_before(self, job: Job) -> int:
        """Jobs that wait before another."""
        query = "SELECT count(*) FROM jobs WHERE state = 'queued' AND number < (SELECT number FROM jobs WHERE id = ?)"
        with self._lock:
            return self._db.execute(query, (job.id,)).fetchone()[0]

    def claim(self) -> Job | None:
        """The next job, which is running from now on; None where none waits."""
        query = (
            "UPDATE jobs SET state = 'running', started = ? WHERE number = "
            "(SELECT min(number) FROM jobs WHERE state = 'queued') RETURNING *"
        )
        with self._lock:
            job = self._one(query, time.time())
        if job is not None:
            work = self.job_folder(job.id) / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
        return job

    def settle(self, job: Job, outcome: Outcome) -> str:
        """Takes note of what became of a running job; its state then, or ``gone`` where it was deleted meanwhile."""
        if outcome.kind == "done":
            self._publish(job)
            self._finish(job)
        elif outcome.kind == "died" and job.deaths + 1 < MAX_DEATHS:
            self._update(job, "state = 'queued', deaths = deaths + 1")
        elif outcome.kind == "died":
            self._finish(job, "died", f"it ended its worker {MAX_DEATHS} times (out of memory, perhaps)")
        elif outcome.kind == "stopped":
            self._update(job, "state = 'queued'")
        else:
            self._finish(job, outcome.kind, outcome.line)
        found = self.get(job.id)
        if found is None:
            shutil.rmtree(self.job_folder(job.id), ignore_errors=True)
        return "gone" if found is None else found.state

    def delete(self, identifier: str) -> bool:
        """Forgets a job and, unless it is running, removes its files; whoever runs it removes them then."""
        with self._lock:
            job = self.get(identifier)
            if job is None:
                return False
            self._db.execute("DELETE FROM jobs WHERE id = ?", (identifier,))
        if job.state != "running":
            shutil.rmtree(self.job_folder(identifier), ignore_errors=True)
        return True

    def expire(self, hours: float) -> int:
        """Deletes what ended so many hours ago; how many."""
        with self._lock:
            rows = self._db.execute("SELECT id FROM jobs WHERE finished < ?", (time.time() - 3600 * hours,)).fetchall()
        return sum(self.delete(row[0]) for row in rows)

    def mean_seconds(self) -> float | None:
        """How long the last jobs took, None before the first."""
        query = (
            "SELECT avg(finished - started) FROM "
            "(SELECT * FROM jobs WHERE state = 'done' ORDER BY finished DESC LIMIT 20)"
        )
        with self._lock:
            return self._db.execute(query).fetchone()[0]

    def close(self) -> None:
        """Lets another service have the folder."""
        with self._lock:
            self._db.close()
            self._guard.close()

    def _recover(self) -> None:
        """What a service that was ended left: whole results are taken, running jobs wait again, orphans go."""
        rows = self._db.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall()
        for job in map(_job, rows):
            if (self.job_folder(job.id) / "result").is_dir():
                self._finish(job)
                continue
            self._update(job, "state = 'queued', interruptions = interruptions + 1")
            limit = f"SELECT * FROM jobs WHERE id = ? AND interruptions >= {MAX_INTERRUPTIONS}"
            if self._one(limit, job.id) is not None:
                self._finish(job, "died", f"the service was ended {MAX_INTERRUPTIONS} times while it ran")
        known = {row[0] for row in self._db.execute("SELECT id FROM jobs")}
        for path in (self.folder / "jobs").iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    def _publish(self, job: Job) -> None:
        folder = self.job_folder(job.id)
        os.replace(folder / "work", folder / "result")
        sync(folder)

    def _finish(self, job: Job, fault: str = "", line: str = "") -> None:
        state = "failed" if fault else "done"
        self._update(job, "state = ?, fault = ?, error = ?, finished = ?", state, fault, line, time.time())
        # The radiographs have served their purpose.
        for name in ("input", "work"):
            shutil.rmtree(self.job_folder(job.id) / name, ignore_errors=True)

    def _update(self, job: Job, changes: str, *values: Any) -> None:
        with self._lock:
            self._db.execute(f"UPDATE jobs SET {changes} WHERE id = ?", (*values, job.id))

    def _one(self, query: str, *values: Any) -> Job | None:
        with self._lock:
            rows = self._db.execute(query, values).fetchall()
        return _job(rows[0]) if rows else None

    def _known(self, identifier: str) -> Job:
        job = self.get(identifier)
        assert job is not None
        return job


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
    connection.row_factory = sqlite3.Row
    return connection


def _job(row: sqlite3.Row) -> Job:
    names = ("id", "state", "error", "fault", "created", "started", "finished", "deaths")
    return Job(arguments=tuple(json.loads(row["arguments"])), **{name: row[name] for name in names})
