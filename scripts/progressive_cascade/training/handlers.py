# SPDX-License-Identifier: Apache-2.0
"""Handlers by name: a workflow's handlers as a dictionary, so that overlays name one instead of counting."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine


class NamedHandlers:
    """Handler: attaches a dictionary of handlers in its order.

    Args:
        handlers: by name.
        first_process: names of those that only the first of several processes attaches: they print or write.
    """

    def __init__(self, handlers: Mapping[str, Any], first_process: Collection[str] = ()) -> None:
        self.handlers = dict(handlers)
        self.first_process = frozenset(first_process)

    def attach(self, engine: Engine) -> None:
        """Attach all that this process needs."""
        is_first = idist.get_rank() == 0
        for name, handler in self.handlers.items():
            if is_first or name not in self.first_process:
                handler.attach(engine)
