# SPDX-License-Identifier: Apache-2.0
"""Laws of views from the other side: left stays left and front stays front, whichever side a picture is taken from."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.geometry import ConeBeam, GeometryRange, volume_affine
from progressive_cascade.inference import reconstruct as module
from progressive_cascade.inference.first_look import first_look
from progressive_cascade.inference.opposite import mirror_matrices, mirror_pictures, usual_beam
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals

SHAPE, SPACING = (64, 64, 64), 5.6
USUAL = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
LEARNT = GeometryRange((600.0, 1900.0), (300.0, 430.0), turn=10.0, offset=30.0, opposite=True)
# In the left lung (x is the patient's right), towards the front, above the middle [mm].
MARKER = (-62.0, 35.0, 25.0)


def _beam(*views: str) -> ConeBeam:
    return ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36), views=views)


@cache
def _patient(marked: bool) -> torch.Tensor:
    hu = generate_phantom(4, shape=SHAPE, spacing=SPACING).hu.astype(np.float32)
    if marked:
        points = (np.indices(SHAPE).transpose(1, 2, 3, 0) - 31.5) * SPACING
        hu[((points - MARKER) ** 2).sum(axis=-1) < 14.0**2] = 1000.0
    return torch.from_numpy(hu)[None, None]


@cache
def _take(beam: ConeBeam, marked: bool) -> np.ndarray:
    return line_integrals(hu_to_mu(_patient(marked)), beam, affine=volume_affine(SHAPE, SPACING))[0].numpy()


@pytest.mark.parametrize(
    ("views", "trained"),
    [
        (("pa", "left_lateral"), None),
        (("ap", "left_lateral"), None),
        (("pa", "right_lateral"), None),
        (("ap", "right_lateral"), None),
        (("ap", "right_lateral"), LEARNT),
        (("lao176_cranial4", "rao84"), LEARNT),
    ],
)
def test_marker_in_the_left_lung_stays_there(
    small_cascade, monkeypatch: pytest.MonkeyPatch, views: tuple[str, str], trained: GeometryRange | None
):
    """What a marker adds to a reconstruction lies where the marker is: left, in front, above."""
    monkeypatch.setattr(module, "VOLUME_SHAPE", SHAPE)
    monkeypatch.setattr(module, "VOXEL_SIZE", SPACING)
    network, beam = small_cascade(stage=2, geometry_range=trained).eval(), _beam(*views)
    with_it, without = (
        module.reconstruct(_take(beam, marked), beam, network=network, refine=0) for marked in (True, False)
    )
    added = np.clip(with_it.hu.astype(float) - without.hu, 0, None)
    added[added < 0.8 * added.max()] = 0
    points = (np.indices(SHAPE).transpose(1, 2, 3, 0) - 31.5) * SPACING
    place = (points * added[..., None]).sum(axis=(0, 1, 2)) / added.sum()
    np.testing.assert_allclose(place, MARKER, atol=12.0)
    assert list(with_it.agreement) == list(views)
    np.testing.assert_array_equal(with_it.image, _take(beam, True))


def test_usual_views_are_left_alone():
    """A PA and a left lateral are no views from the other side."""
    assert usual_beam(USUAL) is None
    assert usual_beam(_beam("ap", "right_lateral")) == USUAL


def test_mirrored_pictures_have_mirrored_matrices():
    """A point that projects to column c of a right lateral projects to the last column minus c of its mirror image."""
    beam = _beam("pa", "right_lateral")
    matrices = torch.from_numpy(beam.projection_matrices())[None]
    flipped, point = mirror_matrices(matrices, beam), torch.tensor([20.0, -30.0, 40.0, 1.0], dtype=torch.float64)
    before, after = (part[0, 1] @ point for part in (matrices, flipped))
    assert float(after[0] / after[2]) == pytest.approx(127 - float(before[0] / before[2]))
    assert float(after[1] / after[2]) == pytest.approx(float(before[1] / before[2]))
    image = _take(beam, True)
    np.testing.assert_array_equal(mirror_pictures(mirror_pictures(image, beam), beam), image)


def test_first_look_names_the_views_it_was_given(small_cascade):
    """An AP and a right lateral are judged as the usual pair, under their own names."""
    beam = _beam("ap", "right_lateral")
    scores = first_look(small_cascade().eval(), _take(beam, False), beam).agreement_db
    assert list(scores) == ["ap", "right_lateral"] and all(np.isfinite(value) for value in scores.values())
