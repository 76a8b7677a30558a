# SPDX-License-Identifier: Apache-2.0
"""Pairs of radiographs that are right, and pairs that are not, of which no tag says how they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals
from progressive_cascade.radiograph.pair import Pair
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.training.cases import load_case

KINDS = ("mirrored", "turned", "inverted", "transposed", "exchanged", "two_patients", "wrong_size")
"""What can be wrong with a pair."""
_GRID, _SPACING, _SIZE = 64, 5.6, 256
_SHAPE = (_GRID, _GRID, _GRID)
_SIDE_MM = 430.08
_PHANTOMS = {"training": range(9000, 9006), "validation": range(9100, 9106)}


@dataclass(frozen=True)
class Given:
    """A pair, and how it would look if it were right."""

    radiographs: tuple[Radiograph, Radiograph]
    upright: np.ndarray
    calibrated: bool

    def is_upright(self, pair: Pair) -> bool:
        """Whether both views ended as they are read: nearer to the right picture than to its mirror image."""
        step = pair.image.shape[1] // _SIZE
        small = pair.image[:, step // 2 :: step, step // 2 :: step]
        ways = [(turn, flip) for turn in range(4) for flip in (False, True)]
        for view, true in zip(small, self.upright, strict=True):
            every = [np.rot90(true[:, ::-1] if flip else true, turn) for turn, flip in ways]
            fit = [np.corrcoef(view.ravel(), one.ravel())[0, 1] for one in every]
            if int(np.argmax(fit)) != 0:
                return False
        return True


def patients(dataset: Path, section: str) -> list[np.ndarray]:
    """CTs of a section and phantoms, 64³ voxels [HU]."""
    cts = [load_case(item).at_grid(_GRID).hu for item in load_datalist(dataset, section)]
    made = [generate_phantom(seed, shape=_SHAPE, spacing=_SPACING).hu for seed in _PHANTOMS[section]]
    return [*cts, *made]


def make_pair(pool: Sequence[np.ndarray], kind: str, index: int) -> Given:
    """The pair of an index: its patient, tone and what is wrong with it are drawn from it.

    Args:
        pool: patients.
        kind: ``right`` or one of :data:`KINDS`.
        index: which; every second one holds line integrals, the others grey levels.
    """
    random = np.random.default_rng([index, ("right", *KINDS).index(kind)])
    patient = int(random.integers(len(pool)))
    true = _take(pool[patient], random)
    image = true.copy()
    if kind == "two_patients":
        other = (patient + int(random.integers(1, len(pool)))) % len(pool)
        image[1] = _take(pool[other], random)[1]
        true = image
    view, calibrated = int(random.integers(2)), index % 2 == 0
    if not calibrated:
        image = np.stack([_toned(one, random) for one in image])
    views = [image[0], image[1]]
    if kind == "exchanged":
        views = views[::-1]
    elif kind not in ("right", "two_patients", "wrong_size"):
        views[view] = _wrong(views[view], kind, int(random.integers(1, 4)))
    scale = [1.0, 1.0]
    if kind == "wrong_size":
        scale[view] = float(random.choice([0.8, 1.2]))
    radiographs = [
        _radiograph(f"{name}.png", one, factor, calibrated)
        for name, one, factor in zip(("pa", "lateral"), views, scale, strict=True)
    ]
    return Given((radiographs[0], radiographs[1]), true, calibrated)


def _take(hu: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A chest stand, the patient up to a centimetre beside its middle; the body ends where the cube does."""
    x, y = (float(value) for value in random.uniform(-10, 10, 2))
    pitch = _SIDE_MM / _SIZE
    beam = ConeBeam(detector_shape=(_SIZE, _SIZE), pixel_spacing=(pitch, pitch), isocenter=(x, y, 0.0))
    mu = hu_to_mu(torch.as_tensor(hu, dtype=torch.float32)[None, None])
    return line_integrals(mu, beam, affine=volume_affine(_SHAPE, _SPACING))[0].numpy()


def _toned(view: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """12 bits by a window and a power."""
    low, high = np.percentile(view, [random.uniform(0.2, 2), random.uniform(98.5, 99.8)])
    grey = np.clip((view - low) / (high - low), 0, 1) ** random.uniform(0.7, 1.4)
    return np.round(4095 * grey).astype(np.float32)


def _wrong(view: np.ndarray, kind: str, turn: int) -> np.ndarray:
    if kind == "mirrored":
        return view[:, ::-1]
    if kind == "turned":
        return np.rot90(view, turn)
    return view.T if kind == "transposed" else view.max() - view


def _radiograph(path: str, view: np.ndarray, factor: float, calibrated: bool) -> Radiograph:
    pitch = _SIDE_MM / _SIZE * factor
    pixels = np.ascontiguousarray(view, dtype=np.float32)
    meaning = "line_integral" if calibrated else "display"
    return Radiograph(path, pixels, np.ones(pixels.shape, dtype=bool), meaning, spacing=(pitch, pitch))
