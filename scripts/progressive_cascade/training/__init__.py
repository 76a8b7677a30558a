# SPDX-License-Identifier: Apache-2.0
"""What training workflows are made of: cases, batches, handlers, checkpoints; the small networks' training."""

from __future__ import annotations

from progressive_cascade.training.cases import Case, load_case
from progressive_cascade.training.checkpoints import (
    AverageWeights,
    HalfPrecisionState,
    load_predecessor,
)
from progressive_cascade.training.data import FIRST_SEEDS, phantom_items, steps_per_epoch, training_items
from progressive_cascade.training.engine import MaskedPSNR, StageObjective
from progressive_cascade.training.handlers import ClipGradients
from progressive_cascade.training.resume import ResumableCheckpoint
from progressive_cascade.training.simulation import SimulateBatch
from progressive_cascade.training.transforms import LoadCased

__all__ = [
    "FIRST_SEEDS",
    "AverageWeights",
    "Case",
    "ClipGradients",
    "HalfPrecisionState",
    "LoadCased",
    "MaskedPSNR",
    "ResumableCheckpoint",
    "SimulateBatch",
    "StageObjective",
    "load_case",
    "load_predecessor",
    "phantom_items",
    "steps_per_epoch",
    "training_items",
]
