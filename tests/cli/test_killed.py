# SPDX-License-Identifier: Apache-2.0
"""A kill, at any point of writing a case or a folder, never leaves files of two runs side by side."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.cli import results
from progressive_cascade.cli.results import CaseFiles, write_case
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.io import commits, finish_writing, staged_folder
from progressive_cascade.io.commits import STAGE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that has no lock yet is taken for a dead program's at once, not after a minute."""
    monkeypatch.setattr(commits, "MAKING_S", -1)


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
SHAPE = (2, 2, 2)


def _killed_at(point: int, folder: Path, write: Callable[[], None]) -> bool:
    """Runs `write` in a child that SIGKILLs itself before its `point`-th change below a folder; whether it did."""
    child = os.fork()
    if child == 0:
        left = [point]

        def count(event: str, arguments: tuple[object, ...]) -> None:
            if event in EVENTS and str(arguments[0]).startswith(str(folder)):
                if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                    return
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            write()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _seen(folder: Path) -> dict[str, bytes]:
    """What is there, without what is hidden."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder): path for path in paths}
    return {str(name): path.read_bytes() for name, path in names.items() if not any(p[0] == "." for p in name.parts)}


def _check_every_kill(folder: Path, old: Callable[[], None], new: Callable[[], None], kept: frozenset[str]) -> None:
    """Kills `new` over `old` at each point: old alone or new alone is seen, and the next run makes it whole."""

    def seen() -> dict[str, bytes]:
        return {name: text for name, text in _seen(folder).items() if name not in kept}

    old()
    before, start = seen(), folder.with_name("start")
    shutil.copytree(folder, start)
    new()
    after = set(seen())
    outcomes, point = set(), 0
    while True:
        point += 1
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        if not _killed_at(point, folder, new):
            break
        is_old = {before.get(name) == text for name, text in seen().items()}
        assert len(is_old) <= 1, (point, sorted(seen()))
        finish_writing(folder)
        whole = seen()
        is_old = {before.get(name) == text for name, text in whole.items()}
        assert len(is_old) == 1, (point, sorted(whole))
        assert set(whole) == (set(before) if is_old == {True} else after), point
        assert not list(folder.glob(f"{STAGE}*")), point
        outcomes |= is_old
    assert outcomes == {True, False}
    assert kept <= set(_seen(folder))


def _result(hu: int) -> Reconstruction:
    volume = np.full(SHAPE, hu, np.int16)
    image = np.full((2, 8, 8), hu, np.float32)
    return Reconstruction(volume, volume_affine(SHAPE, 1.4), {}, reprojected=image, image=image, calibrated=True)


def test_a_killed_case_is_all_old_or_all_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CT, sidecar, picture, radiographs, sigma, page and DICOM; an old page that is not made anew goes as well."""
    folder = tmp_path / "out"
    (folder / "series").mkdir(parents=True)
    for name in ("the user's.txt", "series/notes.txt"):
        (folder / name).write_text("kept")
    monkeypatch.setattr("progressive_cascade.report.volume_figure", lambda hu, _, path, **__: path.write_bytes(hu))
    monkeypatch.setattr("progressive_cascade.report.write_page", lambda case, path: path.write_bytes(case.hu))
    monkeypatch.setattr("progressive_cascade.cli.report.build_case", lambda result, *_, **__: result)
    monkeypatch.setattr(results, "write_uncertainty", lambda result, *_, output, **__: output.write_bytes(result.hu))

    def write(hu: int, page: Path | None) -> Callable[[], None]:
        files = CaseFiles(folder / "ct.nii.gz", page, sigma=folder / "sigma.nii.gz", dicom=folder / "series")
        head = object()
        return lambda: (
            write_case(_result(hu), ConeBeam(), files, record={"hu": hu, "checkpoint": {"sha256": "0" * 64}}, head=head)
            and None
        )  # type: ignore

    kept = frozenset({"the user's.txt", "series/notes.txt"})
    _check_every_kill(folder, write(1, folder / "ct.html"), write(2, folder / "ct.html"), kept)
    shutil.rmtree(tmp_path / "start")
    write(3, None)()
    assert not (folder / "ct.html").exists()


def test_a_killed_folder_of_lists_and_cases_is_all_old_or_all_new(tmp_path: Path) -> None:
    """What `prepare` and `evaluate` do: folders are replaced as a whole, lists speak of what is there."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "the user's.txt").write_text("kept")

    def write(text: str, cases: str) -> Callable[[], None]:
        def now() -> None:
            with staged_folder(folder, last=("list.json",)) as stage:
                (stage / "ct").mkdir()
                for name in ("list.json", "a.html", *(f"ct/{case}" for case in cases)):
                    (stage / name).write_text(text + name)

        return now

    _check_every_kill(folder, write("old", "abc"), write("new", "bd"), frozenset({"the user's.txt"}))


def test_a_living_program_keeps_its_stage_and_a_strangers_list_is_not_followed(tmp_path: Path) -> None:
    """Another run in the same folder takes nothing away; a list that names files elsewhere replaces nothing."""
    folder, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    with staged_folder(folder) as stage:
        (stage / "a").write_text("new")
        finish_writing(folder)
        with staged_folder(folder) as other:
            (other / "b").write_text("new")
    assert {path.name for path in folder.iterdir()} == {"a", "b"}
    sent = folder / f"{STAGE}sent"
    sent.mkdir()
    (sent / "lock").touch()
    (sent / "a").write_text("theirs")
    for move in (["sent/../../victim", "x"], [f"{STAGE}sent/a", "../victim"]):
        (sent / "moves.json").write_text(json.dumps({"moves": [move], "obsolete": []}))
        finish_writing(folder)
    (sent / "moves.json").write_text(json.dumps({"moves": [], "obsolete": ["../victim"]}))
    finish_writing(folder)
    assert victim.read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {"a", "b", sent.name}
