# SPDX-License-Identifier: Apache-2.0
"""Where the bundle lies, and which files of the user's a program may write: none of its inputs, none that exists.

Weights in the bundle are read as they were released or trained there, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from progressive_cascade.errors import UserError
from progressive_cascade.io import finish_writing
from progressive_cascade.io.released import check_not_retired, check_released, own_hashes, record_own

_PACKAGE = Path(__file__).resolve().parent


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


def check_shipped(path: str | os.PathLike[str]) -> None:
    """Refuses a file of the bundle's `models` that is neither as it was released nor as it was trained there.

    Of files that lie elsewhere only weights that today's network would misread are refused.

    Raises:
        UserError: naming the file, and both hashes where they differ.
    """
    path = Path(path)
    check_not_retired(path)
    if _lies_in_models(path):
        check_released(path, own=own_hashes(path.parent).values())


def record_trained(path: str | os.PathLike[str]) -> None:
    """Keeps the hash of what a training has written, if into the bundle's `models`: :func:`check_shipped` takes it."""
    if _lies_in_models(Path(path)):
        record_own(Path(path))


def _lies_in_models(path: Path) -> bool:
    return path.parent.resolve() == (bundle_root() / "models").resolve()


def check_files(
    *, reads: Mapping[str, Path | None], writes: Mapping[str, Sequence[Path]], overwrite: bool = False
) -> None:
    """Refuses, before any work, to write into an input, over one, twice to one place, or over what exists.

    Links, symbolic and hard, and the case of names are seen through: places are compared by what they are on the disk.
    What a killed program had decided to write into these folders is finished before.

    Args:
        reads: inputs, files or folders, by the option that names them; None for one that was not given.
        writes: files and folders that will be made, by the option that names them.
        overwrite: whether what exists may be replaced; an input never may.

    Raises:
        UserError: naming both options and the path.
    """
    places = [(option, Path(path)) for option, paths in writes.items() for path in paths]
    given_places = [Path(given) for given in reads.values() if given is not None]
    for folder in {path if path.is_dir() else path.parent for path in (*given_places, *(path for _, path in places))}:
        finish_writing(folder, also=[path for _, path in places])
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
