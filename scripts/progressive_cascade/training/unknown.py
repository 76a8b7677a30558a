# SPDX-License-Identifier: Apache-2.0
"""Keys of a config that mean nothing: neither shipped, nor an argument of what they are given to, nor referred to."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pydoc import locate
from typing import Any

from monai.bundle import ComponentLocator

_REFERENCE = re.compile(r"@([\w#:]+)")
# Settings whose keys are names of the user's choice, which their rule looks at.
_OPEN = ("populations",)
# What MONAI itself reads: of a config, and of a component.
_WORKFLOW_KEYS = frozenset({"initialize", "run", "finalize", "imports"})


def find_unknown(config: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]] | None:
    """The first key of a config that means nothing.

    A key means something if one of the known configs has it at the same place, if it is an argument of the component it
    stands in, if anything refers to it by ``@``, or if it begins with an underscore. Members of a dictionary that is
    meant to be added to (``named_handlers``) need only be components.

    Args:
        config: what is about to run.
        known: shipped configs and overlays.

    Returns:
        The key's id (``a#b#c``) and the names that were possible at its place; None where there is no such key.
    """
    references = set(_references(config))
    return _search(config, [unfold(each) for each in known], "", references)


def _search(
    node: Mapping[str, Any], known: Sequence[Mapping[str, Any]], path: str, references: set[str]
) -> tuple[str, list[str]] | None:
    names = {name for each in known for name in each} | (_WORKFLOW_KEYS if not path else set())
    arguments = _arguments(node)
    for name, value in node.items():
        key = f"{path}#{name}" if path else name
        if name.startswith("_") or (arguments is None and not known):
            continue
        added = (isinstance(value, Mapping) and path.endswith("named_handlers")) or path in _OPEN
        means_something = name in names or name in (arguments or ()) or key in references or added
        if not means_something:
            return key, sorted(names | (arguments or set()))
        below = [each[name] for each in known if isinstance(each.get(name), Mapping)]
        # A component stands for itself: its arguments are asked of its class.
        if isinstance(value, Mapping) and (below or "_target_" in value):
            found = _search(value, below, key, references)
            if found is not None:
                return found
    return None


def _arguments(node: Mapping[str, Any]) -> set[str] | None:
    """Names a component takes; None for what is none, cannot be found, or takes any."""
    target = node.get("_target_")
    if not isinstance(target, str) or target.startswith("$"):
        return None
    found = _locator().get_component_module_name(target) if "." not in target else None
    module = found[0] if isinstance(found, list) else found
    component = locate(f"{module}.{target}" if module else target)
    try:
        parameters = inspect.signature(component).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return None
    return set(parameters)


@functools.cache
def _locator() -> ComponentLocator:
    """MONAI's table of its components, made once: each new one looks through every class of MONAI."""
    return ComponentLocator()


def _references(node: Any) -> Iterable[str]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _references(value)
    elif isinstance(node, str):
        for found in _REFERENCE.findall(node):
            parts = found.replace("::", "#").split("#")
            yield from ("#".join(parts[: depth + 1]) for depth in range(len(parts)))


def unfold(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """An overlay with ``a#b`` keys as the nested dictionaries they reach into."""
    unfolded: dict[str, Any] = {}
    for key, value in overlay.items():
        *path, last = key.removeprefix("+").replace("::", "#").split("#")
        level = unfolded
        for part in path:
            level = level.setdefault(part, {})
        level[last] = value
    return unfolded
