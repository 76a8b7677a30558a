# SPDX-License-Identifier: Apache-2.0
"""One reconstruction against one CT of the same patient, wherever each of them lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from progressive_cascade.attenuation import AIR_HU, HU_MAX, HU_MIN
from progressive_cascade.ct.placement import PreparedCase, low_pass, resample
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.alignment import Similarity, denser, find_similarity
from progressive_cascade.evaluation.clinical import score_chests, segment_chest
from progressive_cascade.evaluation.metrics import BODY_HU, body_mask, parse_truth, score_volume

LEAST_OVERLAP = 0.5
"""Share of the CT's body that must lie in the reconstruction for their places to be believed."""
LEAST_DICE = 0.8
"""Of both bodies for an alignment to be believed; another patient's reconstruction had 0.93 (one pair tried)."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, on the CT's cube.

    Attributes:
        hu: the reconstruction as it lies [HU], (x, y, z).
        scores: of it, named after their protocol, and ``clinical_`` ones (:func:`.clinical.score_chests`); none where
            it lies elsewhere.
        overlap: share of the CT's body that lies in the reconstruction.
        similarity: how it lay on the CT, where that was looked for and found.
        aligned: the reconstruction laid on the CT [HU].
        aligned_scores: of that.
        aligned_overlap: share of the CT's body that then lies in it.
    """

    hu: np.ndarray
    scores: dict[str, float]
    overlap: float
    similarity: Similarity | None = None
    aligned: np.ndarray | None = None
    aligned_scores: dict[str, float] | None = None
    aligned_overlap: float | None = None


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
        hu: reconstruction (x, y, z) [HU], on any grid, NaN where it shows nothing; voxels smaller than the CT's on the
            cube are smoothed as the CT's own were.
        affine: 4x4, its voxel index to RAS mm.
        truth: the CT on its cube (:func:`progressive_cascade.ct.placement.prepare_case`). What the scanner did not
            measure, or the reconstruction does not reach, does not count, neither before nor after an alignment.
        protocols: see :func:`.metrics.parse_protocols`.
        similarity: also move, turn and scale the reconstruction onto the CT (:func:`.alignment.align`). Where they lie
            apart, their middles are laid on each other first.

    Returns:
        Both volumes' scores; those as it lies alone where no alignment lays their bodies on each other.

    Raises:
        UserError: where less than half of the CT's body lies in the reconstruction, and nothing is aligned, or no
            alignment lays their bodies on each other; where either shows no body.
        ValueError: see :func:`.metrics.parse_truth`.
    """
    body = np.asarray(body_mask(truth.hu)) & (truth.valid > 0)
    if not body.any():
        raise UserError(f"the CT must show a body, got no scanned voxel above {BODY_HU:g} HU")
    if not (hu > BODY_HU).any():
        raise UserError(f"the reconstruction must show a body, got no voxel above {BODY_HU:g} HU")
    volume = _Volume.read(hu, affine, float(np.linalg.norm(truth.affine[:3, 0])))
    found, reached = volume.onto(truth)
    overlap = float(reached[body].mean())
    apart = overlap < LEAST_OVERLAP
    if apart and not similarity:
        raise UserError(
            f"the reconstruction must lie on the CT in the patient's world, got {100 * overlap:.0f} % of the CT's "
            "body in it; where it does not know its place, align them (--align)"
        )
    plain = {} if apart else _score(found, truth, truth.valid * reached, protocols)
    lies = Comparison(found, plain, overlap)
    return _aligned(lies, volume, truth, body, protocols) if similarity else lies


def _aligned(
    lies: Comparison, volume: _Volume, truth: PreparedCase, body: np.ndarray, protocols: str | Sequence[str]
) -> Comparison:
    """The comparison of volumes as they lie, and after a similarity alignment."""
    lay = _find_similarity(volume, truth, apart=lies.overlap < LEAST_OVERLAP)
    aligned, reached = volume.laid(lay, truth).onto(truth)
    share = float(reached[body].mean())
    scores = _score(aligned, truth, truth.valid * reached, protocols)
    dice = scores["clinical_body_dice"]
    if share < LEAST_OVERLAP or not dice >= LEAST_DICE:
        if lies.scores:
            return lies
        raise UserError(
            f"the reconstruction must lie on the CT after an alignment, got {100 * share:.0f} % of the CT's body in it "
            f"and an overlap of both bodies (Dice) of {dice:.2f}"
        )
    return replace(lies, similarity=lay, aligned=aligned, aligned_scores=scores, aligned_overlap=share)


@dataclass(frozen=True)
class _Volume:
    """A reconstruction in the world: HU, where it shows something, and the affine of both."""

    hu: np.ndarray
    known: np.ndarray
    affine: np.ndarray

    @classmethod
    def read(cls, hu: np.ndarray, affine: np.ndarray, spacing: float) -> _Volume:
        """From its file's array, fit for voxels of `spacing` [mm]."""
        known = np.isfinite(hu)
        filled = np.where(known, hu, AIR_HU).astype(np.float32)
        return cls(low_pass(filled, np.linalg.norm(affine[:3, :3], axis=0), spacing), known.astype(np.float32), affine)

    def onto(self, truth: PreparedCase) -> tuple[np.ndarray, np.ndarray]:
        """On the CT's cube, and where it reaches."""
        x, y, z = truth.hu.shape
        found = resample(self.hu, self.affine, truth.affine, shape=(x, y, z))
        return found, resample(
            self.known, self.affine, truth.affine, shape=(x, y, z), mode="nearest", padding="zeros"
        ) > 0.5

    def middle(self) -> np.ndarray:
        """Of the grid, in the world [mm]."""
        return (self.affine @ np.array([*((np.array(self.hu.shape) - 1) / 2), 1.0]))[:3]

    def laid(self, lay: Similarity, truth: PreparedCase) -> _Volume:
        """Laid on the CT, on which it lay so."""
        to_middle = np.eye(4)
        to_middle[:3, 3] = truth.isocenter
        affine = to_middle @ np.linalg.inv(lay.matrix) @ np.linalg.inv(to_middle) @ self.affine
        return _Volume(denser(self.hu.clip(HU_MIN, HU_MAX), lay.scale), self.known, affine)


def _find_similarity(volume: _Volume, truth: PreparedCase, *, apart: bool) -> Similarity:
    """How the reconstruction lies on the CT, from where it lies or, where they lie apart, from the CT's middle."""
    aside = volume.middle() - truth.isocenter if apart else np.zeros(3)
    start = Similarity(1.0, 0.0, (float(aside[0]), float(aside[1]), float(aside[2])))
    hu, reached = volume.laid(start, truth).onto(truth)
    spacing = float(np.linalg.norm(truth.affine[:3, 0]))
    known = None if reached.all() else reached
    found = find_similarity(hu, truth.hu, spacing=spacing, valid=truth.valid, reached=known)
    x, y, z = np.array(found.shift) + aside
    return replace(found, shift=(float(x), float(y), float(z)))


def _score(hu: np.ndarray, truth: PreparedCase, valid: np.ndarray, protocols: str | Sequence[str]) -> dict[str, float]:
    """Scores by the protocols, and what is measured on a chest."""
    spacing = float(np.linalg.norm(truth.affine[:3, 0]))
    scores = score_volume(hu, parse_truth(truth.hu, valid=valid), protocols)
    return {**scores, **score_chests(*(segment_chest(volume, spacing, valid=valid) for volume in (hu, truth.hu)))}
