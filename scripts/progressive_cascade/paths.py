# SPDX-License-Identifier: Apache-2.0
"""Where the bundle lies, and which files of the user's a program may write: none of its inputs, none that exists."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import mkdtemp

from progressive_cascade.errors import UserError
from progressive_cascade.io import sync

_PACKAGE = Path(__file__).resolve().parent
_STAGE = ".unfinished-"


def bundle_root() -> Path:
    """Folder that holds ``configs/`` and ``models/``.

    Looked for in this order: inside the package (an installed wheel), directly above (an exported bundle carries the
    package at its root, and may lie in a checkout), and two levels up (a checkout: ``scripts/`` beside ``bundle/``).

    Returns:
        The bundle's folder.

    Raises:
        FileNotFoundError: if none of the three places holds ``configs/metadata.json``.
    """
    candidates = (_PACKAGE / "bundle", _PACKAGE.parent, _PACKAGE.parents[1] / "bundle")
    for candidate in candidates:
        if (candidate / "configs" / "metadata.json").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"the bundle's configs/metadata.json must lie in one of {looked}, found in none")


def check_files(
    *, reads: Mapping[str, Path | None], writes: Mapping[str, Sequence[Path]], overwrite: bool = False
) -> None:
    """Refuses, before any work, to write into an input, over one, twice to one place, or over what exists.

    Links, symbolic and hard, and the case of names are seen through: places are compared by what they are on the disk.

    Args:
        reads: inputs, files or folders, by the option that names them; None for one that was not given.
        writes: files and folders that will be made, by the option that names them.
        overwrite: whether what exists may be replaced; an input never may.

    Raises:
        UserError: naming both options and the path.
    """
    places = [(option, Path(path)) for option, paths in writes.items() for path in paths]
    for option, path in places:
        for source, given in reads.items():
            if given is not None:
                _check_apart(option, path, source, Path(given))
    for (first, one), (second, other) in combinations(places, 2):
        if first != second and is_same_place(one, other):
            raise UserError(f"{second} must be another file than {first}, got {other} for both")
    existing = [(option, path) for option, path in places if os.path.lexists(path)]
    if existing and not overwrite:
        option, path = existing[0]
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UserError(f"{option} must not replace files, but {path} exists{more}; --overwrite replaces it")


@contextmanager
def staged_folder(folder: str | os.PathLike[str], *, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yields an empty folder whose content moves into `folder` when the block succeeds, in a moment.

    What is there, of the same names, is replaced then and not before: an interrupted program leaves the old content
    as it was. What one left behind is removed by the next.

    Args:
        folder: made where it is missing.
        last: names of files that list the others. Old ones go first and new ones come last, so that a list never
            stands beside what it does not describe.

    Raises:
        UserError: where the folder cannot be written.
    """
    target = Path(folder)
    existed = target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(f"{_STAGE}*"):
            shutil.rmtree(left, ignore_errors=True)
        stage = Path(mkdtemp(prefix=_STAGE, dir=target))
    except OSError as error:
        raise UserError(f"output folder {target} must be writable, got: {error.strerror}") from error
    try:
        yield stage
        new = sorted(os.listdir(stage), key=lambda name: (name in last, name))
        for name in last:
            (target / name).unlink(missing_ok=True)
        (stage / _STAGE).mkdir()
        for name in new:
            if (target / name).is_dir():
                os.replace(target / name, stage / _STAGE / name)
            os.replace(stage / name, target / name)
        sync(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and not any(target.iterdir()):
            target.rmdir()


def is_same_place(one: Path, other: Path) -> bool:
    """Whether two names are of one file or folder, which need not exist yet."""
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def lies_inside(path: Path, folder: Path) -> bool:
    """Whether a file or folder, which need not exist yet, lies in an existing folder or is that folder."""
    return folder.is_dir() and any(os.path.samefile(place, folder) for place in _existing_parents(path))


def _existing_parents(path: Path) -> Iterator[Path]:
    real = Path(os.path.realpath(path))
    return (place for place in (real, *real.parents) if place.exists())


def _check_apart(option: str, path: Path, source: str, given: Path) -> None:
    if is_same_place(path, given):
        raise UserError(f"{option} must be another file than {source}, got {path} for both")
    if lies_inside(path, given):
        raise UserError(f"{option} must lie outside of {source}, got {path} inside {given}")
    if lies_inside(given, path):
        raise UserError(f"{option} must not hold {source}, got {given} inside {path}")
