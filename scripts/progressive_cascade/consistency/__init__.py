# SPDX-License-Identifier: Apache-2.0
"""Make a volume agree with its radiographs: a differentiable layer, the solver behind it, and the agreement score."""

from progressive_cascade.consistency.agreement import agreement, estimate_noise
from progressive_cascade.consistency.layer import (
    DataConsistency,
    noise_regularization,
    shrink_radiographs,
    shrink_weights,
)
from progressive_cascade.consistency.solver import apply_projector, apply_transpose, program_axes, solve_consistency

__all__ = [
    "DataConsistency",
    "agreement",
    "apply_projector",
    "apply_transpose",
    "estimate_noise",
    "noise_regularization",
    "program_axes",
    "shrink_radiographs",
    "shrink_weights",
    "solve_consistency",
]
