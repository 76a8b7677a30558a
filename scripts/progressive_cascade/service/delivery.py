# SPDX-License-Identifier: Apache-2.0
"""Series that were made and have to get somewhere: sent until they are taken, then kept for a while."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from progressive_cascade.errors import RunError
from progressive_cascade.io import atomic_path
from progressive_cascade.service.dicom_node import Destination
from progressive_cascade.service.watch import DONE, FAILED, MADE_OF

LOG = logging.getLogger("progressive_cascade.service")
SENT = "sent.txt"
"""In the folder of a result that its destination has taken."""
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0


class Delivery:
    """Sends what a watch makes.

    Args:
        source: the watch's input; what is done there goes after a while.
        target: the watch's output.
        destination: where series go.
        keep_hours: after which a series that was sent, and its radiographs, are removed.
    """

    def __init__(self, source: Path, target: Path, destination: Destination, *, keep_hours: float = 24.0) -> None:
        self._source, self._target, self._destination, self._keep = source, target, destination, keep_hours
        self._next, self._pause = 0.0, _FIRST_PAUSE

    def look(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Sends what has not been sent; where that fails, tries again later and later.

        Args:
            is_wanted: asked before each series; where it is not, the rest is sent another time.
        """
        if time.monotonic() < self._next:
            return
        for folder in sorted(path.parent for path in self._target.glob(f"*/{MADE_OF}")):
            if not is_wanted():
                return
            if (folder / SENT).exists():
                continue
            files = [path for path in sorted(folder.rglob("*.dcm")) if not path.name.startswith(".")]
            try:
                self._destination.send(files)
                with atomic_path(folder / SENT) as mark:
                    mark.write_text(f"{time.time():.0f}\n", encoding="utf-8")
            except (RunError, OSError) as error:  # a full disk must not end it either
                LOG.warning("not sent, again in %g s: %s", self._pause, error)
                self._next = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                return
            self._pause = _FIRST_PAUSE
            LOG.info("%d objects were sent", len(files))
        self._expire()

    def _expire(self) -> None:
        before = time.time() - 3600 * self._keep
        for sent in self._target.glob(f"*/{SENT}"):
            if sent.stat().st_mtime < before:
                shutil.rmtree(sent.parent)
        for folder in (self._source / DONE).glob("*"):
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder)
        for folder in self._source.iterdir():
            # A study's own, once its files have moved; one that holds a file is not removed.
            if folder.name not in (DONE, FAILED) and folder.stat().st_mtime < before:
                with contextlib.suppress(OSError):
                    folder.rmdir()
