# SPDX-License-Identifier: Apache-2.0
"""Weights, read without running any code from their file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from progressive_cascade.errors import UserError
from progressive_cascade.io.files import reason


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a bare state dict without running any code from it; a file that changed since it was written is refused.

    Args:
        path: file written by ``torch.save``.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        UserError: if the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    _check_sums(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and EOF errors alike for a file that is none
        raise UserError(f"checkpoint {path} must be a torch state dict, got {type(error).__name__}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"checkpoint {path} must be a bare state dict of tensors, got {type(state).__name__}")
    return state


def _check_sums(path: Path) -> None:
    """Compares an archive's content with the checksums it was written with, which `torch.load` does not.

    Files that torch wrote before version 1.6 are no archives and have none.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > 2 * path.stat().st_size + (1 << 20):
                raise UserError(f"checkpoint {path} must hold its tensors as they are, got {size} bytes in fewer")
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} must be a whole file, got: {reason(error)}") from error
    if damaged is not None:
        raise UserError(f"checkpoint {path} must be as it was written, but {damaged} differs: copy it again")
