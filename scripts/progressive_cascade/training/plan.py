# SPDX-License-Identifier: Apache-2.0
"""What a stage is about to do, before hours are spent on it: data, places, steps, disk, memory, time."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
from monai.bundle import ConfigParser
from nibabel.filebasedimages import ImageFileError

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE
from progressive_cascade.training.checkpoints import load_predecessor
from progressive_cascade.training.measure import measure_lines

# Weights, average and the optimizer's two moments, each float32.
_STATE_BYTES_PER_WEIGHT = 16
# Of a cached CT: int16 HU and uint8 validity.
_CACHE_BYTES_PER_VOXEL = 3


def plan_stage(config: ConfigParser, *, processes: int = 1, predecessor_follows: bool = False) -> list[str]:
    """Checks what a stage needs, as its run will; tries one step; and says what the run takes, with the arithmetic.

    Args:
        config: the stage's files and overrides, not yet parsed.
        processes: how many will train.
        predecessor_follows: the stage before is trained by the same command, so that its weights need not be there.

    Returns:
        Lines to print.

    Raises:
        UserError: for what :func:`check_start` and the predecessor's checks refuse.
        RunError: if a step does not fit into the memory.
    """
    lines = check_start(config, processes=processes)
    predecessor = config.get_parsed_content("predecessor")
    grow, grow_from = (config.get_parsed_content(name) for name in ("grow", "grow_from"))
    if (predecessor is not None or grow) and not predecessor_follows:
        load_predecessor(config.get_parsed_content("network_def"), predecessor, grow, grow_from)
        lines.append(f"  predecessor: {predecessor if predecessor is not None else grow_from} fits")
    with TemporaryDirectory() as elsewhere:  # trying writes nothing where the run will
        trial = ConfigParser(deepcopy(config.get()))
        trial.update(dict.fromkeys(("ckpt_dir", "log_dir", "cache_dir"), elsewhere))
        return [*lines, *measure_lines(trial, steps=count_steps(config, processes))]


def check_start(config: ConfigParser, *, processes: int = 1) -> list[str]:
    """What is checked before any step: every file of the data, places to write to, room on the disk.

    Args:
        config: of a stage.
        processes: how many will train.

    Returns:
        What was found, as lines to print.

    Raises:
        UserError: if a file cannot be opened or was not prepared, one case stands under two patients, a folder cannot
            be written, or the disk is too small.
    """
    training, validation = (config.get_parsed_content(f"{part}#dataset#data") for part in ("train", "validate"))
    check_cases([*training, *validation])
    for name in ("ckpt_dir", "log_dir"):
        check_place(name, Path(config.get_parsed_content(name)))
    names = ("epochs", "batch_size", "simulation_grid", "keep_checkpoints")
    epochs, batch, grid, keep = (config.get_parsed_content(name) for name in names)
    steps = count_steps(config, processes)
    weights = sum(value.numel() for value in config.get_parsed_content("network_def").parameters())
    kinds = {str(item.get("label", item.get("seed"))) for item in [*training, *validation]}
    cache, states = len(kinds) * grid**3 * _CACHE_BYTES_PER_VOXEL, (keep + 1) * weights * _STATE_BYTES_PER_WEIGHT
    folder = Path(config.get_parsed_content("cache_dir"))
    free = shutil.disk_usage(_existing(folder)).free
    held = sum(file.stat().st_size for file in folder.rglob("*.pt")) if folder.is_dir() else 0
    if max(0, cache - held) + states > free:
        raise UserError(f"{folder} must have room for {(cache + states) / 1e9:.2f} GB, got {free / 1e9:.2f} GB free")
    return [
        f"  data: {_count(training)} for training, {_count(validation)} for validation; every file was opened",
        f"  steps: {epochs} epochs x {steps} = {epochs * steps}, "
        f"of {batch} x {processes} = {batch * processes} cases each",
        f"  disk: cache {len(kinds)} cases x {grid}^3 voxels x {_CACHE_BYTES_PER_VOXEL} bytes = {cache / 1e9:.2f} GB, "
        f"states "
        f"({keep} + 1) x {weights / 1e6:.2f} M weights x {_STATE_BYTES_PER_WEIGHT} bytes = {states / 1e9:.2f} GB, "
        f"free {free / 1e9:.1f} GB",
    ]


def count_steps(config: ConfigParser, processes: int) -> int:
    """Steps of one epoch."""
    cases = config.get_parsed_content("epoch_size") or len(config.get_parsed_content("train#dataset#data"))
    return math.ceil(cases / (config.get_parsed_content("batch_size") * processes))


def check_place(name: str, folder: Path) -> None:
    """Refuses a folder that cannot be made or written.

    Raises:
        UserError: naming the setting and the folder.
    """
    existing = _existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{name} must be a folder that can be written, got {folder}: {existing} cannot")


def check_cases(items: Sequence[Mapping[str, Any]]) -> None:
    """Opens every CT and its mask, and looks for a name that stands for two.

    Raises:
        UserError: naming the file and what was expected.
    """
    patients: dict[str, str] = {}
    for item in {str(item["label"]): item for item in items if "label" in item}.values():
        case, patient = item["case"], item["patient"]
        if patients.setdefault(case, item["label"]) != item["label"]:
            raise UserError(f"case {case} must be one CT, got {patients[case]} and {item['label']} of {patient}")
        for key in ("label", "valid"):
            try:
                shape = nib.load(item[key]).shape  # type: ignore[attr-defined]
            except (OSError, ImageFileError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{item[key]} must be a readable NIfTI image, got: {reason}") from error
            if shape != VOLUME_SHAPE:
                raise UserError(f"{item[key]} must be a prepared CT of {VOLUME_SHAPE} voxels, got {shape}")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in [folder, *folder.absolute().parents] if place.exists())


def _count(items: Sequence[Mapping[str, Any]]) -> str:
    cts = {item["label"] for item in items if "label" in item}
    phantoms = {item["seed"] for item in items if "seed" in item}
    repeated = "" if len(items) == len(cts) + len(phantoms) else f", {len(items)} with repetitions"
    return f"{len(cts)} CTs and {len(phantoms)} phantoms{repeated}"
