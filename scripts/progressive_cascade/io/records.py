# SPDX-License-Identifier: Apache-2.0
"""JSON that is either complete or absent when it is written, and within limits when it is read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.io.files import atomic_path, reason

MAX_JSON_BYTES = 64 << 20
"""The largest JSON file that is read: a datalist of a hundred thousand cases has a quarter of that."""
MAX_JSON_DEPTH = 64
"""The deepest nesting that is read: a workflow's config has less than ten levels."""
# Characters of the smallest 64-bit integer.
_LONGEST_INTEGER = 20


def save_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Writes `value` as indented JSON, atomically.

    Raises:
        UserError: where the file cannot be written.
    """
    text = json.dumps(value, indent=4) + "\n"
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output file {path} must be writable, got: {reason(error)}") from error


def finite(value: Any) -> Any:
    """The value with None for what JSON cannot hold: infinite and undefined numbers."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | os.PathLike[str], what: str = "JSON file") -> Any:
    """Reads a JSON file that somebody may have written by hand, or to do harm.

    Args:
        path: the file, in UTF-8, with or without a byte order mark.
        what: how an error calls it.

    Returns:
        What it holds: nested at most 64 deep, whole numbers within 64 bits, no other number that overflows.

    Raises:
        FileNotFoundError: where there is no such file.
        UserError: where it is not JSON, or beyond these limits or 64 MiB.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} must exist, got {path}")
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise UserError(f"{what} {path} must be at most {MAX_JSON_BYTES >> 20} MiB, got {size} bytes")
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, parse_int=_whole_number, parse_float=_finite_number)
    except UserError:
        raise
    except RecursionError:
        depth = math.inf
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} must be JSON, got: {reason(error)}") from error
    else:
        depth = _depth(value)
    if depth > MAX_JSON_DEPTH:
        raise UserError(f"{what} {path} must be nested at most {MAX_JSON_DEPTH} deep, got more")
    return value


def _whole_number(text: str) -> int:
    if len(text) > _LONGEST_INTEGER or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError(f"a whole number beyond 64 bits, {text[:12]}...")
    return int(text)


def _finite_number(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"a number beyond 64 bits, {text[:12]}...")
    return float(text)


def _depth(value: Any) -> int:
    """How deep lists and objects are nested, level by level."""
    depth, level = 0, [value]
    while level:
        level = [
            item
            for holder in level
            if isinstance(holder, (list, dict))
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        depth += 1
    return depth
