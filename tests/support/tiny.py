# SPDX-License-Identifier: Apache-2.0
"""Settings that make of any workflow a miniature of seconds."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_day.commands import MINIATURE

TINY: dict[str, Any] = {
    **MINIATURE,
    "num_phantoms": 1,
    "num_validation_phantoms": 1,
    "batch_size": 1,
    "epochs": 1,
    "amp": False,
}
"""One step of the smallest cascade."""
