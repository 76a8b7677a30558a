# SPDX-License-Identifier: Apache-2.0
"""Laws of the robustness benchmark: each condition changes what it says and nothing else, and no point is lost."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from progressive_cascade import ConeBeam
from progressive_cascade.evaluation.perturbed import Told
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.inference.size import Size
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.radiograph.pair import Pair
from progressive_cascade.training.cases import Case

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import robustness
from conditions import missing_views
from conditions.radiographs import CONDITIONS, LOOKED_FOR, NOMINAL, Point, plan_points
from published.robustness import robustness_table

BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))


@pytest.fixture(scope="module")
def case() -> Case:
    """A phantom of 32³ voxels, away from the world's origin."""
    phantom = generate_phantom(2_000_000, shape=(32, 32, 32), spacing=11.2)
    affine = phantom.affine.copy()
    affine[:3, 3] += (40.0, -25.0, 700.0)
    return Case("a", "a", phantom.hu, affine, None)


def _small(result: Reconstruction) -> Reconstruction:
    """A reconstruction on 64³ voxels."""
    return replace(result, hu=result.hu[::4, ::4, ::4])


@pytest.fixture
def weights(small_cascade, tmp_path: Path) -> Path:
    """A miniature of stage 1."""
    torch.save(small_cascade(stage=1, token_dim=64).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def _told(case: Case, condition: str = NOMINAL, value: float = 0.0, told: str = "calibrated") -> Told:
    return Point(condition, value, told).perturbation(BEAM).take(case, seed=0)


def _image(case: Case, condition: str = NOMINAL, value: float = 0.0, told: str = "calibrated") -> np.ndarray:
    return _told(case, condition, value, told).image


def test_nothing_but_the_radiographs_is_wrong(case: Case) -> None:
    """Whatever is the matter, the reconstruction is told the nominal geometry, about the patient's isocenter."""
    for point in plan_points(list(CONDITIONS)):
        found = point.perturbation(BEAM).take(case, seed=0)
        assert found.beam == _told(case).beam
        assert found.intensities == ("calibrated" if point.told == LOOKED_FOR else point.told)
        assert np.array_equal(found.image, _image(case)) is (point.condition == NOMINAL or point.value == _right(point))


def _right(point: Point) -> float | None:
    return CONDITIONS[point.condition].nominal


def test_wrong_angle_turns_the_lateral_alone(case: Case) -> None:
    """The PA stays as it is; the lateral differs the more, the larger the angle."""
    nominal = _image(case)
    small, large = (_image(case, "view_angle", angle) - nominal for angle in (2.0, 10.0))
    assert not small[0].any() and not large[0].any()
    assert 0 < np.linalg.norm(small[1]) < np.linalg.norm(large[1])


@pytest.mark.parametrize("condition", ["distance", "pixel_size"])
def test_wrong_lengths_shrink_the_shadow(case: Case, condition: str) -> None:
    """A patient nearer to the detector, or larger pixels, than assumed cast a smaller shadow, in both views."""
    nominal, smaller = ((_image(case, condition, value) > 0.3).sum(axis=(1, 2)) for value in (0.0, 10.0))
    assert (smaller < nominal).all()


def test_fewer_photons_are_noisier(case: Case) -> None:
    """The error of the line integrals grows as the photons get fewer, by the root of ten where none are missing."""
    clear = _image(case) < 1
    errors = [float((_image(case, "photons", value) - _image(case))[clear].std()) for value in (1e6, 1e5, 1e4)]
    assert errors[1] / errors[0] == pytest.approx(10**0.5, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(10**0.5, rel=0.1)


def test_unknown_intensities_are_scaled_shifted_and_shown(case: Case) -> None:
    """Factor and offset are exact, whatever is told of them; a display rises with the line integrals."""
    nominal = _image(case)
    for told in ("calibrated", "scaled"):
        assert np.array_equal(_image(case, "scale", 1.2, told), np.float32(1.2) * nominal)
        assert np.array_equal(_image(case, "offset", 0.1, told), nominal + np.float32(0.1))
    shown = _image(case, "display", 1.0, "display")
    assert np.corrcoef(shown.ravel(), nominal.ravel())[0, 1] == pytest.approx(1, abs=0.05)
    assert not np.allclose(shown, nominal, atol=0.1)


def test_picture_goes_into_the_docs_when_the_run_is_the_published_one(tmp_path: Path) -> None:
    """A part of the curves, or another folder, leaves the published picture alone."""
    full = robustness.parse_options([]).picture
    assert full.parts[-3:] == ("bundle", "docs", "robustness.png")
    assert robustness.parse_options(["--quick"]).picture == robustness.RESULTS / "robustness.png"
    assert robustness.parse_options(["--output", str(tmp_path)]).picture == tmp_path / "robustness.png"


def test_points_are_each_taken_once() -> None:
    """What is nominal in several conditions is one point; every curve has all its degrees, or quickly its ends."""
    points = list(plan_points(list(CONDITIONS)))
    assert points[0] == Point(NOMINAL, 0.0, "calibrated") and len(set(points)) == len(points)
    for name, condition in CONDITIONS.items():
        own = [point for point in points if point.condition == name]
        shared = int(condition.nominal in condition.values) * ("calibrated" in condition.told)
        assert len(own) == len(condition.values) * len(condition.told) - shared
    assert max(CONDITIONS["view_angle"].values) == max(CONDITIONS["distance"].values) == 10
    assert {1e3, 1e4} <= set(CONDITIONS["photons"].values)
    quick = list(plan_points(["view_angle", "photons"], quick=True))
    assert [point.value for point in quick] == [0.0, 10.0, 1e5, 1e3]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """Everything is small; the pairs whose size is looked for, of which the second is larger than told."""
    monkeypatch.setattr(
        "progressive_cascade.phantom.generate_phantom",
        lambda seed, **kinds: generate_phantom(seed, shape=(64, 64, 64), spacing=5.6, **kinds),
    )
    # The miniature makes volumes of 256³ as well; what is compared is small.
    whole = robustness.reconstruct
    asked: list[Pair] = []

    def find(_: ProgressiveCascade, pair: Pair) -> Size:
        asked.append(pair)
        return Size(1.1, 0.1, 0.2) if len(asked) == 2 else Size(1.0, 0.1, 0.1)

    monkeypatch.setattr(robustness, "find_size", find)
    monkeypatch.setattr(robustness, "reconstruct", lambda *given, **more: _small(whole(*given, **more)))
    monkeypatch.setattr(robustness, "try_missing_views", lambda *_: {"blank": {"refused": True}})
    return asked


def test_script_measures_draws_and_goes_on(
    weights: Path,
    asked: list[Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """JSON with every point and a picture; a second run measures nothing again, other weights are refused."""
    output = tmp_path / "out"
    arguments = [
        "--quick",
        "--checkpoint",
        str(weights),
        "--output",
        str(output),
        "--conditions",
        "distance",
        "display",
    ]
    assert robustness.main(arguments) == 0
    report = json.loads((output / "robustness.json").read_text())
    assert report["settings"]["protocol"] == "native" and report["missing_views"]["blank"]["refused"]
    assert [(row["condition"], row["value"], row["told"]) for row in report["rows"]] == [
        (NOMINAL, 0.0, "calibrated"),
        ("distance", 10.0, "calibrated"),
        ("distance", 0.0, LOOKED_FOR),
        ("distance", 10.0, LOOKED_FOR),
        ("display", 1.0, "display"),
    ]
    assert len(report["summary"]) == 5 and len(asked) == 2
    assert report["summary"][1]["scores"]["native_psnr_3d_db"]["num_patients"] == 1
    assert imread(output / "robustness.png").shape[0] > 300
    nominal, distance = (row["scores"]["cascade"] for row in report["rows"][:2])
    psnr, lost = (distance[f"{when}native_psnr_3d_db"] for when in ("", "aligned_")), []
    for when, value in zip(("", "aligned_"), psnr, strict=True):
        lost.append(f"{value:.2f} ({value - nominal[f'{when}native_psnr_3d_db']:+.2f})")
    table = robustness_table(report)
    assert any(line.startswith(f"| nothing |  | calibrated | {nominal['native_psnr_3d_db']:.2f} |") for line in table)
    row = f"| error of source_to_isocenter [%] | 10 | calibrated | {lost[0]} | {lost[1]} |"
    assert any(line.startswith(row) for line in table)
    assert 0.8 < report["rows"][1]["similarity"]["scale"] < 1.2 and "similarity" not in report["rows"][2]
    looked = [row["scores"]["cascade"]["native_psnr_3d_db"] for row in report["rows"]]
    assert looked[2] == looked[0] and looked[3] != looked[1], "resized where that was found, and there alone"

    monkeypatch.setattr(robustness, "reconstruct", lambda *_, **__: pytest.fail("measured again"))
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
