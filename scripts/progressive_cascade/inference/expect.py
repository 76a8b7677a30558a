# SPDX-License-Identifier: Apache-2.0
"""The expected error of a reconstruction that was just made, by the calibration that belongs to its weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference.reconstruct import Reconstruction, load_cascade, wide_checkpoint
from progressive_cascade.inference.refine import REVISION
from progressive_cascade.inference.signs import looked_for_pose, measure_signs
from progressive_cascade.inference.trust import Trust, default_trust, load_trust, unknown
from progressive_cascade.inference.uncertainty import default_uncertainty, load_uncertainty, predict_sigma
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade


def expect_error(
    result: Reconstruction, beam: ConeBeam, network: ProgressiveCascade, checkpoint: Path
) -> dict[str, Any]:
    """What :meth:`.trust.Trust.expect` says of a reconstruction, or why nothing can be said.

    Args:
        result: the reconstruction.
        beam: the geometry it believes in.
        network: the cascade that made it.
        checkpoint: its file.

    Raises:
        UserError: if the calibration is damaged.
    """
    if not default_trust().is_file():
        return unknown("this bundle has no calibration of it")
    trust = load_trust()
    if reason := _reason(trust, result, checkpoint):
        return unknown(reason)
    device = network.projection_matrices.device.type
    second = None
    if network.geometry_range is None and trust.needs("second", "second_change", "second_residual"):
        second = _second_opinion(device, tuple(trust.checkpoints))
        if second is None:
            return unknown(f"this bundle lacks {wide_checkpoint().name} as it was calibrated with")
    sigma = None
    if trust.needs("sigma") and default_uncertainty().is_file():
        sigma = predict_sigma(result, beam, load_uncertainty(device=device))
    return trust.expect(measure_signs(result, beam, network, second=second, sigma=sigma))


def recalibrated(sigma: np.ndarray, hu: np.ndarray, sha256: str) -> np.ndarray:
    """Sigma by tissue, where the calibration knows the weights that made the reconstruction.

    Args:
        sigma: of :func:`.uncertainty.predict_sigma` [HU].
        hu: the reconstruction [HU].
        sha256: of its weights.
    """
    if not default_trust().is_file():
        return sigma
    trust = load_trust()
    if sha256 not in trust.checkpoints or file_hash(default_uncertainty()) != trust.uncertainty:
        return sigma
    return trust.recalibrate(sigma, hu)


def _reason(trust: Trust, result: Reconstruction, checkpoint: Path) -> str:
    """Why the calibration says nothing of this reconstruction; empty: it does."""
    own = file_hash(checkpoint)
    if own not in trust.checkpoints:
        known = " and ".join(trust.checkpoints.values())
        return f"it is calibrated for the released {known} alone, not for weights of SHA-256 {own[:8]}"
    report = result.refinement
    if trust.refine_revision != REVISION:
        return "it is calibrated for another way of refining; progressive-cascade calibrate makes it anew"
    if report is None or (report.stopped == "steps" and report.steps < trust.refine_steps):
        return f"it is calibrated for CTs refined in {trust.refine_steps} steps"
    if report.stopped == "unexplained":
        return "the X-rays are explained worse than those it is calibrated for"
    if looked_for_pose(report.calibration):
        return "it is calibrated for poses that are not looked for"
    return ""


@lru_cache(maxsize=2)
def _second_opinion(device: str, known: tuple[str, ...]) -> ProgressiveCascade | None:
    path = wide_checkpoint()
    return load_cascade(path, device) if path.is_file() and file_hash(path) in known else None
