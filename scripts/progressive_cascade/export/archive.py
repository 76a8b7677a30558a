# SPDX-License-Identifier: Apache-2.0
"""Folders and archives that are complete or absent, and the same bytes for the same content."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from progressive_cascade.errors import UserError
from progressive_cascade.io import sync

SIZE_LIMIT = 25 * 1024 * 1024
"""Bytes a file in the model zoo may have."""
LARGE_FILES = "large_files.yml"
"""Where the zoo is told of larger ones."""
# The earliest date that a zip archive can hold; what is newer than its content would differ from run to run.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Yields an empty folder; what stands in it moves into ``output`` only when the block succeeds.

    Args:
        output: folder to fill, made where it is missing.

    Raises:
        UserError: if ``output`` is not empty.
    """
    check_empty(output)
    existing = output.absolute()
    while not existing.exists():
        existing = existing.parent
    # On the same file system, so that moving is renaming.
    temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=existing))
    try:
        yield temporary
        for file in files_in(temporary):
            sync(temporary / file)
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(temporary.iterdir()):
            path.rename(output / path.name)
        sync(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_empty(output: Path) -> None:
    """Refuses a folder that something lies in already.

    Raises:
        UserError: naming the folder and what was found.
    """
    found = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if found:
        raise UserError(f"--output must be a new or an empty folder, got {output} with {found[0]} in it")


def write_zip(folder: Path, path: Path) -> None:
    """Packs a folder under its own name; the same content gives the same bytes.

    Args:
        folder: what to pack.
        path: the archive.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in files_in(folder):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.as_posix()}", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, (folder / file).read_bytes())


def write_large_files(folder: Path, url: str) -> list[Path]:
    """Lists the files above the zoo's limit in ``large_files.yml``, where there are any.

    Args:
        folder: the bundle.
        url: where the large files will be hosted, without their names; empty: left open.

    Returns:
        The large files, relative to the folder.
    """
    large = [file for file in files_in(folder) if (folder / file).stat().st_size > SIZE_LIMIT]
    if large:
        lines = ["large_files:"]
        for file in large:
            address = f"{url.rstrip('/')}/{file.name}" if url else ""
            lines += [
                f'  - path: "{file.as_posix()}"',
                f'    url: "{address}"',
                f'    hash_val: "{sha256((folder / file).read_bytes())}"',
                '    hash_type: "sha256"',
            ]
        (folder / LARGE_FILES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return large


def files_in(folder: Path) -> list[Path]:
    """Files below a folder, relative to it, sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def read_published(path: Path) -> dict[str, bytes]:
    """The files of a bundle that is a folder or an archive of one folder, by name relative to that folder.

    Raises:
        UserError: if there is none.
    """
    if path.is_dir():
        return {file.as_posix(): (path / file).read_bytes() for file in files_in(path)}
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise UserError(f"--published must be a bundle's folder or zip archive, got {path}")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        return {name.partition("/")[2]: archive.read(name) for name in names}


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()
