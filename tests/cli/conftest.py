# SPDX-License-Identifier: Apache-2.0
"""X-rays and a stand-in for networks, for every command's tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, volume_affine
from progressive_cascade.cli import main
from progressive_cascade.inference.first_look import FirstLook
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.inference.size import Size
from progressive_cascade.io import save_nifti
from tests.ct.test_prepare import _write_dicom
from tests.support.cube import place_coarsely
from tests.support.planted import IN_A_STUDY, PERSON, plant
from tests.support.radiographs import phantom_pair, save_dx
from tests.support.trunk import trunk_hu


@pytest.fixture(scope="session")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `simulate` from an ellipsoid that lies off the world's origin."""
    folder = tmp_path_factory.mktemp("simulate")
    points = np.indices((64, 64, 64)).transpose(1, 2, 3, 0) - 31.5
    hu = np.where(((points / [24, 16, 60]) ** 2).sum(-1) < 1, 20, -1000).astype(np.int16)
    save_nifti(hu, volume_affine((64, 64, 64), 5.6, (40.0, -30.0, 700.0)), folder / "ct.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        place_coarsely(patch, 64)
        assert main(["simulate", str(folder / "ct.nii.gz"), "--output", str(folder / "xrays")]) == 0
    return folder / "xrays"


@pytest.fixture(scope="session")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's folder, which has his name: two radiographs and a CT, each named in every way."""
    folder = tmp_path_factory.mktemp("in") / PERSON
    (folder / "dx").mkdir(parents=True)
    frontal, lateral = phantom_pair()
    save_dx(frontal, folder / "dx" / f"{PERSON}_1.dcm", **IN_A_STUDY)
    save_dx(lateral, folder / "dx" / f"{PERSON}_2.dcm", ViewPosition="LL", PatientOrientation=["P", "F"], **IN_A_STUDY)
    _write_dicom(folder / "ct", trunk_hu((40, 30, 24)).round(), patient=IN_A_STUDY["PatientID"])
    plant(folder / "ct", IN_A_STUDY)
    return folder


@pytest.fixture
def cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for networks and phantoms, see :func:`stand_in`."""
    stand_in(monkeypatch, tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every patient is a cylinder, every reconstruction one of 100 HU more."""
    shape, spacing = (32, 32, 32), 11.2
    x, y, _ = np.indices(shape) - 15.5
    cylinder = np.where(x**2 + y**2 < 100, 0, -1000).astype(np.int16)

    def reconstruct(image: np.ndarray, beam: ConeBeam, *, calibrated: bool = True, **_: object) -> Reconstruction:
        return Reconstruction(
            hu=(cylinder + 100).astype(np.int16),
            affine=volume_affine(shape, spacing, beam.isocenter),
            agreement={view: {"relative_residual": 0.1, "psnr_db": float("inf")} for view in beam.views},
            reprojected=image,
            image=image,
            calibrated=calibrated,
        )

    matrices = torch.from_numpy(ConeBeam().projection_matrices()).float()
    network = SimpleNamespace(image_size=512, projection_matrices=matrices, geometry_range=None)
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.load_cascade", lambda *_, **__: network)
    monkeypatch.setattr(
        "progressive_cascade.inference.first_look.first_look",
        lambda _, image, beam, **__: FirstLook(dict.fromkeys(beam.views, 50.0)),
    )
    monkeypatch.setattr("progressive_cascade.inference.examine.find_size", lambda *_: Size(1.0, 0.1, 0.1))
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.check_beam", lambda *_: [])
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.reconstruct", reconstruct)
    phantom = SimpleNamespace(hu=cylinder, labels=None, affine=volume_affine(shape, spacing))
    monkeypatch.setattr("progressive_cascade.phantom.generate_phantom", lambda seed, **_: phantom)
    weights = folder / "shipped" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"shipped")
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.default_checkpoint", lambda: weights)
