# SPDX-License-Identifier: Apache-2.0
"""Cases: what a network is trained, tested and run on, as items for MONAI datasets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

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
        UserError: where the section is empty, a patient is in two sections, or nobody can be held out.
    """
    _check_section(section)
    root = Path(dataset_dir).resolve()
    datalist = read_json(root / DATALIST)
    if not isinstance(datalist, dict):
        raise UserError(f"{root / DATALIST} must map section names to lists, got {type(datalist).__name__}")
    patients = {name: {_patient(item) for item in datalist.get(name, [])} for name in SECTIONS}
    for name in SECTIONS:
        shared = patients[section] & patients[name] if name != section else set()
        if shared:
            raise UserError(f"{root / DATALIST}: {section} and {name} must not share patients, got {sorted(shared)}")
    items = [_absolute_item(item, root) for item in datalist.get(section, [])]
    if not items:
        everyone = sorted(set().union(*patients.values()))
        hint = f"; a single patient, {everyone[0]!r}, cannot be split" if len(everyone) == 1 else ""
        raise UserError(f"{root / DATALIST} must list at least one case under {section!r}, got none{hint}")
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
    ct_share: float | None = None,
    mirror_cts: bool = False,
) -> list[dict[str, Any]]:
    """Items of CTs and phantoms together, for a MONAI `Dataset`, `CacheDataset` or `PersistentDataset`.

    Args:
        dataset_dir: prepared CTs, or None (or an empty string) for phantoms alone.
        section: `training`, `validation` or `test`.
        num_phantoms: phantoms to add.
        first_seed: seed of the first phantom; by default each section has seeds of its own (:data:`FIRST_SEEDS`).
        ct_share: share of the items that are CTs, 0 to 1, so that few CTs hold their own against many phantoms. Each
            is there at least once, the rarer kind repeatedly, unless the share is 0 or 1. It matters only where there
            are both. None: every case once.
        mirror_cts: give the CTs as mirror images, left for right. To a frozen earlier stage that remembers its CTs a
            mirror image is a new patient, with a new patient's errors: what a later stage must learn to mend.

    Returns:
        The items: CTs first, then phantoms.

    Raises:
        FileNotFoundError: where the datalist or a file it names is missing.
        UserError: where no item results, the share is none, or the dataset is inconsistent.
    """
    _check_section(section)
    if ct_share is not None and not 0 <= ct_share <= 1:
        raise UserError(f"ct_share must lie in [0, 1], got {ct_share}")
    cts: list[dict[str, Any]] = [*load_datalist(dataset_dir, section)] if dataset_dir else []
    if mirror_cts:
        cts = [{**item, "mirrored": True} for item in cts]
    phantoms = phantom_items(num_phantoms, FIRST_SEEDS[section] if first_seed is None else first_seed)
    if cts and phantoms and ct_share is not None:
        cts, phantoms = _mix(cts, phantoms, ct_share)
    items = [*cts, *phantoms]
    if not items:
        raise UserError(f"{section} items must not be empty: name a dataset_dir or set num_phantoms above 0")
    return items


def steps_per_epoch(dataloader: DataLoader, epoch_size: int | None = None) -> int:
    """Length of an epoch in steps, for every process alike.

    An engine goes on with the same pass over the data in its next epoch, so that short epochs draw from all cases
    without repeating one before the others had their turn.

    Args:
        dataloader: over this process's share of the data.
        epoch_size: cases per epoch, over all processes; None: one pass.

    Returns:
        The number of steps.

    Raises:
        UserError: if `epoch_size` is not positive.
    """
    if epoch_size is None:
        return len(dataloader)
    if epoch_size < 1:
        raise UserError(f"epoch_size must be a positive number of cases or null, got {epoch_size}")
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return math.ceil(epoch_size / ((dataloader.batch_size or 1) * processes))


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


def _mix(
    cts: list[dict[str, Any]], phantoms: list[dict[str, Any]], ct_share: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Repeats the kind that is too rare for the share."""
    if ct_share in (0, 1):
        return (cts, []) if ct_share else ([], phantoms)
    num_cts = max(len(cts), round(len(phantoms) * ct_share / (1 - ct_share)))
    num_phantoms = max(len(phantoms), round(num_cts * (1 - ct_share) / ct_share))
    return list(islice(cycle(cts), num_cts)), list(islice(cycle(phantoms), num_phantoms))


def _patient(item: Mapping[str, str]) -> str:
    """Whose CT it is: without a name, its own patient."""
    return item.get("patient") or nifti_stem(item.get("label", ""))


def _absolute_item(item: dict[str, str], root: Path) -> dict[str, str]:
    paths = {}
    for key in ("label", "valid"):
        if key not in item:
            raise UserError(f"{root / DATALIST}: every case must have {key!r}, got {item}")
        path = root / item[key]
        if not path.is_file():
            raise FileNotFoundError(f"{root / DATALIST}: {key} must be an existing file, got {path}")
        paths[key] = str(path)
    return {**paths, "patient": _patient(item), "case": nifti_stem(item["label"])}
