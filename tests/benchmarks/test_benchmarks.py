# SPDX-License-Identifier: Apache-2.0
"""Laws of the projector benchmark: its truth is exact, its rows measure what they say, on grids that take no time."""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, volume_affine

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import projector
from projectors import measure, peers, tables
from projectors.agreement import batch_equals_single_calls
from projectors.ellipsoids import EXTENT, Ellipsoids, cached, exact_line_integrals, thorax, voxelise

OURS = [name for name in peers.BUILDERS if name.startswith("ours")]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Keeps phantoms of the tests out of the system's temporary folder, and each of them from one test to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("phantoms")))
        yield


def _ellipsoids(seed: int) -> Ellipsoids:
    """Three overlapping ellipsoids, each turned its own way; one hollows out the others."""
    rng = np.random.default_rng(seed)
    turns = np.linalg.qr(rng.normal(size=(3, 3, 3)))[0]
    return Ellipsoids(
        rng.uniform(-40, 40, (3, 3)), turns / rng.uniform(25, 90, (3, 3, 1)), np.array([0.02, 0.03, -0.01])
    )


def _job(row: str, views: str, grid: int = 16) -> dict:
    beam, affine = measure.geometry(grid, tuple(views.split(",")))
    volume, truth = cached(thorax(), beam, (grid, grid, grid), affine)
    job = {"row": row, "grid": grid, "views": views.split(","), "device": "cpu", "repeats": 1}
    return job | {"threads": torch.get_num_threads(), "volume": str(volume), "truth": str(truth)}


def test_exact_line_integrals_match_numerical_integration():
    """Midpoint sums along each ray differ from the exact chords by less than a step at every surface."""
    beam = ConeBeam(700, 1020, (5, 6), (40.0, 35.0), ("pa", "left_lateral", "lao30_cranial15"), (4.0, -7.0, 9.0))
    phantom, num = _ellipsoids(0), 20000
    exact = exact_line_integrals(phantom, beam)
    for view, source in enumerate(beam.poses()[0]):
        col, row = np.meshgrid(np.arange(6), np.arange(5))
        pixels = np.stack([col, row, np.zeros_like(col), np.ones_like(col)], -1) @ beam.detector_affine(view).T
        for at in np.ndindex(5, 6):
            ray = pixels[at][:3] - source
            step = np.linalg.norm(ray) / num
            points = source + (np.arange(num) + 0.5)[:, None] / num * ray
            inside = np.linalg.norm(
                np.einsum("nij,npj->npi", phantom.matrices, points - phantom.centers[:, None]), axis=2
            )
            numeric = step * (phantom.mu[:, None] * (inside <= 1)).sum()
            assert abs(numeric - exact[(view, *at)]) <= 2 * step * np.abs(phantom.mu).sum()
    assert (exact > 0).sum() > 30


def test_voxelise_is_the_mean_of_its_samples():
    """Sampling near surfaces alone gives what sampling every voxel gives, on an oblique anisotropic grid."""
    phantom, shape = _ellipsoids(1), (9, 8, 7)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0] * (20.0, 25.0, 30.0)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    fine = [(np.arange(4 * size) + 0.5) / 4 - 0.5 for size in shape]
    points = np.stack(np.meshgrid(*fine, indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    inside = [
        np.linalg.norm((points - c) @ m.T, axis=-1) <= 1 for c, m in zip(phantom.centers, phantom.matrices, strict=True)
    ]
    samples = np.sum([mu * part for mu, part in zip(phantom.mu, inside, strict=True)], axis=0)
    expected = samples.reshape(9, 4, 8, 4, 7, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(voxelise(phantom, shape, affine), expected, atol=1e-7)


def test_thorax_is_seeded_and_physical():
    """The same seed gives the same 401 ellipsoids; nothing attenuates less than air or leaves the cube."""
    phantom = thorax()
    assert phantom.digest() == thorax(0).digest() != thorax(1).digest()
    assert len(phantom.mu) == 401
    reach = np.linalg.norm(np.linalg.inv(phantom.matrices), axis=2)
    assert (np.abs(phantom.centers) + reach < EXTENT / 2).all()
    assert voxelise(phantom, (48, 48, 48), volume_affine((48, 48, 48), EXTENT / 48)).min() >= -1e-7


@pytest.mark.parametrize("views", projector.VIEWS)
@pytest.mark.parametrize("row", peers.BUILDERS)
def test_row_agrees_with_the_truth_and_its_transpose(row, views):
    """Every projector that is installed errs by the voxels' size alone, and its gradient is its transpose."""
    result = measure.measure(_job(row, views, grid=32))
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert 0.04 < result["error"] < 0.07
    assert result["adjoint"] < 1e-6
    if row in OURS:
        assert result["adjoint_float64"] < 1e-12
    assert 0 < result["forward_best_s"] <= result["forward_s"]


def test_batch_equals_single_calls():
    """Four volumes and poses in one call give what four calls give, bit for bit."""
    assert batch_equals_single_calls(16, "cpu")


def test_row_is_skipped_with_the_reason_where_its_library_is_missing(monkeypatch):
    """A peer that is not installed leaves a line in the table, not a traceback."""

    def missing(problem):
        raise ModuleNotFoundError("No module named 'nanodrr'")

    monkeypatch.setitem(peers.BUILDERS, "nanodrr", ("nanodrr", missing))
    row = {"row": "nanodrr", "grid": 16, "views": "pa"} | measure.measure(_job("nanodrr", "pa"))
    assert row["skipped"].startswith("nanodrr is not installed")
    report = {"machine": measure.machine("cpu", 1), "protocol": "", "rows": [row]}
    assert "| nanodrr | nanodrr is not installed" in tables.markdown(report)


def test_script_writes_json_and_table(tmp_path, monkeypatch):
    """A miniature run of the script measures each row in a process of its own and writes both files."""
    output = tmp_path / "projector.json"
    options = ["--rows", "ours", "ours-torch", "--grids", "16", "--views", "pa", "--repeats", "1", "--no-checks"]
    monkeypatch.setattr(sys, "argv", [projector.__file__, *options, "--output", str(output)])
    projector.main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["row"] for row in rows] == ["ours", "ours-torch"]
    assert rows[0]["forward_ratio"] == 1
    assert output.with_suffix(".md").read_text().count("\n| ours") == 2


def test_pairs_write_json_and_table(tmp_path, monkeypatch, capsys):
    """Both projectors by turns, each ratio with its quartiles, on a grid that takes no time."""
    if not [found for found in distributions() if found.name == "itk-rtk"]:
        pytest.skip("itk-rtk is not installed")
    monkeypatch.setattr(projector, "_PAIRED_SECONDS", 0.0)
    threads = torch.get_num_threads()
    options = ["--paired", "--grids", "16", "--views", "pa", "--threads", str(threads)]
    projector.write_pairs(projector.parse_options([*options, "--output", str(tmp_path / "projector.json")]))
    (row,) = json.loads((tmp_path / "projector_rtk.json").read_text())["rows"]
    for step in ("forward", "forward_backward"):
        low, high = row[step]["quartiles"]
        assert 0 < low <= row[step]["ratio"] <= high and row[step]["pairs"] == 3
    assert "| 16³ to 32², pa |" in (tmp_path / "projector_rtk.md").read_text() == capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_script_refuses_a_device_that_is_not_there(capsys):
    """``--device cuda`` without a GPU ends with one clear line."""
    with pytest.raises(SystemExit) as error:
        projector.parse_options(["--device", "cuda"])
    assert error.value.code == 2
    assert "--device must be available, got cuda" in capsys.readouterr().err
