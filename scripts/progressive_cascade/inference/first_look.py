# SPDX-License-Identifier: Apache-2.0
"""How well the first stage alone explains its radiographs: before any data consistency, wrong inputs show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from progressive_cascade.consistency import agreement, shrink_radiographs
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.inference.opposite import detour, mirror_matrices, mirror_pictures
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.stages import EXTENT
from progressive_cascade.projector import project
from progressive_cascade.radiograph.pair import Pair
from progressive_cascade.radiograph.warn import slice_difference, slice_warnings

LEAST_AGREEMENT = {True: 27.0, False: 26.5}
"""PSNR of the first stage's re-projection below which a calibrated (True) or another (False) pair is warned of [dB].

Of right pairs of training CTs and phantoms the calibrated ones reached 31.0, grey levels 26.9. It lies just above the
wrong calibrated pairs that nothing else finds: of CTs that stage 1 has not learnt from it explains right ones worse
(``benchmarks/radiographs.py``).
"""
# A frontal is called mirrored from odds of 200 to 1 on; a decibel that it is explained better so counts as e² to 1.
_MIRROR_LOG_ODDS, _LOG_ODDS_PER_DB, _SUREST = math.log(199.0), 2.0, 7.0


@dataclass(frozen=True)
class FirstLook:
    """How well stage 1 explains a pair.

    Attributes:
        agreement_db: PSNR by view of its re-projection [dB], frontal first.
        mirrored_db: PSNR of the frontal if it were its mirror image [dB]; None where that was not looked at.
        slice_difference: of grey levels, brought to line integrals by the tone curve that fits stage 1's best; None of
            line integrals. See :func:`~progressive_cascade.radiograph.warn.slice_difference`.
    """

    agreement_db: Mapping[str, float]
    mirrored_db: float | None = None
    slice_difference: float | None = None

    def mirror_log_odds(self, mirror: float | None) -> float:
        """Natural logarithm of the odds that the frontal is mirrored.

        Args:
            mirror: probability of that by its picture alone; None: unknown.
        """
        given = next(iter(self.agreement_db.values()))
        by_stage = 0.0 if self.mirrored_db is None else _LOG_ODDS_PER_DB * (self.mirrored_db - given)
        return _by_picture(mirror) + by_stage

    def looks_mirrored(self, mirror: float | None) -> bool:
        """Whether the frontal is called mirrored; see :meth:`mirror_log_odds`."""
        return self.mirror_log_odds(mirror) > _MIRROR_LOG_ODDS

    def doubts(self, *, calibrated: bool, source_to_isocenter: float = 1500.0) -> list[str]:
        """What it says against the pair as it is, a line for each.

        Args:
            calibrated: whether the pair holds true line integrals.
            source_to_isocenter: of its geometry [mm].
        """
        if self.is_low(calibrated=calibrated):
            least = LEAST_AGREEMENT[calibrated]
            low = [f"{view} {score:.1f} dB" for view, score in self.agreement_db.items() if score < least]
            right = "right pairs are" if calibrated else "right pairs that were simulated are"
            return [
                f"before data consistency the X-rays are explained worse than {right} ({least:g} dB): "
                f"{', '.join(low)}; are they of one patient, the right way round, and of the right size?"
            ]
        # What rows hold says something of grey levels whose tones could be found alone.
        if self.slice_difference is None:
            return []
        return slice_warnings(self.slice_difference, calibrated=calibrated, source_to_isocenter=source_to_isocenter)

    def is_low(self, *, calibrated: bool) -> bool:
        """Whether a view is explained worse than :data:`LEAST_AGREEMENT`."""
        return min(self.agreement_db.values()) < LEAST_AGREEMENT[calibrated]


def look_at_pair(network: ProgressiveCascade, pair: Pair) -> FirstLook:
    """:func:`first_look` at a pair, and at its mirrored frontal unless its picture is sure that it is not mirrored."""
    mirrored = _by_picture(pair.mirror) > -_SUREST
    return first_look(
        network, pair.image, pair.beam, calibrated=pair.calibrated, weights=pair.weights, mirrored=mirrored
    )


def _by_picture(mirror: float | None) -> float:
    """Log odds of a probability, no surer than pictures are; even where it is unknown."""
    seen = 0.5 if mirror is None else min(max(mirror, 1e-9), 1 - 1e-9)
    return max(-_SUREST, min(_SUREST, math.log(seen / (1 - seen))))


def first_look(
    network: ProgressiveCascade,
    image: np.ndarray,
    beam: ConeBeam,
    *,
    calibrated: bool = True,
    weights: np.ndarray | None = None,
    mirrored: bool = False,
) -> FirstLook:
    """PSNR per view of the first stage's re-projection, at two pixels per voxel.

    Uncalibrated radiographs are compared after the tone curve, a cubic, that brings each view nearest.

    Args:
        network: a cascade of any stage.
        image: line integrals (view, rows, cols).
        beam: their geometry.
        calibrated: whether they are true ones.
        weights: of the pixels (view, rows, cols).
        mirrored: whether to look at the mirrored frontal, too.
    """
    seen_as = detour(network, beam) or beam
    image = mirror_pictures(image, beam)
    weights = None if weights is None else mirror_pictures(weights, beam)
    both = [image, np.ones_like(image) if weights is None else weights]
    images, shown = (np.stack((one, _mirrored(one))) if mirrored else one[None] for one in both)
    _, explained, measured, covered = explain_pairs(network, images, seen_as, calibrated=calibrated, weights=shown)
    every = zip(explained, measured, covered, strict=True)
    scores = [_agreement(*views, beam, calibrated=calibrated) for views in every]
    return FirstLook(
        scores[0],
        next(iter(scores[1].values())) if mirrored else None,
        None if calibrated else _slice_difference(explained[0], measured[0], covered[0]),
    )


def _mirrored(views: np.ndarray) -> np.ndarray:
    """The views, the first one flipped left to right."""
    return np.concatenate((views[:1, :, ::-1], views[1:]))


class Explained(NamedTuple):
    """What the first stage alone makes of pairs.

    Attributes:
        unit: its volumes (b, 1, g, g, g) in [0, 1], before data consistency.
        explained: their line integrals (b, view, 2 g, 2 g).
        measured: the radiographs, of the same shape.
        covered: where these show the patient, bool.
    """

    unit: Tensor
    explained: np.ndarray
    measured: np.ndarray
    covered: np.ndarray


def explain_pairs(
    network: ProgressiveCascade, images: np.ndarray, beam: ConeBeam, *, calibrated: bool, weights: np.ndarray
) -> Explained:
    """Stage 1's volumes of pairs, and what they explain, at two pixels per voxel.

    Args:
        network: a cascade of any stage.
        images: as the network reads them (b, view, rows, cols).
        beam: their geometry, for the network.
        calibrated: whether they are true line integrals.
        weights: of the pixels, of the images' shape.
    """
    device = network.projection_matrices.device
    given, seen = (torch.as_tensor(one, dtype=torch.float32, device=device) for one in (images, weights))
    b, grid = len(given), network.image_size // 8
    matrices = torch.as_tensor(beam.at((0.0, 0.0, 0.0)).projection_matrices(), dtype=torch.float32, device=device)
    matrices = mirror_matrices(matrices[None], beam).expand(b, -1, -1, -1)
    with torch.inference_mode():
        unit = _first_volume(network, given, matrices, seen, torch.full((b,), float(calibrated), device=device))
        small, places = shrink_radiographs(given, matrices, 2 * grid, seen)
        covered = F.interpolate(seen, small.shape[2:], mode="area") > 0.5
        affine = torch.as_tensor(volume_affine((grid, grid, grid), EXTENT / grid))
        mu = network.stages[0].consistency.to_mu(unit)  # pyright: ignore
        explained = project(mu, places, affine[None].expand(b, -1, -1), (small.shape[2], small.shape[3]))
    return Explained(unit, explained.cpu().numpy(), small.cpu().numpy(), covered.cpu().numpy())


def _agreement(
    explained: np.ndarray, measured: np.ndarray, covered: np.ndarray, beam: ConeBeam, *, calibrated: bool
) -> dict[str, float]:
    """PSNR by view [dB]."""
    if not calibrated:
        explained = np.stack([_toned(*view) for view in zip(explained, measured, covered, strict=True)])
    found = agreement(explained, measured, beam.views, covered.astype(np.float32))
    return {view: found[view]["psnr_db"] for view in beam.views}


def _slice_difference(explained: np.ndarray, measured: np.ndarray, covered: np.ndarray) -> float:
    """Of grey levels, brought to line integrals by the tone curve of each view that fits what explains it best."""
    views = zip(measured, explained, covered, strict=True)
    return slice_difference(np.stack([_toned(*view) for view in views]), covered.astype(np.float32))


def _first_volume(network: ProgressiveCascade, image: Tensor, matrices: Tensor, seen: Tensor, flag: Tensor) -> Tensor:
    """The first stage's volume in [0, 1], before data consistency."""
    stage, grid = network.stages[0], network.image_size // 8
    levels, tokens = image, image
    if network.xray is not None:
        features = network.xray(image, matrices)
        levels, tokens = features.coarse, features.tokens
    volume = torch.full([len(image), 1, grid, grid, grid], network.start_value, device=image.device)
    context = stage.context(volume, levels, tokens, image, matrices, flag, seen)  # pyright: ignore[reportCallIssue]
    return stage(volume, [0, 0, 0], context)  # pyright: ignore


def _toned(view: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The view after the tone curve, a cubic, that brings it nearest to the target."""
    if not view[mask].any():  # of zeros alone there is no curve
        return view
    curve = np.polyfit(view[mask].astype(np.float64), target[mask].astype(np.float64), 3)
    return np.polyval(curve, view).astype(np.float32)
