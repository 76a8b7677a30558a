# SPDX-License-Identifier: Apache-2.0
"""Laws of what a worker runs: it is the command line's `reconstruct`; and of the options of `serve`."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from progressive_cascade.cli import main
from progressive_cascade.cli.service import TOKEN, load_runner
from progressive_cascade.errors import UserError
from tests.support.commands import fails_with


def test_a_worker_gives_what_the_command_line_gives(
    xrays: Path, tmp_path: Path, cascade: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same voxels, a zip of all slices; and a mistake is told in the same line."""
    given, arguments = tmp_path / "input", []
    shutil.copytree(xrays, given)
    for name, file in (("pa", "pa.nii.gz"), ("lateral", "lateral.nii.gz"), ("geometry", "geometry.json")):
        arguments += [f"--{name}", f"input/{file}"]
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    rest = ["--refine", "0", "--no-report", "--output"]
    run = load_runner({"checkpoint": None, "device": "cpu", "zip": True})
    run([*arguments, *rest, "work/ct.nii.gz", "--dicom-output", "work/dicom"])
    assert main(["reconstruct", *arguments, *rest, "alone/ct.nii.gz"]) == 0
    hashes = [hashlib.sha256(Path(name, "ct.nii.gz").read_bytes()).digest() for name in ("work", "alone")]
    assert hashes[0] == hashes[1]
    assert len(zipfile.ZipFile("work/dicom.zip").namelist()) == 32
    Path("input/pa.nii.gz").write_bytes(b"-")
    with pytest.raises(UserError, match=r"^pa must"):
        run([*arguments, *rest, "work/more.nii.gz"])


def test_serve_listens_elsewhere_with_a_token_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, or with a weak one, it does not start."""
    monkeypatch.delenv(TOKEN, raising=False)
    assert "token" in fails_with(capsys, "serve", "--host", "0.0.0.0", "--data", tmp_path / "data")
    (tmp_path / "token").write_text("short")
    assert "16" in fails_with(capsys, "serve", "--token-file", tmp_path / "token", "--data", tmp_path / "data")
    assert "--checkpoint" in fails_with(capsys, "serve", "--checkpoint", tmp_path / "no.pt", "--data", tmp_path / "d")
    assert not (tmp_path / "data").exists()
