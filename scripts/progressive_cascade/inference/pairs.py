# SPDX-License-Identifier: Apache-2.0
"""Pairs of radiographs in folders, as items for MONAI datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError


def xray_pair_items(dataset_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Pairs of radiographs: the folder itself, or each sub-folder, that holds `pa.nii.gz` and `lateral.nii.gz`.

    Args:
        dataset_dir: folder of one patient, or of one folder per patient.

    Returns:
        Items with the paths `pa`, `lateral` and `geometry` (None without a `geometry.json`) and the name `case`.

    Raises:
        FileNotFoundError: where there is no such folder.
        UserError: where one view of a pair is missing, or no pair is found.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir must be an existing folder, got {root}")
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    items = []
    for folder in folders:
        views = {view: folder / f"{view}.nii.gz" for view in ("pa", "lateral")}
        present = [view for view, path in views.items() if path.is_file()]
        if len(present) == 1:
            raise UserError(f"{folder} must hold pa.nii.gz and lateral.nii.gz, got only {present[0]}.nii.gz")
        if present:
            geometry = folder / "geometry.json"
            found = {view: str(path) for view, path in views.items()}
            items.append(
                {**found, "geometry": str(geometry) if geometry.is_file() else None, "case": folder.resolve().name}
            )
    if not items:
        raise UserError(f"{root} must hold pa.nii.gz and lateral.nii.gz, or folders that do, got none")
    return items
