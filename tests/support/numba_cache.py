# SPDX-License-Identifier: Apache-2.0
"""Fills numba's cache: `python -m tests.support.numba_cache` compiles once what all the tests' processes need.

Processes that begin at once would each compile it for themselves, most of a minute long.
"""

from __future__ import annotations

import numpy as np
import torch

from progressive_cascade import ConeBeam, backproject, line_integrals, volume_affine
from progressive_cascade.evaluation.metrics import PROTOCOLS, evaluate_volume
from progressive_cascade.projector import project

_SHAPE = (24, 24, 24)
_AFFINE = volume_affine(_SHAPE, 12.0)
_BEAM = ConeBeam(700.0, 1020.0, (32, 30), (14.0, 16.0), ("lao30_cranial15", "left_lateral"))


def compile_projectors(dtype: torch.dtype) -> None:
    """By slices, of volumes in any order of memory, and by rays with every gradient; both directions.

    Args:
        dtype: of volume and radiographs.
    """
    mu, values = torch.rand(1, 1, *_SHAPE, dtype=dtype), torch.rand(1, 2, *_BEAM.detector_shape, dtype=dtype)
    for volume in (mu, mu.transpose(2, 4), mu.movedim(2, 4).contiguous().movedim(4, 2)):
        line_integrals(volume.requires_grad_(), _BEAM, affine=_AFFINE, backend="numba").sum().backward()
    backproject(values, _BEAM, shape=_SHAPE, affine=_AFFINE, backend="numba")
    matrices = torch.from_numpy(_BEAM.projection_matrices())[None].requires_grad_()
    affines = torch.from_numpy(_AFFINE)[None]
    project(mu, matrices, affines, _BEAM.detector_shape, backend="numba").sum().backward()


def compile_metrics() -> None:
    """Every protocol, of either precision, with and without masks."""
    target = np.random.default_rng(0).uniform(-1000, 1000, _SHAPE)
    for volume in (target, target.astype(np.float32)):
        for protocol in PROTOCOLS:
            evaluate_volume(volume + 10, volume, protocol=protocol)
            evaluate_volume(volume + 10, volume, protocol=protocol, valid=volume > -500, body=volume < 500)


if __name__ == "__main__":
    for kind in (torch.float32, torch.float64):
        compile_projectors(kind)
    compile_metrics()
