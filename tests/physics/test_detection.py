# SPDX-License-Identifier: Apache-2.0
"""Laws of what a detector makes of radiation: energies, scatter, counts, logarithm, display."""

from __future__ import annotations

import math

import pytest
import torch

from progressive_cascade.attenuation import mass_attenuation, water_attenuation
from progressive_cascade.physics import (
    Exposure,
    Spectrum,
    detect,
    detector_signal,
    display_image,
    display_window,
    log_counts,
    monoenergetic,
    noisy_counts,
    polyenergetic,
    scattered,
    tube_spectrum,
    water_equivalent,
)

THICKNESS = torch.linspace(0, 400, 81, dtype=torch.float64)
NONE = torch.zeros_like(THICKNESS)


@pytest.mark.parametrize("energy", [40.0, 70.0, 110.0])
def test_polyenergetic_of_one_energy_is_beer_lambert(energy: float) -> None:
    """The mono-energetic limit: mu of water times its length, plus mu of bone times its."""
    p = polyenergetic(THICKNESS, THICKNESS / 4, monoenergetic(energy))
    expected = THICKNESS * (mass_attenuation("water", energy) + mass_attenuation("cortical bone", energy) / 4) / 10
    torch.testing.assert_close(p, expected)


def test_polyenergetic_of_a_narrow_spectrum_is_almost_one_energy() -> None:
    """Photons from 69 to 71 keV attenuate as those of 70 keV do, to a part in a thousand."""
    narrow = Spectrum((69.0, 70.0, 71.0), (1.0, 1.0, 1.0))
    torch.testing.assert_close(
        polyenergetic(THICKNESS, NONE, narrow), THICKNESS * water_attenuation(70.0), rtol=1e-3, atol=1e-12
    )


def test_polyenergetic_of_two_energies_is_their_mean_transmission() -> None:
    """With a detector that absorbs every photon the signal is the photons' energy."""
    spectrum = Spectrum((40.0, 80.0), (3.0, 1.0))
    low, high = (torch.exp(-THICKNESS * water_attenuation(energy)) for energy in spectrum.energies)
    expected = -torch.log((low * 3 * 40 + high * 80) / (3 * 40 + 80))
    torch.testing.assert_close(polyenergetic(THICKNESS, NONE, spectrum, None), expected)


@pytest.mark.parametrize("kilovolt", [60, 120, 150])
def test_beam_hardening_lowers_the_effective_attenuation(kilovolt: int) -> None:
    """Each further centimetre of water attenuates less than the one before, and never less than the hardest photons."""
    step = torch.diff(polyenergetic(THICKNESS, NONE, tube_spectrum(kilovolt))) / torch.diff(THICKNESS)
    assert bool((torch.diff(step) < 0).all())
    assert float(step[-1]) > water_attenuation(kilovolt)


def test_polyenergetic_stays_finite_behind_anything() -> None:
    """Metres of bone, in single precision, give a finite number and a finite gradient."""
    bone = torch.tensor([0.0, 1e2, 1e4, 1e6], requires_grad=True)
    p = polyenergetic(torch.zeros(4), bone, tube_spectrum(120))
    p.sum().backward()
    assert bone.grad is not None
    assert bool(torch.isfinite(p).all() and torch.isfinite(bone.grad).all())
    assert bool((torch.diff(p) > 0).all())


def test_water_equivalent_undoes_hardening_in_water() -> None:
    """Behind water alone it returns the line integrals at 70 keV, within 1e-4, and noise below zero stays below."""
    spectrum = tube_spectrum(120)
    p = polyenergetic(THICKNESS, NONE, spectrum)
    torch.testing.assert_close(water_equivalent(p, spectrum), THICKNESS * water_attenuation(70.0), rtol=1e-5, atol=1e-4)
    assert float(water_equivalent(torch.tensor(-0.1), spectrum)) < 0


def test_detector_signal_is_a_share_that_favours_energy() -> None:
    """The shares sum to 1; where every photon is absorbed, twice the energy is twice the signal."""
    spectrum = Spectrum((40.0, 80.0), (1.0, 1.0))
    assert detector_signal(spectrum, None).tolist() == pytest.approx([1 / 3, 2 / 3])
    thin = detector_signal(spectrum, 0.05)
    assert thin.sum() == pytest.approx(1.0)
    assert thin[1] < 2 / 3  # fast photons pass a thin scintillator


def test_scatter_adds_its_ratio_of_the_mean_primary() -> None:
    """Behind an even slab scatter is the ratio times the primary, everywhere; behind a patient, on average."""
    slab = torch.full((2, 24, 32), 0.1, dtype=torch.float64)
    torch.testing.assert_close(scattered(slab, 0.5, sigma=(8.0, 8.0)), 0.5 * slab)
    patient = torch.ones(1, 40, 40, dtype=torch.float64)
    patient[:, 10:30, 8:28] = torch.rand((1, 20, 20), generator=torch.Generator().manual_seed(0)).double() * 0.3
    added = scattered(patient, 2.0, sigma=(6.0, 6.0))
    shadow = patient < 0.5
    assert float(added[shadow].mean() / patient[shadow].mean()) == pytest.approx(2.0, rel=1e-9)


def test_scatter_of_an_empty_beam_is_none() -> None:
    """Without a patient nothing scatters, and views are scattered one by one."""
    image = torch.ones(2, 16, 16)
    assert float(scattered(image, 3.0, sigma=(4.0, 4.0)).abs().max()) == 0.0
    image[1] = 0.2
    added = scattered(image, 3.0, sigma=(4.0, 4.0))
    assert float(added[0].abs().max()) == 0.0
    assert float(added[1].min()) > 0


@pytest.mark.parametrize("differentiable", [False, True])
def test_count_variance_is_its_mean(differentiable: bool) -> None:
    """Poisson's law, for the true draw and for the differentiable one; electronic noise adds its square."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.full((400_000,), 60.0, dtype=torch.float64)
    for electronic, variance in ((0.0, 60.0), (10.0, 160.0)):
        counts = noisy_counts(expected, electronic_noise=electronic, generator=generator, differentiable=differentiable)
        assert float(counts.mean()) == pytest.approx(60.0, rel=2e-3)
        assert float(counts.var()) == pytest.approx(variance, rel=1e-2)


def test_log_noise_is_unbiased_at_high_counts() -> None:
    """The mean of the logarithm is the line integral, its variance 1 / counts."""
    generator = torch.Generator().manual_seed(1)
    p, photons = torch.full((400_000,), 2.0, dtype=torch.float64), 1e5
    noisy = log_counts(noisy_counts(photons * torch.exp(-p), generator=generator), photons)
    counts = photons * math.exp(-2)
    assert float(noisy.mean()) == pytest.approx(2.0, abs=2e-5 + 1 / counts)
    assert float(noisy.var()) == pytest.approx(1 / counts, rel=1e-2)


def test_log_counts_is_finite_without_a_photon() -> None:
    """No photon, and fewer than none by electronic noise, read as half a photon."""
    torch.testing.assert_close(log_counts(torch.tensor([0.0, -3.0, 1e4]), 1e4), torch.tensor([2e4, 2e4, 1.0]).log())


def test_noise_follows_its_generator() -> None:
    """The same seed gives the same counts, another seed others."""
    expected = torch.full((64,), 30.0)
    first, same, other = (
        noisy_counts(expected, electronic_noise=2.0, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_detect_leaves_an_ideal_exposure_alone() -> None:
    """Without scatter and noise the line integrals come back, the same tensor."""
    image = torch.rand(1, 2, 8, 8)
    assert detect(image, Exposure(), pixel_spacing=(1.0, 1.0)) is image


@pytest.mark.parametrize("exposure", [Exposure(photons=100.0, electronic_noise=3.0), Exposure(scatter=1.0)])
def test_detect_is_finite_behind_anything(exposure: Exposure) -> None:
    """Line integrals up to 1000 give finite pixels."""
    image = torch.linspace(0, 1000, 256).reshape(1, 16, 16)
    generator = torch.Generator().manual_seed(0)
    assert bool(torch.isfinite(detect(image, exposure, pixel_spacing=(1.0, 1.0), generator=generator)).all())


def test_detect_scatter_lowers_line_integrals() -> None:
    """Radiation that did not come along the ray makes the patient look thinner, and most so where it is thickest."""
    image = torch.linspace(0.6, 6, 256).reshape(1, 16, 16)
    loss = image - detect(image, Exposure(scatter=0.5), pixel_spacing=(1.0, 1.0))
    assert bool((loss > 0).all())
    assert float(loss[0, -1, -1]) > float(loss[0, 0, 0])


def test_exposure_passes_gradcheck() -> None:
    """Energies, scatter, differentiable noise and logarithm: the gradient is that of finite differences."""
    spectrum = tube_spectrum(80)
    exposure = Exposure(spectrum="80kV", photons=1e4, electronic_noise=5.0, scatter=0.5, scatter_sigma=3.0)

    def image(water: torch.Tensor, bone: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        p = polyenergetic(water, bone, spectrum)
        return detect(p, exposure, pixel_spacing=(1.0, 1.0), generator=generator, differentiable=True)

    random = torch.Generator().manual_seed(1)
    water = (100 + 50 * torch.rand((1, 3, 4), generator=random, dtype=torch.float64)).requires_grad_()
    bone = (10 * torch.rand((1, 3, 4), generator=random, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(image, (water, bone))
    equivalent = (1 + torch.rand((5,), generator=random, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: water_equivalent(p, spectrum), (equivalent,))


def test_scatter_is_exact_under_autocast() -> None:
    """Half precision around it does not reach the blur."""
    image = torch.rand((1, 64, 64), generator=torch.Generator().manual_seed(0)) * 0.5
    expected = scattered(image, 1.0, sigma=(9.0, 9.0))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(scattered(image, 1.0, sigma=(9.0, 9.0)), expected)


def test_monochrome1_is_inverted_monochrome2() -> None:
    """Both show bone bright; they count from opposite ends."""
    image = torch.rand(2, 16, 16) * 5
    one, two = (display_image(image, photometric=name) for name in ("MONOCHROME1", "MONOCHROME2"))
    torch.testing.assert_close(one, 1 - two)
    assert float(two.flatten()[image.argmax()]) == 1.0


def test_display_window_is_explicit_or_each_views_own() -> None:
    """Line integrals at the window's ends become 0 and 1; without one, two views of other scale look the same."""
    image = torch.linspace(0, 4, 101).reshape(1, 1, 101)
    shown = display_image(image, (1.0, 3.0))
    assert shown[0, 0, [0, 25, 50, 75, 100]].tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    pair = torch.cat((image, 2 * image))
    torch.testing.assert_close(display_image(pair)[0], display_image(pair)[1])
    assert display_window(pair, (0, 100))[1].flatten().tolist() == pytest.approx([4.0, 8.0])


def test_display_of_a_constant_is_finite() -> None:
    """A view without contrast has no window of its own, and stays black."""
    assert float(display_image(torch.full((1, 8, 8), 2.0)).abs().max()) == 0.0


def test_display_refuses_what_is_impossible() -> None:
    """A window upside down, percentiles out of range and an unknown interpretation are named."""
    image = torch.rand(1, 8, 8)
    with pytest.raises(ValueError, match="window must ascend"):
        display_image(image, (3.0, 1.0))
    with pytest.raises(ValueError, match="percentiles must ascend"):
        display_window(image, (50.0, 120.0))
    with pytest.raises(ValueError, match=r"photometric must be one of .*'RGB'"):
        display_image(image, photometric="RGB")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"spectrum": "120"}, "spectrum must be a tube voltage"),
        ({"photons": 0}, "photons must be finite and positive or None, got 0"),
        ({"photons": float("nan")}, "photons must be finite"),
        ({"scatter": -0.1}, "scatter must be finite and at least 0"),
        ({"scatter_sigma": 0.0}, "scatter_sigma must be finite and positive"),
        ({"electronic_noise": 3.0}, "electronic_noise must come with photons"),
        ({"photons": 1e20}, "photons must be at most 1e\\+12"),
        ({"scatter": 1e3}, "scatter must be at most 100"),
        ({"filtration": -1.0}, "filtration must be finite and at least 0"),
    ],
)
def test_exposure_refuses_what_is_impossible(fields: dict, expected: str) -> None:
    """Every field is checked when the settings are made, and named."""
    with pytest.raises(ValueError, match=expected):
        Exposure(**fields)


def test_exposure_refuses_wrong_types() -> None:
    """Text for a number and a number for text are type errors."""
    with pytest.raises(TypeError, match="photons must be a number or None, got '1e5'"):
        Exposure(photons="1e5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spectrum must be text"):
        Exposure(spectrum=70)  # type: ignore[arg-type]


def test_exposure_survives_json() -> None:
    """`from_dict` of `to_dict` is the same exposure; unknown keys and formats are refused."""
    exposure = Exposure(spectrum="90kV", photons=5e4, scatter=0.3)
    assert Exposure.from_dict(exposure.to_dict()) == exposure
    assert not exposure.is_monoenergetic
    assert Exposure().is_monoenergetic
    with pytest.raises(ValueError, match="unknown keys"):
        Exposure.from_dict({"photon": 1e5})
    with pytest.raises(ValueError, match="format must be"):
        Exposure.from_dict({"format": "other"})
