# SPDX-License-Identifier: Apache-2.0
"""Laws of HU, mu and the networks' scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from progressive_cascade.attenuation import (
    SOFT_TISSUE_HU,
    bilinear_hu_to_mu,
    cortical_bone_hu,
    decompose_hu,
    hu_to_mu,
    hu_to_unit,
    mass_attenuation,
    mu_to_hu,
    unit_to_hu,
    water_attenuation,
)


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


def test_cortical_bone_has_its_ct_number():
    """At 60 keV bone of 1.92 g/cm³ has 1.92 * 0.3148 / 0.2059 times water's mu."""
    assert cortical_bone_hu(60.0) == pytest.approx(1000 * (1.92 * 0.3148 / 0.2059 - 1), rel=1e-9)


@pytest.mark.parametrize("ct_energy", [60.0, 70.0, 80.0])
def test_decompose_hu_attenuates_as_the_ct_says(ct_energy):
    """At the CT's own energy water and bone together give back mu, from vacuum to metal."""
    hu = torch.linspace(-1100, 4000, 511, dtype=torch.float64)
    water, bone = decompose_hu(hu, ct_energy)
    mu = (water * mass_attenuation("water", ct_energy) + bone * mass_attenuation("cortical bone", ct_energy)) / 10
    torch.testing.assert_close(mu, hu_to_mu(hu, ct_energy))
    assert bool((water >= 0).all())
    assert bool((bone >= 0).all())


def test_decompose_hu_fixes_air_water_and_bone():
    """Vacuum is nothing, water is 1 g/cm³, cortical bone 1.92 g/cm³, and soft tissue holds no bone."""
    hu = np.array([-1000.0, 0.0, SOFT_TISSUE_HU, cortical_bone_hu()])
    water, bone = decompose_hu(hu)
    np.testing.assert_allclose(water, [0.0, 1.0, 1.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(bone, [0.0, 0.0, 0.0, 1.92], atol=1e-12)


def test_bilinear_hu_to_mu_is_the_water_rule_at_the_cts_energy():
    """The default is bit for bit what it was."""
    hu = torch.linspace(-1100, 3000, 101)
    torch.testing.assert_close(bilinear_hu_to_mu(hu), hu_to_mu(hu), rtol=0, atol=0)


def test_bilinear_hu_to_mu_is_true_for_water_and_bone():
    """At 60 keV, far from the CT's 80, water and cortical bone have NIST's attenuation; the water rule misses bone."""
    hu = np.array([0.0, cortical_bone_hu(80.0)])
    np.testing.assert_allclose(bilinear_hu_to_mu(hu, 60.0, 80.0), [0.02059, 1.92 * 0.03148], rtol=1e-9)
    assert hu_to_mu(hu, 60.0)[1] < 0.9 * 1.92 * 0.03148


def test_bilinear_hu_to_mu_takes_a_ct_as_it_is_stored():
    """Whole numbers, as arrays and as tensors, give the same mu."""
    hu = np.array([-1024, -500, 0, 300, 3071], dtype=np.int16)
    np.testing.assert_allclose(
        bilinear_hu_to_mu(hu, 100.0), bilinear_hu_to_mu(torch.from_numpy(hu), 100.0).numpy(), rtol=1e-5
    )


def test_bilinear_hu_to_mu_passes_gradcheck():
    """The gradient is that of the line the voxel lies on."""
    hu = torch.tensor([-700.0, 40.0, 500.0, 2500.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bilinear_hu_to_mu(x, 90.0), (hu,))
