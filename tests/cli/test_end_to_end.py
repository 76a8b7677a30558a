# SPDX-License-Identifier: Apache-2.0
"""The main job with the shipped weights: a CT with a marker, its X-rays, its reconstruction, in the patient's world."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle.scripts import run

from progressive_cascade.cli import main
from progressive_cascade.ct.placement import PreparedCase, prepare_case
from progressive_cascade.geometry import load_geometry
from progressive_cascade.io import save_nifti
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.phantom import generate_phantom
from tests.support.cube import place_coarsely

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
ORIGIN = np.array([40.0, -25.0, 700.0])
"""Where the phantom's centre stands in the patient's world [mm]."""
MARKER = ORIGIN + np.array([-75.0, 35.0, 40.0])
"""On the patient's left, in front, cranial (RAS) [mm]."""
MIRROR = ORIGIN + np.array([75.0, 35.0, 40.0])
RADIUS = 22.0
"""Of the ball [mm]."""
FIRST_STAGE = ["--checkpoint", str(BUNDLE / "models" / "stage1_best.pt")]


@pytest.fixture(scope="module")
def passes() -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Of each pass through a cascade that ``patient`` took, what went in, its weights among it, and what came out."""
    return []


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, passes: list[tuple[dict[str, Any], torch.Tensor]]) -> Path:
    """CT.nii.gz stored the other way round (LPS), xrays/ and reconstruction.nii.gz of a phantom with a dense ball.

    without/ has the same of the phantom as it was, by the first stage: cheaper, and what the others add is no ball.
    """
    folder = tmp_path_factory.mktemp("patient")
    phantom = generate_phantom(2_000_100, shape=(64, 64, 64), spacing=5.6)
    affine = phantom.affine.copy()
    affine[:3, 3] += ORIGIN
    world = np.stack(np.indices(phantom.hu.shape), -1) @ affine[:3, :3].T + affine[:3, 3]
    hu = np.where(np.linalg.norm(world - MARKER, axis=-1) < RADIUS, 900, phantom.hu).astype(np.int16)
    flipped = affine @ np.array([[-1.0, 0, 0, 63], [0, -1, 0, 63], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.MonkeyPatch.context() as patch:
        forward = ProgressiveCascade.forward

        def record(network: ProgressiveCascade, image: torch.Tensor, **options: Any) -> torch.Tensor:
            volume = forward(network, image, **options)
            passes.append((_conditions(network, image, options), volume))
            return volume

        patch.setattr(ProgressiveCascade, "forward", record)
        _simulate_and_reconstruct(hu[::-1, ::-1], flipped, folder)
    _simulate_and_reconstruct(phantom.hu[::-1, ::-1], flipped, folder / "without", *FIRST_STAGE)
    return folder


def _conditions(network: ProgressiveCascade, image: torch.Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """All that a pass through a network depends on."""
    mode = {"training": network.training, "amp": torch.is_autocast_enabled("cpu")}
    return {**network.state_dict(), **options, **mode, "image": image}


def _simulate_and_reconstruct(hu: np.ndarray, affine: np.ndarray, folder: Path, *options: str) -> None:
    save_nifti(np.ascontiguousarray(hu), affine, folder / "ct.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        place_coarsely(patch, 64)
        assert main(["simulate", str(folder / "ct.nii.gz"), "--output", str(folder / "xrays")]) == 0
    arguments = ["--pa", "pa.nii.gz", "--lateral", "lateral.nii.gz", "--geometry", "geometry.json"]
    paths = [str(folder / "xrays" / item) if "." in item else item for item in arguments]
    output = str(folder / "reconstruction.nii.gz")
    assert main(["reconstruct", *paths, "--refine", "1", "--no-report", "--output", output, *options]) == 0


def _box(index: Iterable[float], spacing: float) -> tuple[slice, slice, slice]:
    """The cube around the ball."""
    reach = round(RADIUS / spacing)
    x, y, z = (slice(round(i) - reach, round(i) + reach + 1) for i in index)
    return x, y, z


def _sample_nibabel(path: Path, point: np.ndarray) -> float:
    image = nib.load(path)
    index = np.linalg.solve(image.affine, [*point, 1.0])[:3]
    return float(np.asanyarray(image.dataobj)[_box(index, image.header.get_zooms()[0])].mean())


def _sample_sitk(path: Path, point: np.ndarray) -> float:
    image = sitk.ReadImage(str(path))
    index = image.TransformPhysicalPointToIndex([-point[0], -point[1], point[2]])
    return float(sitk.GetArrayFromImage(image).T[_box(index, image.GetSpacing()[0])].mean())


def test_marker_is_where_it_belongs_in_both_xrays(patient: Path) -> None:
    """The ball casts the strongest shadow where its centre projects: right half of PA, front half of the lateral."""
    beam = load_geometry(patient / "xrays" / "geometry.json")
    for view, name in enumerate(("pa", "lateral")):
        shadow = np.asanyarray(nib.load(patient / "xrays" / f"{name}.nii.gz").dataobj)[..., 0]
        col, row, depth = beam.projection_matrices()[view] @ np.array([*MARKER, 1.0])
        col, row = int(col / depth), int(row / depth)
        assert (col > 256) == (name == "pa") and row < 256
        ring = shadow[col - 48 : col + 49, row - 48 : row + 49]
        assert shadow[col - 8 : col + 9, row - 8 : row + 9].mean() > ring.mean() + 0.3


@pytest.mark.parametrize("sample", [_sample_nibabel, _sample_sitk])
@pytest.mark.parametrize("name", ["ct.nii.gz", "reconstruction.nii.gz"])
def test_marker_stays_on_the_patients_left_in_every_reader(patient: Path, sample, name: str) -> None:
    """nibabel and SimpleITK find what the ball added where it stands, and little of it on the other side.

    (itk, which takes long to load: tests/export/test_dicom_objects.py.)
    """
    added, mirrored = (
        sample(patient / name, point) - sample(patient / "without" / name, point) for point in (MARKER, MIRROR)
    )
    assert added > 200
    assert abs(mirrored) < added / 3


def test_reconstruction_is_a_ct_in_hu(patient: Path) -> None:
    """int16, 256³, 1.4 mm, RAS, around the sidecar's isocenter."""
    image = nib.load(patient / "reconstruction.nii.gz")
    beam = load_geometry(patient / "xrays" / "geometry.json")
    assert image.shape == (256, 256, 256) and image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.affine @ [127.5, 127.5, 127.5, 1.0], [*beam.isocenter, 1.0], atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), 1.4, atol=1e-5)


def test_reconstruction_explains_its_radiographs(patient: Path) -> None:
    """With data consistency the re-projection agrees far better than 30 dB, and the sidecar says so."""
    sidecar = json.loads((patient / "reconstruction.json").read_text())
    assert all(view["psnr_db"] > 30 for view in sidecar["agreement"].values())
    assert len(sidecar["checkpoint"]["sha256"]) == 64


def test_inference_workflow_gives_the_same_volume(
    patient: Path, passes: list[tuple[dict[str, Any], torch.Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """configs/inference.json and the command line agree voxel for voxel.

    So does what goes into their networks, whose volume is therefore not computed again.
    """
    ((given, volume),) = passes

    def repeat(network: ProgressiveCascade, image: torch.Tensor, **options: Any) -> torch.Tensor:
        now = _conditions(network, image, options)
        assert now.keys() == given.keys()
        for name, value in now.items():
            assert torch.equal(value, given[name]) if torch.is_tensor(value) else value == given[name], name
        return volume

    monkeypatch.setattr(ProgressiveCascade, "forward", repeat)
    monkeypatch.chdir(BUNDLE)
    folders = {"dataset_dir": str(patient / "xrays"), "output_dir": str(tmp_path)}
    run(config_file="configs/inference.json", refine_steps=1, **folders)
    (written,) = tmp_path.glob("*.nii.gz")
    ours, theirs = nib.load(written), nib.load(patient / "reconstruction.nii.gz")
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    assert ours.get_data_dtype() == np.int16
    assert np.array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))


def test_real_ct_is_reconstructed_in_its_own_world(
    real_cts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real patient: the reconstruction overlays the prepared CT, and correlates with it.

    Of the first stage, cheaper by far; the others run for the phantom above.
    """
    source = real_cts / "thorax_LIDC-IDRI-0001.nii.gz"
    prepared: list[PreparedCase] = []
    # Prepared once: by `simulate`, whose case is then the truth.
    monkeypatch.setattr(
        "progressive_cascade.ct.placement.prepare_case",
        lambda *args, **options: prepared.append(prepare_case(*args, **options)) or prepared[-1],
    )
    assert main(["simulate", str(source), "--output", str(tmp_path)]) == 0
    views = ["--pa", str(tmp_path / "pa.nii.gz"), "--lateral", str(tmp_path / "lateral.nii.gz")]
    output = tmp_path / "ct.nii.gz"
    views += ["--geometry", str(tmp_path / "geometry.json"), "--refine", "0", "--no-report"]
    assert main(["reconstruct", *views, *FIRST_STAGE, "--output", str(output)]) == 0
    (case,) = prepared
    image = nib.load(output)
    np.testing.assert_allclose(image.affine, case.affine, atol=1e-3)
    inside = case.valid > 0
    ours, truth = np.asanyarray(image.dataobj)[inside], np.clip(case.hu[inside], -1024, 1024)
    assert np.corrcoef(ours.ravel(), truth.ravel())[0, 1] > 0.85
