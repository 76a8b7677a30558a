# SPDX-License-Identifier: Apache-2.0
"""Cases: what a network is trained, tested and run on, as items for MONAI datasets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import accumulate, cycle, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from progressive_cascade.ct.datalist import check_section, load_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.phantom import parse_population

FIRST_SEEDS = {"training": 0, "validation": 1_000_000, "test": 2_000_000}
"""First phantom seed of each section, far enough apart that no phantom is ever in two."""


def phantom_items(num: int, first_seed: int = 0, population: str = "basic") -> list[dict[str, Any]]:
    """Items of `num` phantoms with consecutive seeds.

    Args:
        num: how many.
        first_seed: of the first.
        population: what they are drawn from; an item names it unless it is `basic`, so that caches of `basic` last.

    Example:
        >>> phantom_items(2, first_seed=5)
        [{'seed': 5}, {'seed': 6}]
    """
    named = {} if population == "basic" else {"population": population}
    return [{"seed": seed, **named} for seed in range(first_seed, first_seed + num)]


def training_items(
    dataset_dir: str | os.PathLike[str] | None = None,
    section: str = "training",
    *,
    num_phantoms: int = 0,
    first_seed: int | None = None,
    ct_share: float | None = None,
    mirror_cts: bool = False,
    populations: Mapping[str, float] | None = None,
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
        populations: what the phantoms are drawn from (:func:`.phantom.parse_population`), each with its weight among
            them; None: all from `basic`.

    Returns:
        The items: CTs first, then phantoms.

    Raises:
        FileNotFoundError: where the datalist or a file it names is missing.
        UserError: where no item results, the share is none, or the dataset is inconsistent.
    """
    check_section(section)
    if ct_share is not None and not 0 <= ct_share <= 1:
        raise UserError(f"ct_share must lie in [0, 1], got {ct_share}")
    cts: list[dict[str, Any]] = [*load_datalist(dataset_dir, section)] if dataset_dir else []
    if mirror_cts:
        cts = [{**item, "mirrored": True} for item in cts]
    phantoms = _phantoms(num_phantoms, FIRST_SEEDS[section] if first_seed is None else first_seed, populations)
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


def _phantoms(num: int, first_seed: int, populations: Mapping[str, float] | None) -> list[dict[str, Any]]:
    """Phantoms of all populations, no seed twice."""
    weights = dict(populations or {"basic": 1.0})
    if not all(weight > 0 for weight in weights.values()):
        raise UserError(f"populations must have weights above 0, got {weights}")
    ends = [round(num * share / sum(weights.values())) for share in accumulate(weights.values())]
    items = []
    for name, start, end in zip(weights, [0, *ends], ends, strict=False):
        parse_population(name)
        items += phantom_items(end - start, first_seed + start, name)
    return items


def _mix(
    cts: list[dict[str, Any]], phantoms: list[dict[str, Any]], ct_share: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Repeats the kind that is too rare for the share."""
    if ct_share in (0, 1):
        return (cts, []) if ct_share else ([], phantoms)
    num_cts = max(len(cts), round(len(phantoms) * ct_share / (1 - ct_share)))
    num_phantoms = max(len(phantoms), round(num_cts * (1 - ct_share) / ct_share))
    return list(islice(cycle(cts), num_cts)), list(islice(cycle(phantoms), num_phantoms))
