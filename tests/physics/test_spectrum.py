# SPDX-License-Identifier: Apache-2.0
"""Laws of X-ray spectra, and how far the tube model is from what others publish."""

from __future__ import annotations

import numpy as np
import pytest

from progressive_cascade.attenuation import DENSITY, mass_attenuation
from progressive_cascade.physics import Spectrum, half_value_layer, monoenergetic, parse_spectrum, tube_spectrum


@pytest.mark.parametrize(
    ("kilovolt", "expected"), [(60, 2.08), (70, 2.40), (80, 2.73), (100, 3.46), (120, 4.22), (150, 5.37)]
)
def test_half_value_layer_is_near_spekpy(kilovolt: int, expected: float) -> None:
    """Behind 2.5 mm Al at 12 degrees the first half-value layer is SpekPy 2.5's within 8 %.

    Poludniowski et al., Medical Physics 48, 2021, doi 10.1002/mp.14945.
    """
    assert half_value_layer(tube_spectrum(kilovolt, filtration=2.5)) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    ("kilovolt", "first", "homogeneity"),
    [(60, 2.19, 0.74), (70, 2.58, 0.71), (80, 3.01, 0.69), (100, 3.97, 0.68), (120, 5.00, 0.68), (150, 6.57, 0.72)],
)
def test_spectrum_has_the_shape_of_the_standard_beams(kilovolt: int, first: float, homogeneity: float) -> None:
    """Filtered to the first half-value layer of IEC 61267's RQR beams, the second one is the standard's within 3 %."""
    low, high = 1.0, 8.0
    for _ in range(30):
        middle = (low + high) / 2
        too_soft = half_value_layer(tube_spectrum(kilovolt, filtration=middle)) < first
        low, high = (middle, high) if too_soft else (low, middle)
    assert 2.5 < low < 5.0
    spectrum = tube_spectrum(kilovolt, filtration=low)
    second = half_value_layer(spectrum, 0.25) - half_value_layer(spectrum)
    assert half_value_layer(spectrum) / second == pytest.approx(homogeneity, rel=0.03)


def test_k_lines_appear_above_the_k_edge() -> None:
    """At 69 kV the spectrum is smooth; at 120 kV the bins of 58 and 59 keV stand out, about 8 % of the photons."""
    low, high = (np.array(tube_spectrum(kilovolt, filtration=2.5).photons) for kilovolt in (69, 120))
    line = slice(47, 50)  # 57 to 60 keV
    around = slice(44, 47)
    assert low[line].sum() < low[around].sum()
    assert 0.05 < high[line].sum() - high[around].sum() < 0.09


def test_spectrum_ends_at_the_tube_voltage() -> None:
    """No photon has more energy than an electron had, and almost none less than 15 keV comes through the filter."""
    spectrum = tube_spectrum(100.5)
    assert max(spectrum.energies) < 100.5
    assert sum(spectrum.photons) == pytest.approx(1.0, abs=1e-12)
    assert sum(share for energy, share in zip(spectrum.energies, spectrum.photons, strict=True) if energy < 15) < 1e-4


@pytest.mark.parametrize("changed", [{"kilovolt": 140}, {"filtration": 6.0}, {"anode_angle": 6.0}])
def test_beam_hardens(changed: dict) -> None:
    """More voltage, more filter and a flatter anode each raise the mean energy."""
    usual = {"kilovolt": 120, "filtration": 3.0, "anode_angle": 12.0}
    assert tube_spectrum(**{**usual, **changed}).mean_energy > tube_spectrum(**usual).mean_energy + 0.5


def test_filtration_adds_up() -> None:
    """Filtered by the tube or by a layer behind it, aluminium is aluminium."""
    once, twice = tube_spectrum(90, filtration=5.0), tube_spectrum(90, filtration=2.0).filtered("aluminium", 3.0)
    np.testing.assert_allclose(once.photons, twice.photons, rtol=1e-10)


def test_half_value_layer_of_one_energy_is_exact() -> None:
    """It is ln 2 / mu."""
    mu = mass_attenuation("aluminium", 60.0) * DENSITY["aluminium"] / 10
    assert half_value_layer(monoenergetic(60.0)) == pytest.approx(np.log(2) / mu, rel=1e-6)


@pytest.mark.parametrize("text", ["120kV", "120 kVp", "120.0KV"])
def test_parse_spectrum_knows_tubes(text: str) -> None:
    """Spaces, capitals and the p of kVp do not matter."""
    assert parse_spectrum(text) == tube_spectrum(120.0)


def test_parse_spectrum_knows_energies() -> None:
    """`70keV` is one energy."""
    assert parse_spectrum("70keV") == Spectrum((70.0,), (1.0,))


@pytest.mark.parametrize("text", ["", "120", "120 mA", "50kV", "160kV", "10keV", "300keV", "-70keV", "nankV"])
def test_parse_spectrum_refuses_what_is_none(text: str) -> None:
    """The message says what may be given, and what was."""
    with pytest.raises(ValueError, match=f"spectrum must be a tube voltage from 60kV to 150kV or .*got {text!r}"):
        parse_spectrum(text)


@pytest.mark.parametrize(
    ("energies", "photons", "expected"),
    [
        ((60.0,), (1.0, 2.0), "as many"),
        ((80.0, 60.0), (1.0, 1.0), "ascend"),
        ((5.0,), (1.0,), "between 10 and 200"),
        ((60.0,), (0.0,), "not all zero"),
        ((60.0, 70.0), (1.0, -1.0), "nowhere negative"),
    ],
)
def test_spectrum_refuses_what_is_impossible(energies: tuple, photons: tuple, expected: str) -> None:
    """Numbers that do not match, wrong energies and missing photons are told apart."""
    with pytest.raises(ValueError, match=expected):
        Spectrum(energies, photons)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"kilovolt": 40}, "kilovolt"), ({"filtration": -1.0}, "filtration"), ({"anode_angle": 0.0}, "anode_angle")],
)
def test_tube_spectrum_refuses_what_is_out_of_range(arguments: dict, expected: str) -> None:
    """The argument is named."""
    with pytest.raises(ValueError, match=f"{expected} must lie in"):
        tube_spectrum(**{"kilovolt": 120, **arguments})
