# SPDX-License-Identifier: Apache-2.0
"""A dataset folder's list of cases: sections, patients, files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError
from progressive_cascade.io import nifti_stem, read_json

SECTIONS = ("training", "validation", "test")


DATALIST = "datalist.json"
"""Name of a dataset folder's list of cases."""


MANIFEST = "manifest.csv"
"""Name of a dataset folder's record of what became of every input."""


def load_datalist(dataset_dir: str | os.PathLike[str], section: str) -> list[dict[str, str]]:
    """Reads one section of a dataset folder.

    Args:
        dataset_dir: folder written by :func:`~progressive_cascade.ct.prepare.prepare_dataset`.
        section: `training`, `validation` or `test`.

    Returns:
        One item per case, with absolute paths `label` and `valid`, the names `patient` and `case`, and `version`,
        which changes with the files: a cache that knows a case by its item does not take an old one for a new one.

    Raises:
        FileNotFoundError: where the datalist or a file it names is missing.
        UserError: where the section is empty, a patient is in two sections, or nobody can be held out.
    """
    check_section(section)
    root = Path(dataset_dir).resolve()
    datalist = read_datalist(root)
    patients = {name: {item["patient"] for item in datalist[name]} for name in SECTIONS}
    for name in SECTIONS:
        shared = patients[section] & patients[name] if name != section else set()
        if shared:
            raise UserError(f"{root / DATALIST}: {section} and {name} must not share patients, got {sorted(shared)}")
    items = [_absolute_item(item, root) for item in datalist[section]]
    if not items:
        everyone = sorted(set().union(*patients.values()))
        hint = f"; a single patient, {everyone[0]!r}, cannot be split" if len(everyone) == 1 else ""
        raise UserError(f"{root / DATALIST} must list at least one case under {section!r}, got none{hint}")
    return items


def read_datalist(dataset_dir: str | os.PathLike[str]) -> dict[str, list[dict[str, str]]]:
    """Reads a dataset folder's list as it stands: by section, every case's texts, its patient among them.

    Args:
        dataset_dir: folder with the list.

    Returns:
        All of :data:`SECTIONS`, empty where the file has none.

    Raises:
        FileNotFoundError: where there is no list.
        UserError: where it is anything else; the place is named.
    """
    path = Path(dataset_dir) / DATALIST
    datalist = read_json(path, "datalist")
    if not isinstance(datalist, dict):
        raise UserError(f"{path} must map section names to lists, got {type(datalist).__name__}")
    sections = {name: datalist.get(name, []) for name in SECTIONS}
    for name, items in sections.items():
        if not isinstance(items, list):
            raise UserError(f"{path}: {name} must be a list of cases, got {type(items).__name__}")
        for index, item in enumerate(items):
            _check_item(item, f"{path}: case {index} of {name}")
            item["patient"] = _patient(item)
    return sections


def _check_item(item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise UserError(f"{place} must be an object, got {type(item).__name__}")
    for key in ("label", "valid", "patient"):
        if not isinstance(item.get(key, ""), str):
            raise UserError(f"{place} must have a text as {key!r}, got {item[key]!r}")


def check_section(section: str) -> None:
    """Refuses a name that is no section."""
    if section not in SECTIONS:
        raise UserError(f"section must be one of {', '.join(SECTIONS)}, got {section!r}")


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
    stats = [os.stat(path) for path in paths.values()]
    version = " ".join(f"{stat.st_size}-{stat.st_mtime_ns}" for stat in stats)
    return {**paths, "patient": _patient(item), "case": nifti_stem(item["label"]), "version": version}
