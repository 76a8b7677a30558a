# SPDX-License-Identifier: Apache-2.0
"""Files that belong together and take their names together, also when the program is killed in between.

They are written into a hidden folder first, the stage. A list of moves, which appears there in one moment, is the
decision: a kill before it leaves the old files as they were, a kill after it leaves moves that the next run finishes.
While files take their names, old ones go before new ones come, so that no name of a new file ever stands beside one of
an old file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from progressive_cascade.errors import UserError
from progressive_cascade.io.files import atomic_path, is_temporary_name, reason, sync, temporary_name

STAGE = ".unfinished-"
"""How the names of stages begin."""
_LOCK, _MOVES, _ELSEWHERE, _NEW, _OLD = "lock", "moves.json", "elsewhere.json", "new", "old"
# A stage without a lock is one that is being made, or whose maker was killed at that.
MAKING_S = 60


@contextmanager
def atomic_paths(
    *paths: str | os.PathLike[str], obsolete: Iterable[str | os.PathLike[str]] = ()
) -> Iterator[list[Path]]:
    """Yields temporary names for files that belong together; all are replaced, or none, see the module.

    Args:
        paths: the files to be written; the block must write each. They take their names in this order, so that the
            last one, once there, says that all are.
        obsolete: files of an earlier run that do not belong to the new ones; removed when the block succeeds.

    Raises:
        UserError: where a folder cannot be made or written.
    """
    targets = [Path(path).absolute() for path in paths]
    for folder in {target.parent for target in targets}:
        _make(folder)
    with _stage(targets[0].parent) as stage:
        names = _temporary_names(targets, stage)
        elsewhere = [name for name in names if stage not in name.parents]
        _note(stage, elsewhere)
        try:
            yield names
            _decide(stage, list(zip(names, targets, strict=True)), [Path(path).absolute() for path in obsolete])
        finally:
            for name in elsewhere:
                name.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: str | os.PathLike[str], *, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yields an empty folder whose content moves into `folder` when the block succeeds, see the module.

    Args:
        folder: made where it is missing. What is there of the same names is replaced, folders as a whole.
        last: names of files that list the others. Old ones go first and new ones come last, so that a list never
            stands beside what it does not describe.

    Raises:
        UserError: where the folder cannot be written.
    """
    target = Path(folder).absolute()
    existed = target.exists()
    _make(target)
    try:
        with _stage(target) as stage:
            yield stage / _NEW
            names = sorted(os.listdir(stage / _NEW), key=lambda name: (name in last, name))
            old_lists = [target / name for name in last if name not in names]
            _decide(stage, [(stage / _NEW / name, target / name) for name in names], old_lists)
    finally:
        if not existed and target.is_dir() and not any(target.iterdir()):
            target.rmdir()


def finish_writing(folder: str | os.PathLike[str], *, also: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Finishes what a killed program had decided to write into a folder, and removes what it had not.

    Stages of programs that still run, and folders that cannot be written, are left alone.

    Args:
        folder: where to look.
        also: files and folders outside of it that are about to be written. A list of moves that names any other is
            left alone: a folder somebody sent must not decide what is replaced here.
    """
    home, trusted = Path(os.path.realpath(folder)), {os.path.realpath(path) for path in also}
    with contextlib.suppress(OSError, ValueError, KeyError):
        for stage in sorted(home.glob(f"{STAGE}*")):
            with _abandoned(stage) as is_abandoned:
                if is_abandoned and not (stage / _MOVES).is_file():
                    _discard(stage)
                elif is_abandoned and _stays_inside(stage, trusted):
                    _move(stage)


def _stays_inside(stage: Path, trusted: set[str]) -> bool:
    """Whether a list of moves takes files of the stage (or beside their target) to its folder, or to trusted places."""
    moves, obsolete = _read_moves(stage)
    for path in [*(other for _, other in moves), *obsolete]:
        place = Path(os.path.realpath(path.parent)) / path.name
        if stage.parent not in place.parents and not trusted.intersection(map(str, (place, *place.parents))):
            return False
    return all(stage in Path(os.path.realpath(one)).parents or one.parent == other.parent for one, other in moves)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {folder} must be writable, got: {reason(error)}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output folder {folder} must be writable, got: permission denied")


@contextmanager
def _stage(home: Path) -> Iterator[Path]:
    """A locked stage in a folder; removed at the end, whatever happens in the block."""
    finish_writing(home)
    try:
        stage = Path(mkdtemp(prefix=STAGE, dir=home))
        (stage / _NEW).mkdir()
        descriptor = os.open(stage / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"output folder {home} must be writable, got: {reason(error)}") from error
    try:
        take_lock(descriptor)
        yield stage
    finally:
        os.close(descriptor)
        if not (stage / _MOVES).exists():
            shutil.rmtree(stage, ignore_errors=True)


def _temporary_names(targets: Sequence[Path], stage: Path) -> list[Path]:
    """Names in the stage, a folder for each of the targets' folders; beside the target on another disk."""
    folders = list(dict.fromkeys(target.parent for target in targets))
    device, names = stage.stat().st_dev, []
    for target in targets:
        if target.parent.stat().st_dev == device:
            place = stage / _NEW / str(folders.index(target.parent))
            place.mkdir(exist_ok=True)
            names.append(place / target.name)
        else:
            names.append(temporary_name(target))
    return names


def _note(stage: Path, elsewhere: Sequence[Path]) -> None:
    """Keeps which files of a stage lie elsewhere, for who removes it."""
    if elsewhere:
        with atomic_path(stage / _ELSEWHERE) as temporary:
            temporary.write_text(json.dumps([str(name) for name in elsewhere]), encoding="utf-8")


def _decide(stage: Path, moves: Sequence[tuple[Path, Path]], obsolete: Sequence[Path]) -> None:
    """Brings all that was written onto the disk, then the list of moves, then makes the moves."""
    for source, _ in moves:
        for path in [source, *(source.rglob("*") if source.is_dir() else ())]:
            sync(path)
    for folder in {source.parent for source, _ in moves} | {stage}:
        sync(folder)
    # Relative, so that a folder can be moved between a kill and the next run.
    below = [[os.path.relpath(path, stage.parent) for path in pair] for pair in moves]
    texts = {"moves": below, "obsolete": [os.path.relpath(path, stage.parent) for path in obsolete]}
    with atomic_path(stage / _MOVES) as temporary:
        temporary.write_text(json.dumps(texts), encoding="utf-8")
    sync(stage.parent)
    _move(stage)


def _move(stage: Path) -> None:
    """Old files go, in the reverse order, then new ones come; what was done before a kill is passed over."""
    moves, obsolete = _read_moves(stage)
    moves = [(one, other) for one, other in moves if os.path.lexists(one)]
    for path in [*(other for _, other in reversed(moves)), *obsolete]:
        if path.is_dir() and not path.is_symlink():
            (stage / _OLD).mkdir(exist_ok=True)
            os.replace(path, Path(mkdtemp(dir=stage / _OLD)) / path.name)
        else:
            path.unlink(missing_ok=True)
    for one, other in moves:
        os.replace(one, other)
    for folder in {other.parent for _, other in moves}:
        sync(folder)
    # The list goes first: without it a stage is only rubbish, whatever of it is left.
    (stage / _MOVES).unlink()
    shutil.rmtree(stage, ignore_errors=True)


def _read_moves(stage: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """What a stage's list says: files that take other names, and files that go."""
    texts = json.loads((stage / _MOVES).read_text(encoding="utf-8"))
    home = stage.parent
    places = [tuple(Path(os.path.normpath(home / name)) for name in pair) for pair in texts["moves"]]
    return [(one, other) for one, other in places], [Path(os.path.normpath(home / name)) for name in texts["obsolete"]]


def _discard(stage: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        for name in json.loads((stage / _ELSEWHERE).read_text(encoding="utf-8")):
            if is_temporary_name(Path(name)):
                Path(name).unlink(missing_ok=True)
    shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def _abandoned(stage: Path) -> Iterator[bool]:
    """Whether the program that made a stage is gone; no other can take the stage up meanwhile."""
    try:
        descriptor = os.open(stage / _LOCK, os.O_RDWR)
    except OSError:
        yield stage.is_dir() and time.time() - stage.stat().st_mtime > MAKING_S
        return
    try:
        yield take_lock(descriptor)
    finally:
        os.close(descriptor)


def take_lock(descriptor: int) -> bool:
    """Takes the lock of an open file, which the system takes back when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: an open file cannot be removed there, which keeps a living stage as well
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
