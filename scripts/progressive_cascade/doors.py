# SPDX-License-Identifier: Apache-2.0
"""How a package gives names of its modules without loading them: each is looked up when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def door(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562).

    Args:
        package: its ``__name__``.
        homes: names that it gives, by the module inside it that defines them.

    Returns:
        A function from a name to what it stands for. A name that has no home is an ``AttributeError``, as it is of any
        module.

    Example:
        >>> door("progressive_cascade", {"errors": ("UserError",)})("UserError").__name__
        'UserError'
    """
    modules = {name: f"{package}.{home}" for home, names in homes.items() for name in names}

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return look_up
