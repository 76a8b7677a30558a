# SPDX-License-Identifier: Apache-2.0
"""One reconstruction against one CT of the same patient, wherever each of them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from progressive_cascade.ct.placement import PreparedCase, resample
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.alignment import Similarity, align
from progressive_cascade.evaluation.clinical import score_chests, segment_chest
from progressive_cascade.evaluation.metrics import BODY_HU, body_mask, parse_truth, score_volume

LEAST_OVERLAP = 0.5
"""Share of the CT's body that must lie in the reconstruction for their places to be believed."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, on the CT's cube.

    Attributes:
        hu: the reconstruction as it lies [HU], (x, y, z).
        scores: of it, named after their protocol, and ``clinical_`` ones (:func:`.clinical.score_chests`); none where
            it lies elsewhere.
        overlap: share of the CT's body that lies in the reconstruction.
        similarity: how it lay on the CT, where that was looked for.
        aligned: the reconstruction laid on the CT [HU].
        aligned_scores: of that.
    """

    hu: np.ndarray
    scores: dict[str, float]
    overlap: float
    similarity: Similarity | None = None
    aligned: np.ndarray | None = None
    aligned_scores: dict[str, float] | None = None


def compare(
    hu: np.ndarray,
    affine: np.ndarray,
    truth: PreparedCase,
    *,
    protocols: str | Sequence[str] = ("native",),
    similarity: bool = False,
) -> Comparison:
    """Score a reconstruction against a CT, by their places in the world, and after a similarity alignment.

    Args:
        hu: reconstruction (x, y, z) [HU], on any grid.
        affine: 4x4, its voxel index to RAS mm.
        truth: the CT on its cube (:func:`progressive_cascade.ct.placement.prepare_case`). What the scanner did not
            measure, or the reconstruction does not reach, does not count.
        protocols: see :func:`.metrics.parse_protocols`.
        similarity: also move, turn and scale the reconstruction onto the CT (:func:`.alignment.align`). Where they lie
            apart, their middles are laid on each other first.

    Returns:
        Both volumes' scores.

    Raises:
        UserError: where less than half of the CT's body lies in the reconstruction, and nothing is aligned.
        ValueError: see :func:`.metrics.parse_truth`.
    """
    body = np.asarray(body_mask(truth.hu)) & (truth.valid > 0)
    if not body.any():
        raise UserError(f"the CT must show a body, got no scanned voxel above {BODY_HU:g} HU")
    found, reached = _onto(hu, affine, truth)
    overlap = float(reached[body].mean())
    apart = overlap < LEAST_OVERLAP
    if not similarity:
        if apart:
            raise UserError(
                f"the reconstruction must lie on the CT in the patient's world, got {100 * overlap:.0f} % of the CT's "
                "body in it; where it does not know its place, align them"
            )
        return Comparison(found, _score(found, truth, truth.valid * reached, protocols), overlap)
    start = found
    if apart:
        start, _ = _onto(hu, _centred(affine, hu.shape, truth), truth)
    spacing = float(np.linalg.norm(truth.affine[:3, 0]))
    aligned, lay = align(start, truth.hu, spacing=spacing, valid=truth.valid)
    plain = {} if apart else _score(found, truth, truth.valid * reached, protocols)
    return Comparison(found, plain, overlap, lay, aligned, _score(aligned, truth, truth.valid, protocols))


def _onto(hu: np.ndarray, affine: np.ndarray, truth: PreparedCase) -> tuple[np.ndarray, np.ndarray]:
    """The volume on the CT's cube, and where it reaches."""
    x, y, z = truth.hu.shape
    found = resample(hu.astype(np.float32), affine, truth.affine, shape=(x, y, z))
    ones = np.ones(hu.shape, np.float32)
    reached = resample(ones, affine, truth.affine, shape=(x, y, z), mode="nearest", padding="zeros") > 0.5
    return found, reached


def _centred(affine: np.ndarray, shape: Sequence[int], truth: PreparedCase) -> np.ndarray:
    """The affine that lays the middle of a volume on that of the CT's cube."""
    moved = affine.astype(np.float64).copy()
    middle = moved @ np.array([*((np.array(shape) - 1) / 2), 1.0])
    moved[:3, 3] += np.array(truth.isocenter) - middle[:3]
    return moved


def _score(hu: np.ndarray, truth: PreparedCase, valid: np.ndarray, protocols: str | Sequence[str]) -> dict[str, float]:
    """Scores by the protocols, and what is measured on a chest."""
    spacing = float(np.linalg.norm(truth.affine[:3, 0]))
    scores = score_volume(hu, parse_truth(truth.hu, valid=valid), protocols)
    return {**scores, **score_chests(*(segment_chest(volume, spacing, valid=valid) for volume in (hu, truth.hu)))}
