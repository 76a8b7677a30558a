# SPDX-License-Identifier: Apache-2.0
"""The configs of an exported bundle: every file stands alone, and names nothing outside the bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from progressive_cascade.errors import UserError

METADATA = "metadata.json"
"""The one config that is generated."""
TRAINING_STAGES = (1, 2, 3)
_ABSOLUTE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/])")


def read_configs(root: Path) -> dict[str, dict[str, Any]]:
    """All configs of a bundle but its metadata, macros replaced by what they stand for.

    Args:
        root: the bundle's folder.

    Returns:
        Contents by path relative to ``configs/``, sorted.

    Raises:
        UserError: if a file is no JSON object, holds a key twice or an absolute path, or a macro leads nowhere.
    """
    folder = root / "configs"
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.json"))}
    paths.pop(METADATA, None)
    return {name: expand(read_config(path), root, path) for name, path in paths.items()}


def read_config(path: Path) -> dict[str, Any]:
    """Reads a JSON object, strictly: MONAI lets the last of two equal keys win.

    Raises:
        UserError: if the file is missing, no JSON object, or holds a key twice.
    """
    if not path.is_file():
        raise UserError(f"config {path} must exist")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"config {path} must hold every key once, got {', '.join(twice)} twice")
        return dict(pairs)

    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"config {path} must be JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path} must hold a JSON object, got {type(config).__name__}")
    return config


def expand(config: Mapping[str, Any], root: Path, path: Path) -> dict[str, Any]:
    """A config with every macro (``%configs/train.json::train``) replaced by a copy of its target.

    Args:
        config: the content.
        root: the bundle's folder, to which the paths in macros are relative.
        path: the config's file, for messages.

    Returns:
        A deep copy without macros.

    Raises:
        UserError: if a macro's target does not exist or is a macro itself, or a value is an absolute path.
    """

    def walk(node: Any, depth: int) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(value, depth) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, depth) for value in node]
        if isinstance(node, str) and node.startswith("%"):
            if depth:
                raise UserError(f"config {path}: a macro must not lead to another macro, got {node!r}")
            return walk(_macro_target(node, config, root, path), depth + 1)
        if isinstance(node, str) and _ABSOLUTE.match(node):
            raise UserError(f"config {path} must hold no absolute path, got {node!r}")
        return node

    return walk(config, 0)


def _macro_target(macro: str, config: Mapping[str, Any], root: Path, path: Path) -> Any:
    file, name = ConfigParser.split_path_id(macro[1:])
    source = read_config(root / file) if file else dict(config)
    try:
        return deepcopy(ConfigParser(source)[name])
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"config {path}: macro {macro!r} must name something that exists") from error


def for_stage(configs: Mapping[str, dict[str, Any]], stage: int) -> dict[str, dict[str, Any]]:
    """The configs of a cascade that ends with a stage: inference runs it, and ``train.json`` trains it.

    Args:
        configs: of :func:`read_configs`.
        stage: 1, 2 or 3.

    Returns:
        Changed copies; the stages' own files stay as they are.
    """
    changed = {name: deepcopy(config) for name, config in configs.items()}
    changed["inference.json"]["stage"] = stage
    own = changed[f"stage{stage}.json"]
    description = (
        f"The training workflow that monai.bundle.load and MONAI Label look for: the same as stage{stage}.json."
    )
    changed["train.json"] = {**deepcopy(own), "_desc_": description}
    return changed


def to_text(config: Mapping[str, Any]) -> str:
    """JSON as the bundle's files are formatted: indented by 4, keys in their own order."""
    return json.dumps(config, indent=4, ensure_ascii=False) + "\n"
