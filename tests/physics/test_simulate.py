# SPDX-License-Identifier: Apache-2.0
"""Laws of exposures of a CT: geometry and physics together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, line_integrals, volume_affine
from progressive_cascade.attenuation import cortical_bone_hu, hu_to_mu, mass_attenuation, water_attenuation
from progressive_cascade.physics import Exposure, polyenergetic, tube_spectrum, water_equivalent
from progressive_cascade.physics.simulate import expose, jittered_beam

BEAM = ConeBeam(
    source_to_isocenter=1500.0, source_to_detector=1800.0, detector_shape=(32, 32), pixel_spacing=(6.0, 6.0)
)
SIZE, SPACING = 24, 5.0
AFFINE = volume_affine((SIZE, SIZE, SIZE), SPACING)
LENGTH = SIZE * SPACING


def _cube(hu: float) -> torch.Tensor:
    """A cube of one material, and no air around it."""
    return torch.full((1, 1, SIZE, SIZE, SIZE), hu)


def _center(image: torch.Tensor) -> torch.Tensor:
    """Mean of the four central pixels of each view."""
    return image[..., 15:17, 15:17].mean(dim=(-2, -1))


def test_ideal_exposure_is_the_line_integral() -> None:
    """Without an exposure the result is bit for bit the projection of mu at 70 keV."""
    hu = torch.randint(-1000, 2000, (1, 1, SIZE, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    expected = line_integrals(hu_to_mu(hu.float()), BEAM, affine=AFFINE)
    assert torch.equal(expose(hu, BEAM, affine=AFFINE), expected)


@pytest.mark.parametrize("energy", [40, 70, 100])
def test_one_energy_attenuates_as_nist_says(energy: int) -> None:
    """A cube of water and one of cortical bone: mu times their length."""
    exposure = Exposure(spectrum=f"{energy}keV")
    bone_mu = 1.92 * mass_attenuation("cortical bone", float(energy)) / 10
    for hu, mu in ((0.0, water_attenuation(energy)), (cortical_bone_hu(), bone_mu)):
        p = _center(expose(_cube(hu), BEAM, affine=AFFINE, exposure=exposure))
        assert p[0].tolist() == pytest.approx([mu * LENGTH] * 2, rel=1e-3)


def test_tube_spectrum_attenuates_as_its_materials_do() -> None:
    """A cube of water at 120 kV reads as 120 mm of water do, and hardening undone as the line integral at 70 keV."""
    p = _center(expose(_cube(0.0), BEAM, affine=AFFINE, exposure=Exposure("120kV")))
    water = torch.full_like(p, LENGTH)
    torch.testing.assert_close(p, polyenergetic(water, 0 * water, tube_spectrum(120)), rtol=1e-3, atol=0)
    torch.testing.assert_close(
        water_equivalent(p, tube_spectrum(120)), water * water_attenuation(70.0), rtol=1e-3, atol=0
    )


def test_bone_stands_out_more_at_low_voltage() -> None:
    """A rib's contrast over the tissue behind it falls from 60 to 150 kV."""
    hu = _cube(0.0)
    hu[..., 10:14, 10:14, 10:14] = 1200.0
    contrasts = []
    for kilovolt in (60, 90, 120, 150):
        exposure = Exposure(f"{kilovolt}kV")
        with_bone, without = (expose(volume, BEAM, affine=AFFINE, exposure=exposure) for volume in (hu, _cube(0.0)))
        contrasts.append(float((_center(with_bone) - _center(without)).mean()))
    assert all(first > second for first, second in pairwise(contrasts))


def test_noise_follows_the_generator_and_the_photons() -> None:
    """The same seed is the same image; in air the variance of the logarithm is 1 / photons."""

    def image(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return expose(_cube(-1000.0), BEAM, affine=AFFINE, exposure=Exposure(photons=1e4), generator=generator)

    assert torch.equal(image(5), image(5))
    assert not torch.equal(image(5), image(6))
    assert float(image(5).var()) == pytest.approx(1e-4, rel=0.1)


def test_exposure_is_differentiable_down_to_the_ct() -> None:
    """Energies, scatter and noise pass a finite gradient to every voxel a ray crosses, and it says: more is darker."""
    hu = torch.full((1, 1, SIZE, SIZE, SIZE), 20.0, requires_grad=True)
    exposure = Exposure("100kV", photons=1e5)
    generator = torch.Generator().manual_seed(0)
    expose(hu, BEAM, affine=AFFINE, exposure=exposure, generator=generator, differentiable=True).sum().backward()
    assert hu.grad is not None
    assert bool(torch.isfinite(hu.grad).all())
    assert float(hu.grad[..., 8:16, 8:16, 8:16].min()) > 0


def test_jittered_beam_stays_within_its_limits() -> None:
    """Distances and isocenter vary, no further than asked, and follow the seed."""
    beams = [
        jittered_beam(BEAM, np.random.default_rng(seed), distance_jitter=0.02, shift_jitter=5.0)
        for seed in (0, 0, *range(1, 30))
    ]
    assert beams[0] == beams[1]
    assert len(set(beams)) == 30
    for beam in beams:
        assert abs(beam.source_to_isocenter / 1500 - 1) <= 0.02
        assert abs(beam.source_to_detector / 1800 - 1) <= 0.02
        assert max(abs(value) for value in beam.isocenter) <= 5.0


def test_each_volume_has_a_geometry_of_its_own() -> None:
    """A batch of geometries equals single calls; pixels of another size are refused."""
    hu = torch.randint(-1000, 2000, (2, 1, SIZE, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).float()
    beams = [BEAM, BEAM.at((4.0, -3.0, 2.0))]
    together = expose(hu, beams, affine=AFFINE, exposure=Exposure("120kV", scatter=0.5))
    for n, beam in enumerate(beams):
        alone = expose(hu[n : n + 1], beam, affine=AFFINE, exposure=Exposure("120kV", scatter=0.5))
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-5, atol=1e-6)
    coarse = ConeBeam(detector_shape=BEAM.detector_shape, pixel_spacing=(7.0, 7.0))
    with pytest.raises(ValueError, match="beam must have one pixel_spacing per batch"):
        expose(hu, [BEAM, coarse], affine=AFFINE)
