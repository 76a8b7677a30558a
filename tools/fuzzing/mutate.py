# SPDX-License-Identifier: Apache-2.0
"""Mutants of a good file: bits, bytes and integers of any file, values and names of JSON and CSV."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Callable
from typing import Any

EXTREMES: tuple[Any, ...] = (
    *(None, True, "", "a", "ü" * 5000, "\x00", "../../../etc/passwd", [], {}, [[[]]], {"a": {}}),
    *(0, -1, 1, 7, 10**9, 10**18, 2**63, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf")),
)
"""What a value of JSON is replaced by."""
DEPTHS = (65, 2000, 200_000)
"""How deep lists are nested in place of a file."""
_HEADER = 360  # bytes: of a NIfTI file it is all that are not voxels


def mutate_bytes(content: bytes, random_: random.Random) -> bytes:
    """One to three changes anywhere, half of them in the first bytes, where headers are."""
    changed = bytearray(content)
    for _ in range(random_.randint(1, 3)):
        if changed:
            random_.choice(_CHANGES)(changed, random_)
    return bytes(changed)


def mutate_packed(content: bytes, random_: random.Random) -> bytes:
    """A mutant of a gzip file: of what is packed, or of the packing."""
    if random_.random() < 0.3:
        return mutate_bytes(content, random_)
    return gzip.compress(mutate_bytes(gzip.decompress(content), random_), mtime=0)


def mutate_json(content: bytes, random_: random.Random) -> bytes:
    """A value, a name or the nesting of a JSON file changed; sometimes its bytes."""
    kind = random_.random()
    if kind < 0.15:
        return mutate_bytes(content, random_)
    if kind < 0.25:
        depth = random_.choice(DEPTHS)
        return b"[" * depth + b"]" * depth
    value = json.loads(content)
    for _ in range(random_.randint(1, 2)):
        value = _change_value(value, random_)
    return json.dumps(value).encode()


def mutate_table(content: bytes, random_: random.Random) -> bytes:
    """A cell of a table changed, a row left out or doubled; sometimes its bytes."""
    if random_.random() < 0.3:
        return mutate_bytes(content, random_)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = random_.randrange(len(rows))
    kind = random_.random()
    if kind < 0.2:
        rows.insert(row, rows[row])
    elif kind < 0.4:
        del rows[row]
    else:
        column = random_.randrange(len(rows[row]))
        rows[row][column] = random_.choice(("", '"', "\x00", "../..", "a" * 200_000, "nan", ",,,", "ü\n", rows[0][0]))
    return "\n".join(",".join(row) for row in rows).encode()


def mutate_setting(content: bytes, random_: random.Random) -> bytes:
    """A wrong value, or a wrong name, of one setting in a file of overrides."""
    settings = json.loads(content)
    key = random_.choice(sorted(settings))
    value = random_.choice((*EXTREMES, "two", "$1 / 0", "@nothing", "$", {"_target_": "os.getcwd"}))
    name = key if random_.random() < 0.8 else key[::-1]
    return json.dumps({name: value}).encode()


def _change_value(value: Any, random_: random.Random) -> Any:
    """The value with something inside it, or all of it, replaced, renamed or left out."""
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or random_.random() < 0.1:
        return random_.choice(EXTREMES)
    key = random_.choice(inside)
    kind = random_.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, dict):
        value[f"{key}_"] = value.pop(key)
    elif kind < 0.5 and isinstance(value[key], (dict, list)):
        value[key] = _change_value(value[key], random_)
    else:
        value[key] = random_.choice(EXTREMES)
    return value


def _place(content: bytearray, random_: random.Random) -> int:
    return random_.randrange(min(len(content), _HEADER) if random_.random() < 0.5 else len(content))


def _flip_bit(content: bytearray, random_: random.Random) -> None:
    content[_place(content, random_)] ^= 1 << random_.randrange(8)


def _overwrite(content: bytearray, random_: random.Random) -> None:
    start, size = _place(content, random_), random_.choice((1, 2, 4, 16, 256))
    content[start : start + size] = random_.choice((bytes(size), b"\xff" * size, random_.randbytes(size)))


def _integer(content: bytearray, random_: random.Random) -> None:
    """An aligned 16- or 32-bit integer at the end of its range, as a size or an offset may be."""
    code, size = random_.choice((("<h", 2), (">H", 2), ("<i", 4), (">I", 4)))
    value = random_.choice((0, 1, 0x7F)) if random_.random() < 0.5 else 2 ** (8 * size - 1) - 1
    start = _place(content, random_) // size * size
    content[start : start + size] = struct.pack(code, value)


def _cut(content: bytearray, random_: random.Random) -> None:
    del content[_place(content, random_) :]


def _remove(content: bytearray, random_: random.Random) -> None:
    start = _place(content, random_)
    del content[start : start + random_.choice((1, 4, 64, 4096))]


def _repeat(content: bytearray, random_: random.Random) -> None:
    start, size = _place(content, random_), random_.choice((1, 4, 64, 4096))
    content[start:start] = content[start : start + size]


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip_bit, _flip_bit, _overwrite, _overwrite, _integer, _integer),
    *(_cut, _remove, _repeat),
)
