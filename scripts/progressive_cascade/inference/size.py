# SPDX-License-Identifier: Apache-2.0
"""Whether two radiographs are as large as they are taken for, by what they show of the patient's density.

A wrong distance or pixel spacing scales the patient. His radiographs allow that: a larger body that attenuates less
casts the same shadow. But tissue attenuates as tissue does, and stage 1 has learnt how much: it explains true line
integrals best at their true size, to 0.7 % on patients it does not know (chest stand; bundle/docs/EXPERIMENTS.md). A
gain that is 5 % wrong moves that by up to 1.6 %, one that is 10 % wrong by up to 6 %. Of grey levels it tells no size
so (:mod:`.register`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from progressive_cascade.inference.first_look import explain_pairs
from progressive_cascade.inference.opposite import detour, mirror_pictures
from progressive_cascade.inference.register import Move, move_films
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.radiograph.pair import Pair

_STEP, _MOST = 0.02, 9
"""Sizes are tried in steps of 2 %, up to 18 %, and between the best three lies the least of a quadratic."""
ASKED, ASSUMED = 0.003, 0.01
"""From where on a size is corrected: where that is asked for, and where it was only assumed; right ones are found to
0.7 %."""
_DOUBTED, _CLEARLY = 0.02, 0.95
"""Off by how much, and explained by how much better, a size is doubted that was told."""


class Size(NamedTuple):
    """The size at which stage 1 explains a pair best.

    Attributes:
        size: over what the radiographs are taken for.
        left: what is unexplained there, root mean square of line integrals.
        told: what is unexplained as they are taken for.
    """

    size: float
    left: float
    told: float

    @property
    def is_doubtful(self) -> bool:
        """Whether a size that was told is hardly the right one."""
        return self.is_off(_DOUBTED) and self.left < _CLEARLY * self.told

    def is_off(self, share: float) -> bool:
        """Whether it is another one than told by more than a share."""
        return abs(math.log(self.size)) > share and self.left <= self.told

    def __str__(self) -> str:
        return (
            f"the first stage explains the X-rays best at {self.size:.3f} times their size ({self.left:.2f} left "
            f"unexplained in place of {self.told:.2f})"
        )


def find_size(network: ProgressiveCascade, pair: Pair) -> Size:
    """Looks for the size at which stage 1 explains a pair best, in five to nine passes.

    Args:
        network: a cascade of any stage.
        pair: true line integrals, frontal first.

    Returns:
        The size, 1 where none within 18 % is the best.
    """
    left: dict[int, float] = {}

    def look(steps: Iterable[int]) -> int:
        left.update({step: _unexplained(network, pair, 1 + _STEP * step) for step in steps if step not in left})
        return min(left, key=left.__getitem__)

    best = look((-1, 0, 1))
    while best in (min(left), max(left)) and abs(best) < _MOST:
        best = look((best + (2 if best > 0 else -2),))
    best = look((best - 1, best + 1))
    if abs(best) >= _MOST:
        return Size(1.0, left[0], left[0])
    before, middle, after = (left[best + step] for step in (-1, 0, 1))
    bend = before - 2 * middle + after
    offset = (before - after) / (2 * bend) if bend > 0 else 0.0
    return Size(1 + _STEP * (best + offset), middle, left[0])


def at_size(pair: Pair, size: float) -> Pair:
    """The pair, its radiographs so many times as large about the central ray, with the same line integrals.

    Args:
        pair: frontal first.
        size: of :func:`find_size`.

    Returns:
        The pair in its geometry; what moves in from outside has no weight.
    """
    image, weights = move_films(pair, Move(frontal=size, lateral=size))
    return replace(pair, image=image, weights=None if weights.all() else weights)


def _unexplained(network: ProgressiveCascade, pair: Pair, size: float) -> float:
    """What stage 1 leaves unexplained of radiographs so many times as large."""
    beam = detour(network, pair.beam) or pair.beam
    rows, columns = (size * pitch for pitch in beam.pixel_spacing)
    offset = (size * beam.detector_offset[0], size * beam.detector_offset[1])
    beam = replace(beam, pixel_spacing=(rows, columns), detector_offset=offset)
    weights = np.ones_like(pair.image) if pair.weights is None else pair.weights
    image, shown = (mirror_pictures(one, pair.beam)[None] for one in (pair.image, weights))
    looked = explain_pairs(network, image, beam, calibrated=True, weights=shown)
    missed = (looked.measured - looked.explained)[looked.covered]
    return float(np.sqrt(np.mean(np.square(missed, dtype=np.float64))))
