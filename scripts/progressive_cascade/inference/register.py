# SPDX-License-Identifier: Apache-2.0
"""Two films of one patient that lie at other heights, or are of other sizes, than their files let expect.

Between the exposures of a frontal and a lateral the tube and the patient move up and down, and pictures on the web are
cropped. Stage 1 explains two views best where they show the same slices: the lateral is moved and scaled to there, a
coordinate at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from progressive_cascade.inference.first_look import explain_pairs
from progressive_cascade.inference.opposite import detour, mirror_pictures
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.onto import fill
from progressive_cascade.radiograph.pair import Pair

# The lateral's way down, in the isocenter's plane [mm], and its size over the frontal's, as they are tried.
_SHIFTS, _SIZES = (-39.0, -26.0, -13.0, 0.0, 13.0, 26.0, 39.0), (0.88, 0.94, 1.06, 1.12)
_FINER_SHIFT, _FINER_SIZE = 6.5, 0.03
# The lateral stays where it is unless this share less is left unexplained.
_WORTH_IT = 0.05
_BATCH = 4
_Move = tuple[float, float]
_STAY: _Move = (0.0, 1.0)


def register(network: ProgressiveCascade, pair: Pair) -> Pair:
    """The pair, its lateral moved up or down and scaled to where stage 1 explains both views best.

    Args:
        network: a cascade of any stage.
        pair: grey levels, frontal first.

    Returns:
        The pair with a note; or as it was, where nothing within 45 mm and 15 % is explained better by 5 %.
    """
    left: dict[_Move, float] = {}

    def look(*moves: _Move) -> _Move:
        new = [move for move in moves if move not in left]
        left.update(zip(new, _unexplained(network, pair, new), strict=True))
        return min(left, key=lambda move: left[move])

    down, size = look(*((down, 1.0) for down in _SHIFTS))
    down, size = look(*((down, other) for other in _SIZES))
    down, size = look((down - _FINER_SHIFT, size), (down + _FINER_SHIFT, size))
    best = look((down, round(size - _FINER_SIZE, 2)), (down, round(size + _FINER_SIZE, 2)))
    if left[best] > (1 - _WORTH_IT) * left[_STAY]:
        return pair
    note = (
        f"the lateral X-ray was moved {'down' if best[0] > 0 else 'up'} by {abs(best[0]):.0f} mm and scaled by "
        f"{best[1]:.2f}: so the first stage explains both best, and leaves {left[best]:.0%} of their contrast "
        f"unexplained in place of {left[_STAY]:.0%}"
    )
    image, weights = move_lateral(pair, *best)
    return replace(pair, image=image, weights=weights, notes=[*pair.notes, note])


def move_lateral(pair: Pair, down: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Image and weights of a pair whose lateral is moved and scaled about the central ray.

    Args:
        pair: frontal first.
        down: in the isocenter's plane [mm].
        size: factor.

    Returns:
        Both (2, rows, cols); what moves in from outside has the nearest pixel's value and no weight.
    """
    weights = np.ones_like(pair.image) if pair.weights is None else pair.weights.copy()
    if (down, size) == _STAY:
        return pair.image, weights
    rows = down * pair.beam.magnification / pair.beam.pixel_spacing[0]
    middle = (np.array(pair.image.shape[1:]) - 1) / 2 - np.array(pair.beam.detector_offset) / pair.beam.pixel_spacing
    place = {"matrix": np.full(2, 1 / size), "offset": middle - (middle + np.array([rows, 0.0])) / size, "order": 1}
    seen = ndimage.affine_transform(weights[1], **place, cval=0.0) > 0.5
    moved = ndimage.affine_transform(pair.image[1], **place, mode="nearest")
    weights[1] = seen
    return np.stack((pair.image[0], fill(moved, seen) if seen.any() else moved)), weights


def _unexplained(network: ProgressiveCascade, pair: Pair, moves: Sequence[_Move]) -> list[float]:
    """Of every move, the share of the views' contrast that stage 1 leaves unexplained, root mean square of both."""
    found, seen_as = [], detour(network, pair.beam) or pair.beam
    for first in range(0, len(moves), _BATCH):
        images, weights = zip(*(move_lateral(pair, *move) for move in moves[first : first + _BATCH]), strict=True)
        given, shown = (np.stack([mirror_pictures(one, pair.beam) for one in each]) for each in (images, weights))
        looked = explain_pairs(network, given, seen_as, calibrated=pair.calibrated, weights=shown)
        for views in zip(looked.explained, looked.measured, looked.covered, strict=True):
            shares = [_left_of(*view) for view in zip(*views, strict=True)]
            found.append(float(np.sqrt(np.mean(shares))))
    return found


def _left_of(explained: np.ndarray, measured: np.ndarray, covered: np.ndarray) -> float:
    """Share of the variance of what is explained that the view does not hold, whatever its gain and offset."""
    if covered.sum() < 2 or not measured[covered].std() > 0:
        return 1.0
    return float(1 - np.corrcoef(explained[covered], measured[covered])[0, 1] ** 2)
