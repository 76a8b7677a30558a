# SPDX-License-Identifier: Apache-2.0
"""Laws of the attenuation tables."""

from __future__ import annotations

import numpy as np
import pytest

from progressive_cascade.attenuation import DENSITY, air_energy_absorption, mass_attenuation


@pytest.mark.parametrize(
    ("material", "energy", "value"),
    [
        ("water", 60.0, 0.2059),
        ("water", 150.0, 0.1505),
        ("cortical bone", 60.0, 0.3148),
        ("cortical bone", 100.0, 0.1855),
        ("aluminium", 30.0, 1.128),
        ("tungsten", 100.0, 4.438),
        ("caesium iodide", 60.0, 7.921),
    ],
)
def test_mass_attenuation_equals_nist_at_its_nodes(material: str, energy: float, value: float) -> None:
    """The tabulated energies give the tabulated values."""
    assert mass_attenuation(material, energy) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("material", sorted(DENSITY))
def test_mass_attenuation_falls_between_edges(material: str) -> None:
    """Attenuation falls with the energy, except at the absorption edges, where it leaps up."""
    energies = np.arange(10.5, 200.0)
    rises = np.flatnonzero(np.diff(mass_attenuation(material, energies)) > 0)
    edges = {"tungsten": [10.2, 11.5, 12.1, 69.5], "caesium iodide": [33.2, 36.0]}.get(material, [])
    assert all(min(abs(energies[rise] + 0.5 - edge) for edge in edges) < 1.0 for rise in rises)
    assert len(rises) <= len(edges)


def test_mass_attenuation_leaps_at_the_k_edge() -> None:
    """Tungsten absorbs more than four times as much just above 69.525 keV."""
    below, above = mass_attenuation("tungsten", np.array([69.52, 69.53]))
    assert above / below == pytest.approx(11.23 / 2.552, rel=1e-3)


def test_air_absorbs_less_than_it_attenuates() -> None:
    """Part of what air takes from the beam is scattered on: mu_en stays below the mu of water, which air resembles."""
    energies = np.arange(20.0, 200.0)
    assert (air_energy_absorption(energies) < mass_attenuation("water", energies)).all()


def test_mass_attenuation_refuses_what_it_does_not_know() -> None:
    """An unknown material and an energy outside the tables are named."""
    with pytest.raises(ValueError, match=r"material must be one of .*'lead'"):
        mass_attenuation("lead", 60.0)
    with pytest.raises(ValueError, match=r"energy_kev must lie in \[10, 200\]"):
        mass_attenuation("water", np.array([60.0, 250.0]))
