# SPDX-License-Identifier: Apache-2.0
"""Caches of a stage's cases, filled by many before one trains: phantoms are generated, CTs brought to the grid."""

from __future__ import annotations

from copy import copy
from pathlib import Path

from monai.bundle import ConfigParser

from progressive_cascade.ct.workers import Workers
from progressive_cascade.training.stream import CaseDataset


def fill_caches(config: ConfigParser, workers: Workers) -> int:
    """Puts every training and validation case of a stage into its cache, where it is not yet.

    Args:
        config: the stage's files and overrides, not yet parsed.
        workers: who does it; they see the same files.

    Returns:
        How many cases there are.

    Raises:
        RunError: if a case cannot be read.
        UserError: if a scheduler does not answer.
    """
    jobs = []
    for part in ("train", "validate"):
        dataset: CaseDataset = config.get_parsed_content(f"{part}#dataset")
        for item in dataset.data:  # a job carries its own item, not all of them
            alone = copy(dataset)
            alone.data, alone.cache_dir = [item], Path(dataset.cache_dir or ".").absolute()
            jobs.append(alone)
    return sum(1 for _ in workers.run(_keep, jobs))


def _keep(dataset: CaseDataset) -> None:
    """Reads the one case, which leaves it in the cache."""
    dataset[0]
