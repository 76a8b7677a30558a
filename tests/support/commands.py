# SPDX-License-Identifier: Apache-2.0
"""The command line from a test's side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from progressive_cascade.cli import main


def fails_with(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail, and returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("progressive-cascade: error: ")
    return lines[0]


def load_image(path: Path) -> Any:
    """A NIfTI file as nibabel reads it."""
    return nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
