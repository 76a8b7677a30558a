# SPDX-License-Identifier: Apache-2.0
"""What was mended or assumed on reading a CT is said on the screen, by every command that reads one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade.cli import main
from tests.support.cube import place_coarsely
from tests.support.trunk import trunk_hu


@pytest.mark.parametrize("command", ["prepare", "simulate"])
def test_a_command_says_what_it_assumed_and_mended(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CT without a place is refused in one line; with --assume-spacing both notes are printed."""
    place_coarsely(monkeypatch)
    hu = trunk_hu().astype(np.float32)
    hu[:2, :2] = np.nan
    nib.save(nib.Nifti1Image(hu, None), tmp_path / "a.nii.gz")
    arguments = [command, str(tmp_path / "a.nii.gz"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "--assume-spacing" in capsys.readouterr().err.strip().splitlines()[-1]  # before it, a progress bar
    assert main([*arguments, "--assume-spacing", "3,3,5", "--overwrite"]) == 0
    printed = capsys.readouterr().out
    for note in ("voxels of 3 × 3 × 5 mm", "160 voxels (0.0%) were padding or not a number"):
        assert note in printed
    assert main([*arguments, "--assume-spacing", "3,3", "--overwrite"]) == 2
    assert "one length or three" in capsys.readouterr().err
