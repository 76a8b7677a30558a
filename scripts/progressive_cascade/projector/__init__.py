# SPDX-License-Identifier: Apache-2.0
"""The DRR operator: line integrals of a volume for any pose, and the exact transpose.

``drr`` is the public face, which checks every argument; ``operator`` is A and its transpose on tensors, with autograd;
``plan`` decides on the host how a view is projected, by slices or ray by ray, and ``backends`` who runs the loops:
``torch_slices`` and ``torch_rays`` in plain torch, the reference; ``numba_backend`` with the loops of ``numba_slices``
and ``numba_rays`` on a CPU. ``posed`` adds the gradient for the pose, ``aligned`` is the form that compilers follow.
"""

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
