# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a run for its checkpoint and its end: SIGTERM, SIGINT, and SIGUSR1, a batch system's warning."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import ignite.distributed as idist

_SAVE = "SIGUSR1"
_STOP = ("SIGTERM", "SIGINT")


class SignalRequests:
    """What signals have asked for since the last look, agreed by all processes.

    SIGUSR1 asks for a checkpoint, SIGTERM and SIGINT for one and the end of the run. A second SIGINT ends it at once.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def install(self) -> None:
        """Listen; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in (_SAVE, *_STOP):
            number = getattr(signal, name, None)  # Windows knows no SIGUSR1
            if number is not None:
                self._before[number] = signal.signal(number, self._receive)

    def remove(self) -> None:
        """Leave the signals to whoever had them before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take(self) -> int:
        """The signal asked by any process since the last call, 0 for none; the same in all processes.

        Every process must call it after the same step: who stopped alone would leave the others waiting for him.
        """
        asked, self._asked = self._asked, 0
        if idist.get_world_size() > 1:
            asked = int(idist.all_reduce(float(asked), "MAX"))
        return asked

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, before it has dropped what it inherited
            return
        again = number == signal.SIGINT and self._asked == signal.SIGINT
        if again:
            self.remove()
            raise KeyboardInterrupt
        if self._asked not in (signal.SIGINT, signal.SIGTERM):
            self._asked = number
        if number == signal.SIGINT:
            print("\ninterrupted: a checkpoint follows this step; once more to stop at once", file=sys.stderr)


def stops(number: int) -> bool:
    """Whether a signal asks for the end of the run, and not for a checkpoint alone."""
    return any(number == getattr(signal, name) for name in _STOP)
