# SPDX-License-Identifier: Apache-2.0
"""Laws of `reconstruct` and `demo`: files that belong together, in the patient's world."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from progressive_cascade import load_geometry
from progressive_cascade.cli import main
from progressive_cascade.ct import read_ct
from progressive_cascade.io import save_nifti
from progressive_cascade.networks.uncertainty import UncertaintyHead
from tests.support.commands import fails_with, load_image


def test_reconstruct_writes_its_files_together(
    cascade: None, xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All share the CT's name; the sidecar names the weights by hash, and the CT is in the patient's world. Weights of
    one's own are taken when that is said.
    """
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz")]
    geometry = ["--geometry", str(xrays / "geometry.json"), "--checkpoint", str(weights)]
    command = ["reconstruct", *views, *geometry, "--output", str(tmp_path / "out" / "ct.nii.gz")]
    assert f"{weights} must be as released" in fails_with(capsys, *command)
    assert main([*command, "--allow-unverified"]) == 0
    written = ["ct.html", "ct.json", "ct.nii.gz", "ct.png", "ct.radiographs.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    sidecar = json.loads((tmp_path / "out" / "ct.json").read_text())
    assert sidecar["checkpoint"] == {"file": "weights.pt", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert sidecar["geometry"] == load_geometry(xrays / "geometry.json").to_dict()
    image = load_image(tmp_path / "out" / "ct.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine @ [15.5, 15.5, 15.5, 1], [*sidecar["geometry"]["isocenter"], 1], atol=1e-3)


def test_reconstruct_writes_a_dicom_series_of_the_same_ct(
    cascade: None, xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every voxel and its place are the NIfTI file's; an existing folder and a lone --keep-identity are refused."""
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz")]
    common = ["reconstruct", *views, "--geometry", str(xrays / "geometry.json"), "--no-report", "--output"]
    arguments = [*common, str(tmp_path / "ct.nii.gz"), "--dicom-output", str(tmp_path / "series")]
    assert main(arguments) == 0
    hu, affine = read_ct(tmp_path / "series")
    canonical = nib.as_closest_canonical(nib.Nifti1Image(hu, affine))
    image = load_image(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(np.asarray(canonical.dataobj), np.asarray(image.dataobj))
    np.testing.assert_allclose(canonical.affine, image.affine, atol=1e-3)
    capsys.readouterr()
    assert main([*common, str(tmp_path / "other.nii.gz"), "--dicom-output", str(tmp_path / "series")]) == 2
    assert "series exists" in capsys.readouterr().err
    assert main([*common, str(tmp_path / "other.nii.gz"), "--keep-identity"]) == 2
    assert "must come with --dicom-output" in capsys.readouterr().err


@pytest.mark.parametrize("option", [[], ["--multiframe"]])
def test_reconstruct_writes_dicom_alone(cascade: None, xrays: Path, tmp_path: Path, option: list[str]) -> None:
    """`--format dicom` makes --output a folder of DICOM, with sidecar, picture and page beside it, and no NIfTI.

    Who has DICOM alone reads in it what the page warns of, and what error is expected.
    """
    pytest.importorskip("highdicom")
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz")]
    common = [
        "reconstruct",
        *views,
        "--geometry",
        str(xrays / "geometry.json"),
        "--output",
        str(tmp_path / "out" / "ct"),
    ]
    assert main([*common, "--format", "dicom", "--intensities", "display", *option]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ct", "ct.json", "ct.png", "ct.html"}
    names = {path.name for path in (tmp_path / "out" / "ct").iterdir()}
    assert names == ({"CT.dcm"} if option else {f"IM{number + 1:04d}.dcm" for number in range(32)})
    hu, _ = read_ct(tmp_path / "out" / "ct")
    assert set(np.unique(hu)) == {-900, 100}
    record, found = json.loads((tmp_path / "out" / "ct.json").read_text()), sorted((tmp_path / "out" / "ct").iterdir())
    said = pydicom.dcmread(found[0], stop_before_pixels=True).ImageComments.splitlines()
    assert said[-1] == record["expected_error"]["text"] and "Warning: The radiographs are pictures" in said[-2]
    assert said[:-2] == [f"Warning: {line}" for line in record["warnings"]]


@pytest.mark.parametrize("option", [[], ["--portable"]])
def test_reconstruct_takes_the_fast_arithmetic_unless_told(
    cascade: None, xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    """`--portable` asks the inferer for plain torch; without it the inferer chooses."""
    from progressive_cascade.inference import inferers

    asked = []
    build = inferers.CascadeInferer
    monkeypatch.setattr(inferers, "CascadeInferer", lambda **given: asked.append(given["portable"]) or build(**given))
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz")]
    geometry = ["--geometry", str(xrays / "geometry.json")]
    assert main(["reconstruct", *views, *geometry, "--output", str(tmp_path / "ct.nii.gz"), *option]) == 0
    assert asked == [bool(option)]


def test_reconstruct_writes_sigma_on_the_cts_grid(
    cascade: None, xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sigma is whole HU with the CT's affine; without its weights, or in the CT's place, nothing is written."""
    weights, out = tmp_path / "uncertainty.pt", tmp_path / "out"
    monkeypatch.setattr("progressive_cascade.inference.uncertainty.default_uncertainty", lambda: weights)
    views = ["reconstruct", "--pa", xrays / "pa.nii.gz", "--lateral", xrays / "lateral.nii.gz"]
    command = [*views, "--output", out / "ct.nii.gz", "--uncertainty", out / "sigma.nii.gz"]
    assert f"{weights} must exist" in fails_with(capsys, *command)
    torch.save(UncertaintyHead().state_dict(), weights)
    assert "must be another file than --output" in fails_with(capsys, *command[:-1], out / "." / "ct.nii.gz")
    assert not out.exists()
    assert main([str(argument) for argument in command]) == 0
    assert "calibrated with another checkpoint" in capsys.readouterr().out
    ct, sigma = (load_image(out / f"{name}.nii.gz") for name in ("ct", "sigma"))
    np.testing.assert_array_equal(sigma.affine, ct.affine)
    assert sigma.shape == ct.shape and sigma.get_data_dtype() == np.int16
    assert (np.asanyarray(sigma.dataobj) == 32).all()


def test_reconstruct_refuses_what_is_no_image(
    cascade: None, xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no radiograph is named, and nothing is written."""
    (tmp_path / "pa.nii.gz").write_text("no image")
    line = fails_with(
        capsys,
        *("reconstruct", "--pa", tmp_path / "pa.nii.gz", "--lateral", xrays / "lateral.nii.gz"),
        *("--output", tmp_path / "out" / "ct.nii.gz"),
    )
    assert "pa.nii.gz" in line
    assert not (tmp_path / "out").exists()


def test_demo_leaves_everything_in_one_folder(
    cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truth, X-rays, reconstruction and pictures lie in the folder, and each is printed."""
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    files = [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"truth.nii.gz", "pa.nii.gz", "geometry.json", "reconstruction.nii.gz", "reconstruction.json"} <= names
    assert {"reconstruction.png", "comparison.png", "radiographs.png"} <= names
    assert all(str(path) in printed for path in files)


def test_reconstruct_says_when_it_cannot_calibrate(
    cascade: None, xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey levels of a display are taken, but the sidecar and a note say that data consistency was left out."""
    for name in ("pa", "lateral"):
        image = load_image(xrays / f"{name}.nii.gz")
        grey = (np.asanyarray(image.dataobj) * 400).astype(np.int16)
        save_nifti(grey, image.affine, tmp_path / f"{name}.nii.gz")
    views = ["--pa", str(tmp_path / "pa.nii.gz"), "--lateral", str(tmp_path / "lateral.nii.gz")]
    assert main(["reconstruct", *views, "--output", str(tmp_path / "ct.nii.gz")]) == 0
    assert "no line integrals" in capsys.readouterr().out
    assert json.loads((tmp_path / "ct.json").read_text())["calibrated"] is False
