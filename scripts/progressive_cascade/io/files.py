# SPDX-License-Identifier: Apache-2.0
"""Files that are either complete or absent."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from progressive_cascade.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary name beside `path`; the file takes its real name only when the block succeeds.

    An interrupted program, or a machine that loses power, therefore never leaves a half-written file under a name
    that somebody reads: the old file stays until the new one is on the disk. The temporary name is hidden and keeps
    the suffix, because writers choose the format by it.

    Args:
        path: the file to be written; missing folders are made.

    Raises:
        UserError: where the folder cannot be made or written.
    """
    target = Path(path)
    temporary = temporary_name(target)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside a file, whose folder is made where it is missing.

    Raises:
        UserError: where the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {path.parent} must be writable, got: {reason(error)}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"output folder {path.parent} must be writable, got: permission denied")
    return path.with_name(f".{uuid.uuid4().hex[:12]}{suffix_of(path.name)}")


def is_temporary_name(path: Path) -> bool:
    """Whether a name is one of :func:`temporary_name`."""
    return re.fullmatch(r"\.[0-9a-f]{12}(\..*)?", path.name) is not None


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and os.path.isdir(path):  # Windows opens no folders, and keeps their names itself
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def suffix_of(name: str) -> str:
    """A file name's suffix; `.nii.gz` is one."""
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
