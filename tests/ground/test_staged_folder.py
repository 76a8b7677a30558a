# SPDX-License-Identifier: Apache-2.0
"""A folder of files that belong together is all old or all new, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from progressive_cascade.io import staged_folder

OLD = {"list.json": "old", "ct/a": "old", "ct/b": "old", "the user's.txt": "old"}


def _fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_staged_folder_replaces_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    """Folders are replaced whole, so that nothing of an earlier run stays among new files; others are left alone."""
    _fill(tmp_path, OLD)
    with staged_folder(tmp_path, last=("list.json",)) as folder:
        _fill(folder, {"list.json": "new", "ct/a": "new"})
        assert _content(tmp_path)["list.json"] == "old"
    assert _content(tmp_path) == {"list.json": "new", "ct/a": "new", "the user's.txt": "old"}


def test_an_error_leaves_the_old_content_or_no_folder(tmp_path: Path) -> None:
    """Neither a half-filled folder nor an empty one stays."""
    _fill(tmp_path / "there", OLD)
    for name in ("there", "missing"):
        with pytest.raises(RuntimeError), staged_folder(tmp_path / name) as folder:
            _fill(folder, {"list.json": "new"})
            raise RuntimeError
    assert _content(tmp_path / "there") == OLD
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_kill_leaves_the_old_content_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    """SIGKILL between two files of the new content: what has a visible name is old."""
    _fill(tmp_path, OLD)
    code = (
        "import sys, time\nfrom progressive_cascade.io import staged_folder\n"
        "with staged_folder(sys.argv[1], last=('list.json',)) as folder:\n"
        "    (folder / 'list.json').write_text('new')\n    print('ready', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    left = _content(tmp_path)
    assert {name: text for name, text in left.items() if not name.startswith(".")} == OLD
    assert len(left) == len(OLD) + 2, "the new list, and the lock"
    with staged_folder(tmp_path):
        pass
    assert _content(tmp_path) == OLD
