# SPDX-License-Identifier: Apache-2.0
"""Laws of the robustness benchmark: each condition changes what it says and nothing else, and no point is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from progressive_cascade import ConeBeam
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.training.cases import Case

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import robustness
from conditions import missing_views
from conditions.radiographs import CONDITIONS, NOMINAL, Point, plan_points, take_radiographs
from published.robustness import robustness_table

BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))


@pytest.fixture(scope="module")
def case() -> Case:
    """A phantom of 32³ voxels, away from the world's origin."""
    phantom = generate_phantom(2_000_000, shape=(32, 32, 32), spacing=11.2)
    affine = phantom.affine.copy()
    affine[:3, 3] += (40.0, -25.0, 700.0)
    return Case("a", "a", phantom.hu, affine, None)


@pytest.fixture
def weights(small_cascade, tmp_path: Path) -> Path:
    """A miniature of stage 1."""
    torch.save(small_cascade(stage=1, token_dim=64).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def _image(case: Case, condition: str = NOMINAL, value: float = 0.0, *, calibrated: bool = True) -> torch.Tensor:
    return take_radiographs(case, BEAM, Point(condition, value, calibrated), seed=0)[0]


def test_wrong_angle_turns_the_lateral_alone(case: Case) -> None:
    """The PA stays as it is; the lateral differs the more, the larger the angle; zero is no error."""
    nominal = _image(case)
    assert torch.equal(_image(case, "view_angle", 0.0), nominal)
    small, large = (_image(case, "view_angle", angle) - nominal for angle in (2.0, 10.0))
    assert not small[:, 0].any() and not large[:, 0].any()
    assert 0 < small[:, 1].norm() < large[:, 1].norm()


def test_wrong_distance_shrinks_the_shadow(case: Case) -> None:
    """A patient nearer to the detector than assumed casts a smaller shadow, in both views."""
    nominal, nearer = ((_image(case, "distance", value) > 0.3).sum(dim=(2, 3)) for value in (0.0, 10.0))
    assert (nearer < nominal).all()


def test_fewer_photons_are_noisier(case: Case) -> None:
    """The error of the line integrals grows as the photons get fewer, by the root of ten where none are missing."""
    clear = _image(case) < 1
    errors = [float((_image(case, "photons", value) - _image(case))[clear].std()) for value in (1e6, 1e5, 1e4)]
    assert errors[1] / errors[0] == pytest.approx(10**0.5, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(10**0.5, rel=0.1)


def test_uncalibrated_pixels_are_scaled_and_shifted(case: Case) -> None:
    """Factor and offset are exact; what is told about them is the point's; grey levels nobody takes for calibrated."""
    nominal = _image(case)
    for calibrated in (True, False):
        scaled, told = take_radiographs(case, BEAM, Point("scale", 1.2, calibrated), seed=0)
        assert told is calibrated and torch.equal(scaled, 1.2 * nominal)
        assert torch.equal(_image(case, "offset", 0.1, calibrated=calibrated), nominal + 0.1)
    grey, told = take_radiographs(case, BEAM, Point("grey_levels", 500.0, False), seed=0)
    assert told is False
    assert np.corrcoef(grey.flatten(), nominal.flatten())[0, 1] == pytest.approx(1, abs=0.02)


def test_missing_view_is_blank(case: Case) -> None:
    """The lateral shows nothing, the PA everything."""
    nominal, missing = _image(case), _image(case, "missing_view", 1.0)
    assert torch.equal(missing[:, 0], nominal[:, 0]) and not missing[:, 1].any() and nominal[:, 1].any()


def test_picture_goes_into_the_docs_when_the_run_is_the_published_one(tmp_path: Path) -> None:
    """A part of the curves, or another folder, leaves the published picture alone."""
    full = robustness.parse_options([]).picture
    assert full.parts[-3:] == ("bundle", "docs", "robustness.png")
    assert robustness.parse_options(["--quick"]).picture == robustness.RESULTS / "robustness.png"
    assert robustness.parse_options(["--output", str(tmp_path)]).picture == tmp_path / "robustness.png"


def test_points_are_each_taken_once() -> None:
    """What is nominal in several conditions is one point; every curve has all its degrees, or quickly its ends."""
    points = list(plan_points(list(CONDITIONS)))
    assert points[0] == Point(NOMINAL, 0.0, True) and len(set(points)) == len(points)
    for name, condition in CONDITIONS.items():
        own = [point for point in points if point.condition == name]
        shared = int(condition.nominal in condition.values) * (True in condition.declared)
        assert len(own) == len(condition.values) * len(condition.declared) - shared
    assert max(CONDITIONS["view_angle"].values) == max(CONDITIONS["distance"].values) == 10
    assert {1e3, 1e6} <= set(CONDITIONS["photons"].values)
    quick = list(plan_points(["view_angle", "photons"], quick=True))
    assert [point.value for point in quick] == [0.0, 10.0, 1e6, 1e3]


def test_script_measures_draws_and_goes_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON with every point and a picture; a second run measures nothing again, other weights are refused."""
    monkeypatch.setattr(
        "progressive_cascade.phantom.generate_phantom",
        lambda seed, **kinds: generate_phantom(seed, shape=(64, 64, 64), spacing=5.6, **kinds),
    )
    monkeypatch.setattr(robustness, "try_missing_views", lambda *_: {"blank": {"refused": True}})
    output = tmp_path / "out"
    arguments = [
        "--quick",
        "--checkpoint",
        str(weights),
        "--output",
        str(output),
        "--conditions",
        "view_angle",
        "scale",
    ]
    assert robustness.main(arguments) == 0
    report = json.loads((output / "robustness.json").read_text())
    assert report["settings"]["protocol"] == "native" and report["missing_views"]["blank"]["refused"]
    assert [(row["condition"], row["value"]) for row in report["rows"]][:3] == [
        (NOMINAL, 0.0),
        ("view_angle", 10.0),
        ("scale", 0.8),
    ]
    assert len(report["rows"]) == len(report["summary"]) == 6
    assert report["summary"][1]["scores"]["native_psnr_3d_db"]["num_patients"] == 1
    assert imread(output / "robustness.png").shape[0] > 300
    nominal = report["rows"][0]["scores"]["cascade"]["native_psnr_3d_db"]
    table = robustness_table(report)
    assert any(line.startswith(f"| nothing |  | calibrated | {nominal:.2f} |") for line in table)
    assert any(line.startswith("| error of the lateral's angle [degrees] | 10 | calibrated |") for line in table)

    monkeypatch.setattr(robustness, "infer_hu", lambda *_, **__: pytest.fail("measured again"))
    assert robustness.main(arguments) == 0
    assert json.loads((output / "robustness.json").read_text())["rows"] == report["rows"]
    monkeypatch.setattr(robustness, "file_hash", lambda path: "another")
    assert robustness.main(arguments) == 2
    assert "must be of the same weights" in capsys.readouterr().err


def test_missing_lateral_is_refused_in_one_line(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not given, blank, or the PA again: the command line says what is wrong with the lateral."""
    known = {name: make for name, make in missing_views.LATERALS.items() if name != "exposed without a patient"}
    monkeypatch.setattr(missing_views, "LATERALS", known)
    beam = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
    pa = np.random.default_rng(0).uniform(0, 6, beam.detector_shape).astype(np.float32)
    found = missing_views.try_missing_views(pa, beam, weights)
    assert all(answer["refused"] for answer in found.values())
    assert "--lateral" in found["not given"]["message"]
    assert "must show a patient" in found["blank"]["message"]
    assert "same image twice" in found["the PA again"]["message"]
    assert all(len(answer["message"].splitlines()) == 1 for answer in found.values())
