# SPDX-License-Identifier: Apache-2.0
"""Laws of grey levels brought to typical line integrals: their order is all that counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.physics.tones import TYPICAL, typical_line_integrals
from progressive_cascade.projector import line_integrals

KINDS = ("frontal", "lateral")


def _typical(view: np.ndarray, kind: str, *, seen: np.ndarray | None = None, straight: bool = False) -> np.ndarray:
    mask = None if seen is None else torch.from_numpy(seen)[None]
    image = torch.from_numpy(np.ascontiguousarray(view))[None]
    return typical_line_integrals(image, [kind], seen=mask, straight=straight)[0].numpy()


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """The line integrals of an unseen phantom (2, 128, 128)."""
    made = generate_phantom(2000011, shape=(64, 64, 64), spacing=5.6)
    beam = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
    hu = torch.from_numpy(made.hu.astype(np.float32))[None, None]
    return line_integrals(hu_to_mu(hu), beam, affine=volume_affine((64, 64, 64), 5.6))[0].numpy()


@pytest.mark.parametrize("curve", [lambda y: 40 * y + 7, np.sqrt, lambda y: 1 / (1 + np.exp(2 - y)), lambda y: y**2])
def test_any_monotone_curve_gives_the_same_line_integrals(phantom, curve) -> None:
    """Whatever a console made of them; but for what the curve moves across the border to air."""
    for view, kind in zip(phantom, KINDS, strict=True):
        plain = _typical(view, kind)
        assert np.abs(_typical(curve(view), kind) - plain).mean() < 0.2
        order = np.argsort(view, axis=None)
        assert (np.diff(plain.ravel()[order]) >= 0).all()


def test_a_patient_is_brought_near_his_own_line_integrals(phantom) -> None:
    """Nearer than by the 1st and the 99th percentile, most of all where the film shows no air."""
    for view, kind in zip(phantom, KINDS, strict=True):
        for part in (view, view[28:100, 40:88]):
            grey = np.sqrt(part)
            low, high = np.percentile(grey, [1, 99])
            found = _typical(grey, kind)
            error, stretched = (np.abs(one - part).mean() for one in (found, 6 * (grey - low) / (high - low)))
            assert error < 0.8 and error < stretched


def test_what_is_not_seen_does_not_count(phantom) -> None:
    """A letter of lead, outside the mask, changes nothing elsewhere."""
    view, seen = phantom[0].copy(), np.ones(phantom[0].shape, dtype=bool)
    seen[:20, :20] = False
    plain = _typical(view, "frontal", seen=seen)
    view[:20, :20] = 1e4
    assert np.array_equal(_typical(view, "frontal", seen=seen)[seen], plain[seen])


def test_straight_values_keep_their_proportions(phantom) -> None:
    """A line through them: a gain and an offset, no curve."""
    found = _typical(3 * phantom[1] + 5, "lateral", straight=True)
    gain, offset = np.polyfit(phantom[1].ravel(), found.ravel(), 1)
    assert np.allclose(gain * phantom[1] + offset, found, atol=1e-3) and 0.7 < gain < 1.4


def test_a_picture_of_almost_nothing_stays_finite() -> None:
    """A saturated one, a dot, two levels."""
    dot = np.zeros((64, 64))
    dot[3, 3] = 1
    for image in (dot, np.ones((64, 64)), np.indices((64, 64))[0] // 32):
        found = _typical(image, "frontal")
        assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 10 * TYPICAL["frontal"][-1]


def test_views_of_a_batch_are_read_each_by_itself(phantom) -> None:
    """A batch of pairs gives what each view gives alone."""
    pairs = torch.from_numpy(np.stack([phantom, phantom**2]))
    found = typical_line_integrals(pairs, KINDS)
    for pair, got in zip(pairs.numpy(), found.numpy(), strict=True):
        for view, kind, one in zip(pair, KINDS, got, strict=True):
            np.testing.assert_allclose(one, _typical(view, kind), atol=1e-5)
