# SPDX-License-Identifier: Apache-2.0
"""Acquisitions drawn at random: what each level of knowledge keeps, and what a tube's spectrum leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade.attenuation import EFFECTIVE_ENERGY_KEV, water_attenuation
from progressive_cascade.physics import (
    Acquired,
    AcquisitionRange,
    acquire,
    harden,
    polyenergetic,
    tube_spectrum,
    water_equivalent,
)
from progressive_cascade.physics.tones import TYPICAL

QUIET = {
    "spectra": 0.0, "photons": (1e12, 1e12), "blur": 0.0, "scatter": 0.0, "heel": 0.0,
    "saturated": 0.0, "collimated": 0.0,
}  # fmt: skip


def _thorax(batch: int = 3) -> torch.Tensor:
    """Smooth line integrals from 0 to 6 (b, 2, 64, 64)."""
    at = torch.linspace(-1, 1, 64)
    hill = torch.exp(-3 * (at[:, None] ** 2 + at**2))
    return (6 * hill).expand(batch, 2, 64, 64).contiguous()


def _acquire(lines: torch.Tensor, settings: AcquisitionRange, seed: int = 0) -> Acquired:
    random = [np.random.default_rng((seed, index)) for index in range(len(lines))]
    return acquire(lines, settings, random, pitch=torch.full((len(lines),), 5.0))


def test_calibrated_radiographs_keep_their_line_integrals() -> None:
    """Without noise and scatter nothing changes; the flag says 1."""
    image, known, *_ = _acquire(_thorax(), AcquisitionRange(scaled=0, display=0, **QUIET))
    assert known.tolist() == [1, 1, 1]
    torch.testing.assert_close(image, _thorax(), atol=1e-3, rtol=0)


def test_scaled_radiographs_are_a_line_of_the_true_ones_in_each_view() -> None:
    """Gain and offset of every view lie in their ranges, and differ."""
    settings = AcquisitionRange(scaled=1, display=0, **QUIET)
    image, known, *_ = _acquire(_thorax(), settings)
    assert known.tolist() == [0, 0, 0]
    found = []
    for given, true in zip(image.flatten(0, 1), _thorax().flatten(0, 1), strict=True):
        gain, offset = np.polyfit(true.flatten().double(), given.flatten().double(), 1)
        np.testing.assert_allclose(given.flatten(), gain * true.flatten() + offset, atol=2e-3)
        assert 0.7 <= gain <= 1.4 and abs(offset) <= 0.3
        found.append(gain)
    assert len(set(np.round(found, 4))) == len(found)


def test_display_radiographs_are_read_as_pictures_are() -> None:
    """Their quantiles are a typical patient's whatever the curve; the air beside him is 0; no two samples are alike."""
    image, known, _, display = _acquire(_thorax(8), AcquisitionRange(scaled=0, display=1, clipped=0, **QUIET))
    assert known.sum() == 0 and display is not None and display.sum() == 8
    for view, kind in enumerate(("frontal", "lateral")):
        bodies = [one[view][one[view] > TYPICAL[kind][0]] for one in image]
        middles = torch.stack([body.median() for body in bodies])
        torch.testing.assert_close(middles, torch.full_like(middles, TYPICAL[kind][10]), atol=0.05, rtol=0)
        assert image[:, view, 0, 0].max() < TYPICAL[kind][0]
    assert len({round(float(one[0, 32, 20]), 3) for one in image}) == len(image)


def test_local_contrast_takes_what_the_surroundings_have_in_common() -> None:
    """A wide hill flattens, against narrow lines on it; without it the order of the pixels is kept."""
    lines = _thorax(6) + 0.3 * (torch.arange(64) % 8 < 2)

    def order(contrast: float) -> float:
        settings = AcquisitionRange(scaled=0, display=1, contrast=contrast, clipped=0, **QUIET)
        image = _acquire(lines, settings).image[:, :, 16:48, 16:48]
        inside = lines[:, :, 16:48, 16:48]
        ranks = [
            one.flatten(1).argsort(dim=1).argsort(dim=1).double() for one in (image.flatten(0, 1), inside.flatten(0, 1))
        ]
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))

    assert order(0.0) > 0.99 > order(1.0)


def test_black_and_white_are_cut_off() -> None:
    """Up to the share that is asked for has the darkest value, and the brightest."""
    plain, cut = (
        _acquire(_thorax(6), AcquisitionRange(scaled=0, display=1, contrast=0, clipped=clipped, **QUIET)).image
        for clipped in (0.0, 0.2)
    )
    brightest = [(one == one.amax(dim=(-2, -1), keepdim=True)).float().mean(dim=(-2, -1)) for one in (plain, cut)]
    assert brightest[0].max() < 0.02 < brightest[1].max() <= 0.22


def test_focal_spot_and_detector_blur_the_beam() -> None:
    """A step spreads by the width drawn, which is none above the limit; open field and thick patient stay."""
    step = torch.zeros(40, 1, 16, 256)
    step[..., 128:] = 2.0
    blurred = _acquire(step, AcquisitionRange(scaled=0, display=0, **{**QUIET, "blur": 10.0})).image
    torch.testing.assert_close(blurred[..., [0, -1]], step[..., [0, -1]], atol=1e-4, rtol=0)
    slope = -torch.exp(-blurred[:, 0, 8].double()).diff(dim=-1)
    slope, at = slope / slope.sum(dim=-1, keepdim=True), torch.arange(255).double() - 127
    width = 5.0 * ((slope * at**2).sum(dim=-1)).clamp(min=0).sqrt()
    assert 8 < float(width.max()) < 10.5 and float(width.min()) < 3


def test_a_saturated_detector_shows_nothing_of_the_open_field() -> None:
    """Line integrals end at a floor of up to 1.2, of the uncalibrated alone; the patient's shadow stays."""
    settings = AcquisitionRange(scaled=0.5, display=0, gain=(1, 1), offset=0, **{**QUIET, "saturated": 1.0})
    image, known, *_ = _acquire(_thorax(16), settings)
    floors = image.flatten(1).amin(dim=1)
    assert 0 < known.sum() < 16 and (floors[known == 1] < 0.02).all()
    assert ((floors[known == 0] > 0.09) & (floors[known == 0] < 1.21)).all()
    thick = _thorax(16) > 1.3
    torch.testing.assert_close(image[thick], _thorax(16)[thick], atol=1e-3, rtol=0)


def test_a_collimator_hides_a_border_that_counts_for_nothing() -> None:
    """Behind it stands the nearest pixel beside it; inside nothing changes; no side loses more than 15 %."""
    image, _, weights, _ = _acquire(_thorax(8), AcquisitionRange(scaled=0, display=0, **{**QUIET, "collimated": 1.0}))
    assert weights is not None and set(weights.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(image[weights > 0], _thorax(8)[weights > 0], atol=1e-3, rtol=0)
    assert (weights[:, :, 10:-10, 10:-10] == 1).all()
    rows, cols = weights.amax(dim=3), weights.amax(dim=2)
    torch.testing.assert_close(rows[..., :, None] * cols[..., None, :], weights)
    first = rows[0, 0].argmax()
    assert first > 0
    torch.testing.assert_close(image[0, 0, :first], image[0, 0, first].expand(int(first), -1))


def test_shares_of_what_is_known_are_kept() -> None:
    """A fifth scaled, a fifth display, the rest calibrated, over 300 samples."""
    settings = AcquisitionRange(scaled=0.2, display=0.2, **QUIET)
    known = [_acquire(_thorax(1)[..., ::8, ::8], settings, seed)[1].item() for seed in range(300)]
    assert 0.5 < np.mean(known) < 0.7


def test_a_sample_is_a_function_of_its_generator() -> None:
    """The same twice, whatever stands beside it in the batch."""
    settings = AcquisitionRange()
    for seed in range(6):
        both, alone = (_acquire(_thorax(count), settings, seed) for count in (2, 1))
        for one, other in zip(both, alone, strict=True):
            torch.testing.assert_close(one[:1], other, rtol=0, atol=1e-6)


def test_a_hardened_beam_is_exact_behind_water_and_short_behind_bone() -> None:
    """After the correction for water: 200 mm of water as at 70 keV; bone attenuates more than at that energy."""
    water = torch.tensor([[0.0, 100.0, 200.0]])
    expected = water * water_attenuation(EFFECTIVE_ENERGY_KEV)
    torch.testing.assert_close(harden(water, torch.zeros_like(water), 100.0), expected, atol=2e-3, rtol=1e-3)
    with_bone = harden(water, torch.full_like(water, 20.0), 60.0) - expected
    assert (with_bone > 0).all()


@pytest.mark.parametrize("kilovolts", [60.0, 100.0, 140.0])
def test_coarse_bins_of_energy_are_as_good_as_fine_ones(kilovolts: float) -> None:
    """Water up to 300 mm and bone up to 30: line integrals up to 7 agree to 0.01 with those of bins of 1 keV."""
    water, bone = torch.meshgrid(torch.linspace(0, 300, 16), torch.linspace(0, 60, 7), indexing="ij")
    spectrum = tube_spectrum(kilovolts)
    fine = water_equivalent(polyenergetic(water, bone, spectrum), spectrum)
    torch.testing.assert_close(harden(water, bone, kilovolts), fine, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scaled": 0.6, "display": 0.6}, "must not exceed 1 together"),
        ({"kilovolts": [40, 100]}, "kilovolt must lie in"),
        ({"gain": [1.2, 0.8]}, "gain must ascend"),
        ({"gains": [1, 2]}, r"unknown keys \['gains'\]"),
        ({"scatter": -1}, "scatter must lie in"),
        ({"blur": 20}, "blur must lie in"),
        ({"collimated": 2}, "collimated must lie in"),
    ],
)
def test_impossible_acquisitions_are_refused(values: dict, message: str) -> None:
    """One line that names the field."""
    with pytest.raises(ValueError, match=message):
        AcquisitionRange.from_dict(values)
