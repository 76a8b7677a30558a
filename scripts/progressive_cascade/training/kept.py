# SPDX-License-Identifier: Apache-2.0
"""Files of a run's state: whole or absent, with a checksum inside, the newest whole one found."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from progressive_cascade.errors import RunError, UserError
from progressive_cascade.io import atomic_path

_NAME = re.compile(r"step_(\d+)\.pt")
# torch's files are ZIP archives, which end in the length of a comment and the comment: a place for a checksum.
_MARK = b"sha256:"
_COMMENT_BYTES = len(_MARK) + 64


def state_path(folder: Path, step: int) -> Path:
    """Where the state after a step is kept."""
    return folder / f"step_{step:08d}.pt"


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes a state that ``torch.load`` reads, under a temporary name first, with its own checksum at the end.

    Raises:
        RunError: where it cannot be written; those there were are untouched.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    content = content[:-2] + struct.pack("<H", _COMMENT_BYTES)
    checksum = _MARK + hashlib.sha256(content).hexdigest().encode()
    others = list_states(path.parent)
    write_whole(content + checksum, path, note=f"; {others[0].name} before it is whole" if others else "")


def write_whole(content: bytes, path: Path, *, note: str = "") -> None:
    """Writes a file whole or not at all.

    ``torch.save`` by itself answers a full disk with an error that does not say so.

    Args:
        content: of the file.
        path: its name.
        note: what to add to the message.

    Raises:
        RunError: where it cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except (OSError, UserError) as error:
        raise RunError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}{note}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Reads a state, after its checksum has been compared.

    Raises:
        RunError: if the file is not what was written.
    """
    try:
        content = path.read_bytes()
        body, comment = content[:-_COMMENT_BYTES], content[-_COMMENT_BYTES:]
        if comment != _MARK + hashlib.sha256(body).hexdigest().encode():
            raise RunError(f"{path} is damaged: its checksum does not fit ({len(content)} bytes)")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error


def list_states(folder: Path) -> list[Path]:
    """All states of a folder, the newest first."""
    names = [name for name in os.listdir(folder) if _NAME.fullmatch(name)] if folder.is_dir() else []
    return [folder / name for name in sorted(names, key=_step, reverse=True)]


def whole_states(folder: Path) -> Iterator[tuple[Path, dict[str, Any], list[str]]]:
    """The states that can be read, newest first: file, content, and what is wrong with those that were passed over."""
    damaged: list[str] = []
    for path in list_states(folder):
        try:
            state = load_state(path)
        except RunError as error:
            damaged.append(str(error))
        else:
            yield path, state, damaged


def _step(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else -1
