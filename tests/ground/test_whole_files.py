# SPDX-License-Identifier: Apache-2.0
"""Every file the package writes is whole or absent: no writer goes around `io.atomic_path`, and a kill proves it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import progressive_cascade
from progressive_cascade.io import atomic_paths, read_json, read_nifti, save_json, save_nifti

PACKAGE = Path(progressive_cascade.__file__).parent
WRITERS = {
    *("write_text", "write_bytes", "savefig", "to_filename", "WriteImage", "imsave", "imwrite", "save_as"),
    *("savez", "savez_compressed", "savetxt", "tofile", "copyfile", "copy2", "copytree", "dcmwrite"),
}
ATOMIC = {"atomic_path", "atomic_paths"}
STAGED = {
    *("export/bundle.py:_write", "export/archive.py:write_zip", "export/archive.py:write_large_files"),
    "export/dicom.py:write_dicom_series",
    *("export/programs.py:save_onnx", "export/programs.py:_strip_sources", "export/weights.py:_to_bytes"),
    *("report/stills.py:_address", "training/checkpoints.py:__call__", "training/kept.py:save_state"),
    *("training/stream.py:_cachecheck", "training/pictures.py:to_data_url"),
    *("export/serving.py:write_triton", "export/serving.py:write_application", "ct/prepare.py:_link"),
    *("cli/service.py:_pack", "service/app.py:_save", "service/cluster.py:write_files", "service/dicomweb.py:_take"),
    *("service/intake.py:take_pair", "service/intake.py:_take_json", "service/intake.py:_unpack"),
    *("service/watch.py:_reconstruct", "service/worker.py:main"),
}
"""Functions that write into a folder of the export, of a dataset or of a job, which is nobody's until all is there; or
into memory, or to standard output."""


def _writes(call: ast.Call) -> bool:
    """Whether a call can create or change a file."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "save":  # torch.save, np.save, nib.save, Image.save; a method of the same object is looked at itself
        return not (isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "self")
    modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    if name in ("open", "ZipFile", "TarFile", "fdopen"):
        return any(isinstance(mode, str) and len(mode) <= 3 and set(mode) & set("wax+") for mode in modes)
    return name in WRITERS


def _bypasses(tree: ast.AST, *, function: str = "", inside: bool = False) -> Iterator[tuple[str, int]]:
    """The function and line of every writing call that stands in no `with atomic_path(...)`."""
    for node in ast.iter_child_nodes(tree):
        name, within = function, inside
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = node.name
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            within = inside or any(getattr(call.func, "id", "") in ATOMIC for call in calls)
        if isinstance(node, ast.Call) and _writes(node) and not within:
            yield name, node.lineno
        yield from _bypasses(node, function=name, inside=within)


def test_no_writer_goes_around_atomic_path() -> None:
    """Each call that writes stands in a `with atomic_path(...)`, or fills an export's staging folder."""
    found = {
        f"{file.relative_to(PACKAGE).as_posix()}:{function}": line
        for file in sorted(PACKAGE.rglob("*.py"))
        for function, line in _bypasses(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert {name: line for name, line in found.items() if name not in STAGED} == {}
    assert set(found) >= STAGED, "a name in STAGED writes no longer: remove it"


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('a')",
        "open(path, 'w')",
        "open(path, mode='ab')",
        "torch.save(a, b)",
        "zipfile.ZipFile(path, 'w')",
    ],
)
def test_the_search_for_writers_finds_them(line: str) -> None:
    """The test above can fail: each kind of writing is seen, and not where it is atomic."""
    assert list(_bypasses(ast.parse(f"def f():\n    {line}"))) == [("f", 2)]
    assert not list(_bypasses(ast.parse(f"def f():\n    with atomic_path(p) as path:\n        {line}")))


_KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from progressive_cascade import io
volume = np.random.default_rng(1).normal(size=(96, 96, 96)).astype("float32")
print("ready", flush=True)
{write}
print("written", flush=True)
time.sleep(60)
"""
_WRITERS = {
    "ct.nii.gz": "io.save_nifti(volume, np.eye(4), sys.argv[1])",
    "weights.pt": "import torch\nwith io.atomic_path(sys.argv[1]) as path:\n"
    "    torch.save({'a': torch.from_numpy(volume)}, path)\n    time.sleep(60)",
}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize(("name", "older"), [("ct.nii.gz", b"the older file"), ("weights.pt", None)])
def test_a_kill_in_the_middle_of_writing_leaves_the_old_file_or_none(
    tmp_path: Path, name: str, older: bytes | None
) -> None:
    """SIGKILL while the temporary file grows: the real name holds all of the old content, or does not exist."""
    path = tmp_path / name
    if older is not None:
        path.write_bytes(older)
    code = _KILLED.format(write=_WRITERS[name])
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while not (growing := [file for file in tmp_path.glob(".*") if file.stat().st_size > 0]):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0]
    assert growing
    assert "written" not in rest, "the process finished before it was killed: the test proved nothing"
    assert (path.read_bytes() if path.exists() else None) == older


def test_files_that_belong_together_are_replaced_together(tmp_path: Path) -> None:
    """A failure at the second file leaves both old ones; success replaces both and removes what is obsolete."""
    volume, sidecar, stale = tmp_path / "ct.nii.gz", tmp_path / "ct.json", tmp_path / "exposure.json"
    for path in (volume, sidecar, stale):
        path.write_text("old")
    new = np.ones((2, 3, 4), np.int16)
    with pytest.raises(RuntimeError), atomic_paths(volume, sidecar, obsolete=[stale]) as (first, _):
        save_nifti(new, np.eye(4), first)
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("ct.nii.gz", "ct.json", "exposure.json"), "old"
    )
    with atomic_paths(volume, sidecar, obsolete=[stale]) as (first, second):
        save_nifti(new, np.eye(4), first)
        save_json({"a": 1}, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct.json", "ct.nii.gz"]
    np.testing.assert_array_equal(read_nifti(volume)[0], new)
    assert read_json(sidecar) == {"a": 1}


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content is synced, then renamed, then the folder is synced: what a power cut needs."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch_fsync(descriptor: int) -> None:
        steps.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        fsync(descriptor)

    def watch_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "replace", watch_replace)
    save_json({}, tmp_path / "a.json")
    assert steps == ["sync file", "rename", "sync folder"]
