# SPDX-License-Identifier: Apache-2.0
"""Laws of HU, mu and the networks' scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade.attenuation import hu_to_mu, hu_to_unit, mu_to_hu, unit_to_hu, water_attenuation


def test_water_attenuation_equals_nist_at_its_nodes():
    """60 keV stands in the table: 0.2059 cm²/g, 0.02059 per mm."""
    assert water_attenuation(60.0) == pytest.approx(0.02059, rel=1e-12)


def test_water_attenuation_refuses_energies_outside_the_table():
    """Extrapolating a K-edge away would be silent nonsense."""
    with pytest.raises(ValueError, match="energy_kev must lie in"):
        water_attenuation(5.0)


def test_hu_to_mu_fixes_water_and_air():
    """0 HU is water, -1000 HU vacuum, and nothing attenuates less than vacuum."""
    mu = hu_to_mu(np.array([0.0, -1000.0, -1024.0]))
    np.testing.assert_allclose(mu, [water_attenuation(), 0.0, 0.0], atol=1e-12)


def test_mu_to_hu_inverts_hu_to_mu():
    """Both ways give back the CT above vacuum."""
    hu = torch.linspace(-1000, 3000, 101, dtype=torch.float64)
    torch.testing.assert_close(mu_to_hu(hu_to_mu(hu)), hu)


def test_unit_scale_spans_the_hu_window():
    """-1024 is 0, 1024 is 1, and what lies outside is clipped."""
    hu = torch.tensor([-3000.0, -1024.0, 0.0, 1024.0, 3000.0])
    torch.testing.assert_close(hu_to_unit(hu), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(unit_to_hu(hu_to_unit(hu)), hu.clamp(-1024, 1024))
