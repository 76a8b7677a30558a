# SPDX-License-Identifier: Apache-2.0
"""Cases: what a network is trained, tested and run on, as items for MONAI datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.io import nifti_stem, read_json

SECTIONS = ("training", "validation", "test")
FIRST_SEEDS = {"training": 0, "validation": 1_000_000, "test": 2_000_000}
"""First phantom seed of each section, far enough apart that no phantom is ever in two."""
DATALIST = "datalist.json"
"""Name of a dataset folder's list of cases."""
MANIFEST = "manifest.csv"
"""Name of a dataset folder's record of what became of every input."""


def load_datalist(dataset_dir: str | os.PathLike[str], section: str) -> list[dict[str, str]]:
    """Reads one section of a dataset folder.

    Args:
        dataset_dir: folder written by :func:`~progressive_cascade.preparation.prepare_dataset`.
        section: `training`, `validation` or `test`.

    Returns:
        One item per case, with absolute paths `label` and `valid` and the names `patient` and `case`.

    Raises:
        FileNotFoundError: where the datalist or a file it names is missing.
        UserError: where the section is empty, or a patient is in two sections.
    """
    _check_section(section)
    root = Path(dataset_dir).resolve()
    datalist = read_json(root / DATALIST)
    if not isinstance(datalist, dict):
        raise UserError(f"{root / DATALIST} must map section names to lists, got {type(datalist).__name__}")
    patients = {name: {item.get("patient", "") for item in datalist.get(name, [])} for name in SECTIONS}
    for name in SECTIONS:
        shared = patients[section] & patients[name] if name != section else set()
        if shared:
            raise UserError(f"{root / DATALIST}: {section} and {name} must not share patients, got {sorted(shared)}")
    items = [_absolute_item(item, root) for item in datalist.get(section, [])]
    if not items:
        raise UserError(f"{root / DATALIST} must list at least one case under {section!r}, got none")
    return items


def phantom_items(num: int, first_seed: int = 0) -> list[dict[str, Any]]:
    """Items of `num` phantoms with consecutive seeds.

    Example:
        >>> phantom_items(2, first_seed=5)
        [{'seed': 5}, {'seed': 6}]
    """
    return [{"seed": seed} for seed in range(first_seed, first_seed + num)]


def training_items(
    dataset_dir: str | os.PathLike[str] | None = None,
    section: str = "training",
    *,
    num_phantoms: int = 0,
    first_seed: int | None = None,
    ct_repeats: int = 1,
) -> list[dict[str, Any]]:
    """Items of CTs and phantoms together, for a MONAI `Dataset`, `CacheDataset` or `PersistentDataset`.

    Args:
        dataset_dir: prepared CTs, or None (or an empty string) for phantoms alone.
        section: `training`, `validation` or `test`.
        num_phantoms: phantoms to add.
        first_seed: seed of the first phantom; by default each section has seeds of its own (:data:`FIRST_SEEDS`).
        ct_repeats: how often each CT appears in one epoch, so that few CTs hold their own against many phantoms.

    Returns:
        The items: CTs first, then phantoms.

    Raises:
        FileNotFoundError: where the datalist or a file it names is missing.
        UserError: where no item results, or the dataset is inconsistent.
    """
    _check_section(section)
    cts = load_datalist(dataset_dir, section) * ct_repeats if dataset_dir else []
    items = [*cts, *phantom_items(num_phantoms, FIRST_SEEDS[section] if first_seed is None else first_seed)]
    if not items:
        raise UserError(f"{section} items must not be empty: name a dataset_dir or set num_phantoms above 0")
    return items


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


def _check_section(section: str) -> None:
    if section not in SECTIONS:
        raise UserError(f"section must be one of {', '.join(SECTIONS)}, got {section!r}")


def _absolute_item(item: dict[str, str], root: Path) -> dict[str, str]:
    paths = {}
    for key in ("label", "valid"):
        if key not in item:
            raise UserError(f"{root / DATALIST}: every case must have {key!r}, got {item}")
        path = root / item[key]
        if not path.is_file():
            raise FileNotFoundError(f"{root / DATALIST}: {key} must be an existing file, got {path}")
        paths[key] = str(path)
    case = nifti_stem(item["label"])
    return {**paths, "patient": item.get("patient", case), "case": case}
