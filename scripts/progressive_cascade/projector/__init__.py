# SPDX-License-Identifier: Apache-2.0
"""The DRR operator: line integrals of a volume for any pose, and the exact transpose."""

from progressive_cascade.projector.aligned import aligned_axes, project_aligned, transpose_aligned
from progressive_cascade.projector.backends import prefer_backend
from progressive_cascade.projector.drr import DRR, backproject, line_integrals
from progressive_cascade.projector.operator import project, transpose_project

__all__ = [
    "DRR",
    "aligned_axes",
    "backproject",
    "line_integrals",
    "prefer_backend",
    "project",
    "project_aligned",
    "transpose_aligned",
    "transpose_project",
]
