# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with a range of geometries, through the commands: what it takes, warns of and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade.cli import main
from progressive_cascade.geometry import ConeBeam, GeometryRange, save_geometry, volume_affine
from progressive_cascade.io import read_nifti, save_nifti
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.phantom import generate_phantom
from tests.conftest import SMALL
from tests.support.cube import place_coarsely, reconstruct_coarsely
from tests.support.radiographs import BEAM, phantom_pair

RANGE = GeometryRange((600.0, 1900.0), (300.0, 430.0), turn=10.0, offset=30.0, opposite=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT and a miniature checkpoint of 128² pixels that keeps a range."""
    found = tmp_path_factory.mktemp("ranged")
    hu = generate_phantom(2, shape=(64, 64, 64), spacing=5.6).hu
    save_nifti(hu, volume_affine((64, 64, 64), 5.6, (0.0, 0.0, 200.0)), found / "ct.nii.gz")
    torch.manual_seed(0)
    torch.save(ProgressiveCascade(**{**SMALL, "stage": 1, "geometry_range": RANGE}).state_dict(), found / "ranged.pt")
    return found


def _simulate(folder: Path, name: str, beam: ConeBeam, *more: str) -> Path:
    save_geometry(beam, folder / f"{name}.json")
    arguments = ["--output", str(folder / name), "--geometry", str(folder / f"{name}.json"), "--overwrite", *more]
    assert main(["simulate", str(folder / "ct.nii.gz"), *arguments]) == 0
    return folder / name


def _reconstruct(folder: Path, files: list[str], geometry: Path, output: Path, *more: str) -> int:
    weights = ["--checkpoint", str(folder / "ranged.pt"), "--allow-unverified"]
    return main(["reconstruct", *files, "--geometry", str(geometry), "--output", str(output), *weights, *more])


def test_a_turned_bedside_pair_a_little_beyond_is_reconstructed_with_a_warning(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a film of other pixels: the true geometry, the range and the warnings are on screen, in sidecar and page.

    The values are a third of line integrals: no patient has such a gain, and that is said with its bounds.
    """
    place_coarsely(monkeypatch, 64)
    reconstruct_coarsely(monkeypatch, 64)
    beam = replace(ConeBeam.preset("bedside_ap"), detector_shape=(160, 160), pixel_spacing=(2.6, 2.6))
    xrays = _simulate(folder, "beyond", beam, "--views", "lao10.3", "left_lateral")
    for name in ("lao10.3", "left_lateral"):
        values, affine = read_nifti(xrays / f"{name}.nii.gz")
        save_nifti((values / 3).astype(np.float32), affine, xrays / f"{name}.nii.gz")
    files = ["--pa", str(xrays / "lao10.3.nii.gz"), "--lateral", str(xrays / "left_lateral.nii.gz")]
    more = ("--intensities", "scaled", "--refine", "1")
    assert _reconstruct(folder, files, xrays / "geometry.json", tmp_path / "ct.nii.gz", *more) == 0
    printed, record = capsys.readouterr().out, json.loads((tmp_path / "ct.json").read_text())
    turned = "turn of lao10.3 is 10.3 degrees, 0.3 degrees (3.0%) beyond the trained 0 to 10 degrees"
    assert sum(turned in line for line in record["warnings"]) == 1
    gains = [line for line in record["refinement"]["warnings"] if line.startswith("gain of view 0 is 2, at the edge")]
    assert len(gains) == 1
    assert "(0.5 to 2)" in gains[0]
    page = (tmp_path / "ct.html").read_text()
    for words in (turned, gains[0]):
        assert f"warning: {words}" in printed
        assert words in page
    assert "source 600 to 1900 mm from the isocenter" in page
    assert record["geometry_range"]["source_to_isocenter"] == [600.0, 1900.0]
    used = ConeBeam.from_dict(record["geometry"])
    assert (used.views, used.source_to_isocenter, used.source_to_detector) == (("lao10.3", "left_lateral"), 800, 1000)
    assert used.detector_shape == (128, 128)
    assert used.pixel_spacing == pytest.approx((3.25, 3.25))


@pytest.fixture(scope="module")
def usual(folder: Path) -> Path:
    """A usual pair."""
    for index, name in enumerate(("pa", "lateral")):
        pixels = np.ascontiguousarray(phantom_pair()[index].T[..., None])
        save_nifti(pixels, BEAM.detector_affine(index), folder / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_to_isocenter": 541.0}, "is 541.0 mm, 59.0 mm (9.8%) beyond the trained 600 to 1900 mm"),
        ({"views": ("pa", "lao20")}, "pa and lao20 are 20 degrees apart, 70 degrees too few"),
        ({"views": ("pa", "ap")}, "pa and ap are parallel, 90 degrees too few"),
        ({"views": ("left_lateral", "pa")}, "left_lateral and pa are swapped"),
        ({"views": ("lao12", "left_lateral")}, "turn of lao12 is 12.0 degrees, 2.0 degrees (20.0%) beyond the trained"),
    ],
)
def test_what_is_farther_out_is_one_line(
    folder: Path, usual: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, said: str
) -> None:
    """Exit code 2, what and by how much, nothing written."""
    save_geometry(replace(BEAM, **changes), tmp_path / "geometry.json")
    files = ["--pa", str(usual / "pa.nii.gz"), "--lateral", str(usual / "lateral.nii.gz")]
    output = tmp_path / "out" / "ct.nii.gz"
    assert _reconstruct(folder, files, tmp_path / "geometry.json", output) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"progressive-cascade: error: {tmp_path / 'geometry.json'} must ")
    assert said in line
    assert not output.parent.exists()


def test_check_tells_what_a_checkpoint_was_trained_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stages, sizes and range; a file that is none is one line."""
    assert main(["check", "--checkpoint", str(folder / "ranged.pt")]) == 0
    printed = capsys.readouterr().out
    assert "1, 16³ voxels, radiographs of 128²" in printed
    assert "source 600 to 1900 mm from the isocenter, field there 300 to 430 mm wide" in printed
    assert main(["check", "--checkpoint", str(folder / "ct.nii.gz")]) == 2
    assert "ct.nii.gz" in capsys.readouterr().err
