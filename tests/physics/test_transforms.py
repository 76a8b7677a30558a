# SPDX-License-Identifier: Apache-2.0
"""Laws of the transform that takes radiographs: repeatable, configurable, at home in MONAI's pipelines."""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureTyped

from progressive_cascade import ConeBeam, line_integrals, volume_affine
from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.transforms import SimulateRadiographsd

GEOMETRY = {
    "source_to_isocenter": 1500.0,
    "source_to_detector": 1800.0,
    "detector_shape": [24, 20],
    "pixel_spacing": [8.0, 8.0],
}
BEAM = ConeBeam.from_dict(GEOMETRY)
CENTER = (40.0, -30.0, 700.0)
AFFINE = volume_affine((16, 16, 16), 6.0, CENTER)
NOISY = {"spectrum": "120kV", "photons": 1e3}


def _item(seed: int = 0) -> dict:
    """A random CT off the world's origin."""
    hu = np.random.default_rng(seed).integers(-1000, 500, (1, 16, 16, 16)).astype(np.int16)
    return {"ct": MetaTensor(torch.from_numpy(hu), affine=torch.from_numpy(AFFINE))}


def test_radiographs_are_line_integrals_about_the_cts_center() -> None:
    """The default is the ideal exposure; the geometry in meta stands where the rays meet."""
    item = _item()
    out = SimulateRadiographsd("ct", geometry=GEOMETRY)(item)
    beam = BEAM.at(CENTER)
    expected = line_integrals(hu_to_mu(item["ct"].as_tensor().float()[None]), beam, affine=AFFINE)[0]
    torch.testing.assert_close(out["image"].as_tensor(), expected)
    assert out["image"].shape == (2, 24, 20)
    assert out["image"].dtype == torch.float32
    assert ConeBeam.from_dict(out["image"].meta["geometry"]) == beam
    np.testing.assert_allclose(out["isocenter"], CENTER)
    np.testing.assert_allclose(out["matrices"], BEAM.projection_matrices(), rtol=1e-6)
    assert item.keys() == {"ct"}


def test_radiographs_know_their_detectors() -> None:
    """The affine takes (row, column) of the first view to the world, `detector_affines` (column, row) of each."""
    image = SimulateRadiographsd("ct", geometry=GEOMETRY)(_item())["image"]
    beam = BEAM.at(CENTER)
    np.testing.assert_allclose(
        image.affine @ torch.tensor([5.0, 3.0, 0.0, 1.0], dtype=torch.float64),
        beam.detector_affine(0) @ [3.0, 5.0, 0.0, 1.0],
    )
    np.testing.assert_allclose(image.meta["detector_affines"][1], beam.detector_affine(1))


def test_radiographs_take_the_geometrys_own_isocenter() -> None:
    """`centered=False` leaves the geometry where it is."""
    geometry = {**GEOMETRY, "isocenter": [30.0, -30.0, 710.0]}
    out = SimulateRadiographsd("ct", geometry=geometry, centered=False)(_item())
    np.testing.assert_allclose(out["isocenter"], [30.0, -30.0, 710.0])


def test_radiographs_take_plain_arrays() -> None:
    """An array with an affine beside it, with or without a channel, gives what a MetaTensor gives."""
    item = _item()
    expected = SimulateRadiographsd("ct", geometry=GEOMETRY)(item)["image"].as_tensor()
    for array in (item["ct"].as_tensor().numpy(), item["ct"].as_tensor()[0]):
        out = SimulateRadiographsd("ct", geometry=GEOMETRY, affine_key="where")({"ct": array, "where": AFFINE})
        torch.testing.assert_close(out["image"].as_tensor(), expected)


def test_radiographs_follow_set_random_state() -> None:
    """In a Compose: the same seed is the same noise and the same jitter, the next item is another examination."""
    transform = Compose(
        [
            EnsureTyped("ct"),
            SimulateRadiographsd(
                "ct", geometry=GEOMETRY, exposure=NOISY, distance_jitter=0.02, shift_jitter=5.0, display="MONOCHROME2"
            ),
        ]
    )
    first = transform.set_random_state(7)(_item())
    second = transform(_item())
    again = transform.set_random_state(7)(_item())
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["matrices"], again["matrices"])
    assert not torch.equal(first["image"], second["image"])
    assert not torch.equal(first["isocenter"], second["isocenter"])
    assert 0.0 <= float(first["image"].min()) < float(first["image"].max()) <= 1.0
    assert first["image"].meta["exposure"]["photons"] == 1e3


def test_radiographs_are_a_json_component() -> None:
    """A config names the class; geometry and exposure are plain JSON."""
    config = {
        "transform": {
            "_target_": "progressive_cascade.physics.transforms.SimulateRadiographsd",
            "keys": "ct",
            "geometry": GEOMETRY,
            "exposure": NOISY,
        }
    }
    transform = ConfigParser(json.loads(json.dumps(config))).get_parsed_content("transform")
    assert transform.exposure == Exposure("120kV", photons=1e3)
    assert transform(_item())["image"].shape == (2, 24, 20)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_radiographs_work_in_worker_processes() -> None:
    """Forked workers, after the parent has projected itself, give finite batches that differ by their noise."""
    transform = SimulateRadiographsd("ct", geometry=GEOMETRY, exposure=NOISY)
    transform(_item())
    dataset = Dataset([_item() for _ in range(4)], transform)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork")
    images = torch.cat([batch["image"].as_tensor() for batch in loader])
    assert images.shape == (4, 2, 24, 20)
    assert bool(torch.isfinite(images).all())
    assert len({image.sum().item() for image in images}) == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"keys": ("ct", "other")}, "keys must name one CT"),
        ({"distance_jitter": 0.5}, "distance_jitter must lie in"),
        ({"shift_jitter": -1.0}, "shift_jitter must be finite and at least 0"),
        ({"display": "RGB"}, "display must be one of"),
        ({"exposure": {"photons": -1.0}}, "photons must be finite and positive"),
        ({"geometry": "chest"}, "geometry preset must be one of"),
    ],
)
def test_radiographs_refuse_wrong_settings(arguments: dict, expected: str) -> None:
    """Every setting is checked when the transform is made."""
    with pytest.raises(ValueError, match=expected):
        SimulateRadiographsd(**arguments)


def test_radiographs_refuse_what_is_no_ct() -> None:
    """A CT without an affine, of another shape or with NaN is named by its key."""
    transform = SimulateRadiographsd("ct", geometry=GEOMETRY)
    with pytest.raises(ValueError, match="ct must be a MetaTensor or come with 'affine'"):
        transform({"ct": np.zeros((16, 16, 16))})
    with pytest.raises(ValueError, match="ct must have shape"):
        transform({"ct": np.zeros((2, 16, 16, 16)), "affine": AFFINE})
    with pytest.raises(ValueError, match="ct must hold finite HU"):
        transform({"ct": np.full((16, 16, 16), np.nan), "affine": AFFINE})
