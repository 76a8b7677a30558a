# SPDX-License-Identifier: Apache-2.0
"""The patient above and below the cube: rays that cross him there have no weight, the others hold the cube alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, line_integrals, volume_affine
from progressive_cascade.radiograph.fit import Model
from progressive_cascade.radiograph.lengths import Choices
from progressive_cascade.radiograph.pair import Pair, assemble_pair
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.radiograph.surroundings import misses_surroundings

BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))


def _trunk(slices: int) -> np.ndarray:
    """Line integrals of an elliptic trunk, 64 slices of which fill the cube (view, 64, 64)."""
    x, y, _ = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in (64, 64, slices)), indexing="ij")
    mu = torch.from_numpy(0.02 * ((x / 20) ** 2 + (y / 16) ** 2 < 1)).float()
    return line_integrals(mu[None, None], BEAM, affine=volume_affine((64, 64, slices), 5.6))[0].numpy()


@pytest.mark.parametrize("offset", [(0.0, 0.0), (30.0, -20.0)])
def test_pixels_with_weight_see_the_cube_alone(offset: tuple[float, float]) -> None:
    """A trunk that goes on changes what has no weight, by more than a voxel of it; the rest, nearly all, by less."""
    inside = misses_surroundings(BEAM)
    more = _trunk(96) - _trunk(64)
    assert 0.9 < inside.mean() < 0.97
    assert more[inside > 0].max() < 0.02 * 5.6 * 1.5
    assert more[inside == 0].max() > 0.02 * 5.6 * 1.5
    moved = replace(BEAM, isocenter=(10.0, -20.0, 500.0), detector_offset=offset)
    still = misses_surroundings(replace(BEAM, detector_offset=offset))
    np.testing.assert_array_equal(misses_surroundings(moved), still)


def test_a_near_source_loses_more_and_a_narrow_field_nothing() -> None:
    """Diverging rays leave the cube earlier; a detector that shows less than the cube does not see its ends."""
    near = replace(BEAM, source_to_isocenter=700.0, source_to_detector=840.0)
    assert misses_surroundings(near).mean() < misses_surroundings(BEAM).mean() - 0.02
    assert misses_surroundings(replace(BEAM, pixel_spacing=(5.0, 5.0))).all()


def _pair(meaning: str, choice: str | None = None) -> Pair:
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 64, 64))  # without it air looks like a collimator's border
    views = [
        Radiograph(
            name, pixels, np.ones(pixels.shape, dtype=bool), meaning, spacing=BEAM.pixel_spacing, directions=directions
        )
        for name, pixels, directions in zip(
            ("front.nii", "side.nii"), _trunk(64) + noise, (("L", "F"), ("P", "F")), strict=True
        )
    ]
    focal = BEAM.source_to_detector / BEAM.pixel_spacing[0]
    choices = Choices(surroundings=choice, trust="tags")
    return assemble_pair(views[0], views[1], model=Model(64, focal), beam=BEAM, choices=choices)


@pytest.mark.parametrize(
    ("meaning", "choice", "seen"),
    [
        ("line_integral", None, False),
        ("line_integral", "seen", True),
        ("display", None, True),
        ("display", "none", False),
    ],
)
def test_acquired_radiographs_see_the_patient_go_on(meaning: str, choice: str | None, seen: bool) -> None:
    """Line integrals, as `simulate` makes them of a cube, do not unless told so; what was done is said."""
    pair = _pair(meaning, choice)
    assert any("above and below the cube" in line for line in pair.assumptions) == seen
    if seen:
        np.testing.assert_array_equal(pair.weights, misses_surroundings(pair.beam))
    else:
        assert pair.weights is None
