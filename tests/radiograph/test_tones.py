# SPDX-License-Identifier: Apache-2.0
"""Laws of grey levels brought to typical line integrals: their order is all that counts."""

from __future__ import annotations

import numpy as np
import pytest

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals
from progressive_cascade.radiograph.tones import TYPICAL, typical_line_integrals

KINDS = ("frontal", "lateral")


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """The line integrals of an unseen phantom (2, 128, 128)."""
    import torch

    made = generate_phantom(2000011, shape=(64, 64, 64), spacing=5.6)
    beam = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
    hu = torch.from_numpy(made.hu.astype(np.float32))[None, None]
    return line_integrals(hu_to_mu(hu), beam, affine=volume_affine((64, 64, 64), 5.6))[0].numpy()


@pytest.mark.parametrize("curve", [lambda y: 40 * y + 7, np.sqrt, lambda y: 1 / (1 + np.exp(2 - y)), lambda y: y**2])
def test_any_monotone_curve_gives_the_same_line_integrals(phantom, curve) -> None:
    """Whatever a console made of them; but for what the curve moves across the border to air."""
    everywhere = np.ones(phantom[0].shape, dtype=bool)
    for view, kind in zip(phantom, KINDS, strict=True):
        plain = typical_line_integrals(view, everywhere, kind)
        assert np.abs(typical_line_integrals(curve(view), everywhere, kind) - plain).mean() < 0.2
        order = np.argsort(view, axis=None)
        assert (np.diff(plain.ravel()[order]) >= 0).all()


def test_a_patient_is_brought_near_his_own_line_integrals(phantom) -> None:
    """Nearer than by the 1st and the 99th percentile, most of all where the film shows no air."""
    for view, kind in zip(phantom, KINDS, strict=True):
        for part in (view, view[28:100, 40:88]):
            grey = np.sqrt(part)
            low, high = np.percentile(grey, [1, 99])
            found = typical_line_integrals(grey, np.ones(part.shape, dtype=bool), kind)
            error, stretched = (np.abs(one - part).mean() for one in (found, 6 * (grey - low) / (high - low)))
            assert error < 0.8 and error < stretched


def test_what_is_not_seen_does_not_count(phantom) -> None:
    """A letter of lead, outside the mask, changes nothing elsewhere."""
    view, seen = phantom[0].copy(), np.ones(phantom[0].shape, dtype=bool)
    seen[:20, :20] = False
    plain = typical_line_integrals(view, seen, "frontal")
    view[:20, :20] = 1e4
    assert np.array_equal(typical_line_integrals(view, seen, "frontal")[seen], plain[seen])


def test_straight_values_keep_their_proportions(phantom) -> None:
    """A line through them: a gain and an offset, no curve."""
    found = typical_line_integrals(3 * phantom[1] + 5, np.ones(phantom[1].shape, dtype=bool), "lateral", straight=True)
    gain, offset = np.polyfit(phantom[1].ravel(), found.ravel(), 1)
    assert np.allclose(gain * phantom[1] + offset, found, atol=1e-3) and 0.7 < gain < 1.4


def test_a_picture_of_almost_nothing_stays_finite() -> None:
    """A saturated one, a dot, two levels."""
    dot = np.zeros((64, 64))
    dot[3, 3] = 1
    for image in (dot, np.ones((64, 64)), np.indices((64, 64))[0] // 32):
        found = typical_line_integrals(image, np.ones((64, 64), dtype=bool), "frontal")
        assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 10 * TYPICAL["frontal"][-1]
