# SPDX-License-Identifier: Apache-2.0
"""Two films of one patient that lie at other heights, or are of other sizes, than their files let expect.

Between the exposures of a frontal and a lateral the tube and the patient move up and down, and pictures on the web are
cropped. Stage 1 explains two views best where they show the same slices of a patient of a likely size: they are moved
and scaled to there. It tells a common size from another badly: of moves that are explained about as well one is best
by chance, so that all that were tried count (:func:`_likeliest`), and so does what is likely: two films of one patient
are cropped alike, and lie at nearly one height.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference.first_look import explain_pairs
from progressive_cascade.inference.opposite import detour, mirror_pictures
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.onto import fill
from progressive_cascade.radiograph.pair import Pair

# What is tried: the lateral's way down, in the isocenter's plane [mm], and the films' sizes, one by one and together.
_SHIFTS = (-39.0, -26.0, -13.0, 0.0, 13.0, 26.0, 39.0)
_ONE_BY_ONE, _TOGETHER = (0.88, 0.94, 1.06, 1.12), (0.8, 0.85, 0.9, 0.95, 1.1)
_FINER_SHIFTS, _FINER_SIZES = (-13.0, -6.5, 6.5, 13.0), (0.06, 0.03)
# What is likely: how much of 43 cm films on the web show, how alike two of them are cropped [of the logarithm], how far
# apart their heights are [mm]; and what that counts against the logarithm of the share that is left unexplained.
_LIKELY_SIZE, _SIZE_SPREAD, _RATIO_SPREAD, _SHIFT_SPREAD = 0.92, 0.1, 0.08, 30.0
_PRIOR = 0.1
# A move counts for the fit less by 1 / e for each tenth that it leaves more than the best one; and what a quadratic's
# terms cost, so that a few moves do not bend it.
_NEAR, _DAMPING = 0.1, 1e-2
# Films stay where they are unless this share less is left unexplained.
_WORTH_IT = 0.05
_BATCH = 4


class Move(NamedTuple):
    """Where films are brought.

    Attributes:
        down: the lateral's way, in the isocenter's plane [mm].
        frontal: its size over what it was taken for, about the central ray.
        lateral: likewise.
    """

    down: float = 0.0
    frontal: float = 1.0
    lateral: float = 1.0

    def in_words(self) -> str:
        """What was done."""
        said = []
        if self.down:
            said.append(f"the lateral X-ray was moved {'down' if self.down > 0 else 'up'} by {abs(self.down):.0f} mm")
        for name in ("frontal", "lateral"):
            if (size := getattr(self, name)) != 1:
                said.append(f"the {name} X-ray was taken for {size:.2f} of its size")
        return ", ".join(said)

    def deviations(self, *, sized: bool) -> list[float]:
        """From what is likely, in standard deviations: of the height; of films of unknown size also of the sizes' ratio
        and of their mean.
        """
        if sized:
            return [self.down / _SHIFT_SPREAD]
        ratio, common = self.frontal / self.lateral, math.sqrt(self.frontal * self.lateral)
        return [
            self.down / _SHIFT_SPREAD,
            math.log(ratio) / _RATIO_SPREAD,
            math.log(common / _LIKELY_SIZE) / _SIZE_SPREAD,
        ]

    @classmethod
    def at(cls, deviations: Sequence[float]) -> Move:
        """The move with these deviations, to the millimetre and the hundredth."""
        down = float(round(deviations[0] * _SHIFT_SPREAD))
        if len(deviations) == 1:
            return cls(down)
        ratio, common = math.exp(deviations[1] * _RATIO_SPREAD), _LIKELY_SIZE * math.exp(deviations[2] * _SIZE_SPREAD)
        return cls(down, round(common * math.sqrt(ratio), 2), round(common / math.sqrt(ratio), 2))

    def resized(self, step: float) -> list[Move]:
        """Either film, larger and smaller by a step."""
        sizes = ((self.frontal + step, self.lateral), (self.frontal - step, self.lateral))
        others = ((self.frontal, self.lateral + step), (self.frontal, self.lateral - step))
        return [Move(self.down, round(frontal, 2), round(lateral, 2)) for frontal, lateral in (*sizes, *others)]


def register(network: ProgressiveCascade, pair: Pair) -> Pair:
    """The pair, its films moved and, where their size is not known, scaled to where stage 1 explains them best.

    Args:
        network: a cascade of any stage.
        pair: grey levels, frontal first.

    Returns:
        The pair with a note; or as it was, where nothing within 45 mm and about 20 % of each size is explained better
        by 5 %.
    """
    films, left = _Films(pair), dict[Move, float]()

    def look(moves: Iterable[Move]) -> Move:
        new = [move for move in dict.fromkeys(moves) if move not in left]
        left.update(zip(new, _unexplained(network, films, new), strict=True))
        return min(left, key=cost)

    def cost(move: Move) -> float:
        unlikely = sum(each**2 for each in move.deviations(sized=pair.sized)) / 2
        return _log(left[move]) + _PRIOR * unlikely

    best = look(Move(down) for down in _SHIFTS)
    if not pair.sized:
        alone = [move for size in _ONE_BY_ONE for move in (best._replace(frontal=size), best._replace(lateral=size))]
        best = look([*alone, *(Move(best.down, size, size) for size in _TOGETHER)])
        best = look(best.resized(_FINER_SIZES[0]))
    best = look(best._replace(down=best.down + step) for step in _FINER_SHIFTS)
    if not pair.sized:
        best = look(best.resized(_FINER_SIZES[1]))
    if left[best] > (1 - _WORTH_IT) * left[Move()]:
        return pair
    likeliest = _likeliest(left, sized=pair.sized)
    look([likeliest])
    if cost(likeliest) < cost(best) + _NEAR:
        best = likeliest
    note = (
        f"{best.in_words()}: so the first stage explains them best, and leaves {left[best]:.0%} of their contrast "
        f"unexplained in place of {left[Move()]:.0%}"
    )
    image, weights = films.at(best)
    return replace(pair, image=image, weights=weights, notes=[*pair.notes, note])


def _likeliest(left: Mapping[Move, float], *, sized: bool) -> Move:
    """Where what is left unexplained and what is unlikely are least together.

    The logarithm of the share left is taken for a quadratic of the deviations, fitted to the moves that were tried, the
    closer the better they explain; where it is flat or bends down, what is likely decides. The least lies within what
    was tried.
    """
    x = np.array([move.deviations(sized=sized) for move in left])
    y = np.array([_log(share) for share in left.values()])
    rows, columns = np.triu_indices(x.shape[1])
    terms = np.hstack([np.ones((len(x), 1)), x, x[:, rows] * x[:, columns]])
    weights = np.exp(-(y - y.min()) / _NEAR)
    damping = _DAMPING * np.diag([0.0] + [1.0] * (terms.shape[1] - 1))
    found = np.linalg.solve((terms.T * weights) @ terms + damping, (terms.T * weights) @ y)
    slope, curvature = found[1 : 1 + x.shape[1]], np.zeros((x.shape[1],) * 2)
    curvature[rows, columns] = found[1 + x.shape[1] :]
    values, directions = np.linalg.eigh(curvature + curvature.T)
    upward = directions * np.maximum(values, 0) @ directions.T
    least = np.linalg.solve(upward + _PRIOR * np.eye(len(slope)), -slope)
    return Move.at(np.clip(least, x.min(0), x.max(0)).tolist())


def _log(share: float) -> float:
    return math.log(max(share, 1e-6))


def move_films(pair: Pair, move: Move) -> tuple[np.ndarray, np.ndarray]:
    """Image and weights of a pair whose films are moved and scaled about the central ray.

    Args:
        pair: frontal first.
        move: where to.

    Returns:
        Both (2, rows, cols); what moves in from outside has the nearest pixel's value and no weight.
    """
    return _Films(pair).at(move)


class _Films:
    """A pair's films at any move; many moves have a film in common, which is moved once."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.weights = np.ones_like(pair.image) if pair.weights is None else pair.weights
        self._views: dict[tuple[int, float, float], tuple[np.ndarray, np.ndarray]] = {}

    def at(self, move: Move) -> tuple[np.ndarray, np.ndarray]:
        """Image and weights, both (2, rows, cols)."""
        if move == Move():
            return self.pair.image, self.weights
        frontal, lateral = self._view(0, 0.0, move.frontal), self._view(1, move.down, move.lateral)
        image, seen = (np.stack(views) for views in zip(frontal, lateral, strict=True))
        return image, seen

    def _view(self, view: int, down: float, size: float) -> tuple[np.ndarray, np.ndarray]:
        if (view, down, size) not in self._views:
            rows = down * self.pair.beam.magnification / self.pair.beam.pixel_spacing[0]
            moved = _moved(self.pair.image[view], self.weights[view], self.pair.beam, rows, size)
            self._views[view, down, size] = moved
        return self._views[view, down, size]


def _moved(
    view: np.ndarray, weights: np.ndarray, beam: ConeBeam, rows: float, size: float
) -> tuple[np.ndarray, np.ndarray]:
    if (rows, size) == (0.0, 1.0):
        return view, weights
    middle = (np.array(view.shape) - 1) / 2 - np.array(beam.detector_offset) / beam.pixel_spacing
    place = {"matrix": np.full(2, 1 / size), "offset": middle - (middle + np.array([rows, 0.0])) / size, "order": 1}
    seen = ndimage.affine_transform(weights, **place, cval=0.0) > 0.5
    moved = ndimage.affine_transform(view, **place, mode="nearest")
    return fill(moved, seen) if seen.any() else moved, seen.astype(weights.dtype)


def _unexplained(network: ProgressiveCascade, films: _Films, moves: Sequence[Move]) -> list[float]:
    """Of every move, the share of the views' contrast that stage 1 leaves unexplained, root mean square of both."""
    beam, found = films.pair.beam, []
    seen_as = detour(network, beam) or beam
    for first in range(0, len(moves), _BATCH):
        images, weights = zip(*(films.at(move) for move in moves[first : first + _BATCH]), strict=True)
        given, shown = (np.stack([mirror_pictures(one, beam) for one in each]) for each in (images, weights))
        looked = explain_pairs(network, given, seen_as, calibrated=films.pair.calibrated, weights=shown)
        for views in zip(looked.explained, looked.measured, looked.covered, strict=True):
            shares = [_left_of(*view) for view in zip(*views, strict=True)]
            found.append(float(np.sqrt(np.mean(shares))))
    return found


def _left_of(explained: np.ndarray, measured: np.ndarray, covered: np.ndarray) -> float:
    """Share of the variance of what is explained that the view does not hold, whatever its gain and offset."""
    if covered.sum() < 2 or not min(explained[covered].std(), measured[covered].std()) > 0:
        return 1.0
    return float(1 - np.corrcoef(explained[covered], measured[covered])[0, 1] ** 2)
