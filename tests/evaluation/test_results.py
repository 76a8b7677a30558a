# SPDX-License-Identifier: Apache-2.0
"""Laws of evaluation: who is scored, against what, what the numbers of many patients say, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle.scripts import run

from progressive_cascade import ConeBeam, line_integrals, volume_affine
from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.cli import main
from progressive_cascade.cli.common import PROTOCOL_NAMES
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.baselines import (
    least_squares,
    mean_volume,
    normalized_backprojection,
    training_mean,
)
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.metrics import PROTOCOLS, evaluate_volume
from progressive_cascade.evaluation.results import EvaluationReport, infer_hu
from progressive_cascade.evaluation.scores import confidence_interval, paired_gain, patient_means, save_csv, summarize
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.io import save_json, save_nifti
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.training.cases import Case, load_case
from tests.conftest import SMALL

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
BEAM: ConeBeam = SMALL["geometry"]


@pytest.fixture(scope="module")
def case() -> Case:
    """A phantom of 32³ voxels whose lowest quarter was never scanned."""
    phantom = generate_phantom(2_000_000, shape=(32, 32, 32), spacing=11.2)
    valid = np.ones(phantom.hu.shape, np.uint8)
    valid[:, :, :8] = 0
    return Case("a", "p", phantom.hu, phantom.affine, valid)


def _image(case: Case) -> torch.Tensor:
    mu = hu_to_mu(torch.from_numpy(case.hu).float())[None, None]
    return line_integrals(mu, BEAM, affine=case.affine)


def _record(case: str, patient: str, **scores: float) -> dict:
    return {"case": case, "patient": patient, "scores": {name: {"native_x": value} for name, value in scores.items()}}


def _dataset(folder: Path, **sections: list[str]) -> Path:
    """A dataset folder; items are `case` or `case:patient`."""
    datalist = {}
    for section, names in sections.items():
        datalist[section] = []
        for name in names:
            stem, _, patient = name.partition(":")
            files = {"label": f"ct/{stem}.nii.gz", "valid": f"valid/{stem}.nii.gz"}
            for path in files.values():
                save_nifti(np.ones((8, 8, 8), np.int16), volume_affine((8, 8, 8), 44.8), folder / path)
            datalist[section].append({**files, "patient": patient or stem})
    save_json(datalist, folder / "datalist.json")
    return folder


def test_confidence_interval_is_the_normal_one_for_many_patients() -> None:
    """For the mean of many normal numbers it is 1.96 standard errors to each side; the seed decides it."""
    values = np.random.default_rng(0).normal(22, 3, 400)
    low, high = confidence_interval(values.tolist())
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)
    assert confidence_interval(values.tolist()) == (low, high) != confidence_interval(values.tolist(), seed=1)


def test_confidence_interval_holds_the_truth_in_95_of_100_samples() -> None:
    """Of 200 samples of 30 patients from one population, about 190 intervals hold its mean."""
    rng = np.random.default_rng(0)
    intervals = [confidence_interval(rng.normal(0, 1, 30).tolist(), seed=k) for k in range(200)]
    assert 180 <= sum(low <= 0 <= high for low, high in intervals) <= 198


def test_confidence_interval_of_equal_values_is_a_point() -> None:
    """What does not vary has no width; one patient, or a number that is none, has no interval."""
    assert confidence_interval([3.5, 3.5]) == (3.5, 3.5)
    assert confidence_interval([1.0, 2.0]) == (1.0, 2.0)
    with pytest.raises(ValueError, match="at least two patients, got 1"):
        confidence_interval([1.0])
    with pytest.raises(ValueError, match="must be finite"):
        confidence_interval([1.0, math.inf])


def test_summary_is_over_patients_not_cases() -> None:
    """A patient with many scans counts once; what is not finite is left out; one patient has no interval."""
    cases = [_record("a", "p", cascade=10.0), _record("b", "p", cascade=20.0), _record("c", "q", cascade=25.0)]
    summary = summarize(cases)["cascade"]["native_x"]
    assert summary == {"mean": 20.0, "std": 5.0, "ci95": [15.0, 25.0], "num_patients": 2}
    cases.append(_record("d", "r", cascade=math.nan))
    assert summarize(cases)["cascade"]["native_x"] == summary
    assert patient_means(cases, "cascade", "native_x") == {"p": 15.0, "q": 25.0}
    assert summarize(cases[:2])["cascade"]["native_x"]["ci95"] is None
    assert summarize([]) == {} and summarize(cases[3:]) == {"cascade": {}}


def test_paired_gain_is_of_the_same_patients() -> None:
    """A constant gain is certain, however much the patients differ."""
    cases = [_record(name, name, ours=10.0 * k + 1, theirs=10.0 * k) for k, name in enumerate("abc")]
    gain = paired_gain(cases, "ours", "theirs", "native_x")
    assert gain is not None and gain["ci95"] == [1.0, 1.0] and gain["num_patients"] == 3
    assert paired_gain(cases, "ours", "nobody's", "native_x") is None


def test_csv_has_a_row_per_case_and_method(tmp_path: Path) -> None:
    """Scores stand in columns under their protocol's name, whatever their value."""
    save_csv([_record("a", "p", ours=1.5, theirs=math.inf), _record("b", "p", ours=math.nan)], tmp_path / "x.csv")
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["patient"], row["method"]) for row in rows] == [
        ("a", "p", "ours"),
        ("a", "p", "theirs"),
        ("b", "p", "ours"),
    ]
    assert [float(row["native_x"]) for row in rows][:2] == [1.5, math.inf]


def test_items_name_their_patients(tmp_path: Path) -> None:
    """CTs come first, then phantoms; each phantom is a patient."""
    folder = _dataset(tmp_path, training=["a"], test=["b:p"])
    items = evaluation_items(folder, num_phantoms=1)
    assert [item["patient"] for item in items] == ["p", "phantom_2000000"]
    loaded = load_case(items[0])
    assert (loaded.name, loaded.patient, loaded.hu.shape) == ("b", "p", (8, 8, 8))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"training": ["a:p"], "test": ["b:p"]}, "must not share patients, got ['p']"),
        ({"training": ["a:p"], "validation": ["b:p"], "test": ["c:q"]}, "training and validation must not share"),
        ({"training": ["a"], "test": []}, "must list at least one case under 'test', got none"),
        ({"training": [], "test": ["a:p", "b:p"]}, "must name at least two patients, so that one can be held out"),
    ],
)
def test_a_dataset_that_holds_nobody_out_is_refused(
    sections: dict, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patient in two splits, whichever; an empty section; a single patient: one line each on the command line."""
    folder = _dataset(tmp_path / "dataset", **sections)
    with pytest.raises(UserError) as error:
        evaluation_items(folder)
    assert expected in str(error.value)
    assert main(["evaluate", "--dataset", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_protocols_of_the_command_line_are_those_of_the_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--protocol` knows every protocol and answers another name with them."""
    assert tuple(PROTOCOLS) == PROTOCOL_NAMES
    assert main(["evaluate", "--phantoms", "1", "--protocol", "sparc", "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("'sparc'", *PROTOCOL_NAMES))
    with pytest.raises(UserError, match="protocol must be one of native, x2ct, perx2ct, xmed, got 'sparc'"):
        EvaluationReport(tmp_path, protocols="native sparc")


def test_case_on_a_coarser_grid_shows_the_same_patient(case: Case) -> None:
    """HU are block means, a block is valid where all of it is, and the world stays where it is."""
    coarse = case.at_grid(16)
    assert coarse.hu[3, 4, 5] == pytest.approx(case.hu[6:8, 8:10, 10:12].mean(), abs=1e-3)
    assert case.valid is not None and coarse.valid is not None
    assert coarse.valid.sum() * 8 == case.valid.sum()
    corner = case.affine @ [6.5, 8.5, 10.5, 1.0]
    np.testing.assert_allclose(coarse.affine @ [3.0, 4.0, 5.0, 1.0], corner, atol=1e-9)
    with pytest.raises(ValueError, match="size must divide"):
        case.at_grid(12)


def test_report_scores_every_method_by_every_protocol(case: Case, tmp_path: Path) -> None:
    """Each number is named after its protocol; a coarse volume is scored against the CT averaged to its grid."""
    report = EvaluationReport(tmp_path, geometry=BEAM, protocols=["native", "xmed"], pictures=False, baselines=False)
    half = case.at_grid(16)
    scores = report.score_case(case, {"cascade": case.hu + 100.0, "half": half.hu - 20.0}, image=_image(case))
    assert scores["cascade"]["native_bias_hu"] == pytest.approx(100, abs=0.5)
    assert scores["half"]["native_body_bias_hu"] == pytest.approx(-20, abs=0.5)
    expected = evaluate_volume(case.hu + 100.0, case.hu, protocol="xmed", valid=case.valid)
    assert {name: scores["cascade"][name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert all(name.startswith(("native_", "xmed_", "reprojection_", "clinical_")) for name in scores["cascade"])
    report.write()
    written = json.loads((tmp_path / "evaluation_metrics.json").read_text())
    assert written["summary"]["cascade"]["native_mae_hu"]["num_patients"] == written["num_patients"] == 1
    assert "95 %" in written["confidence"]
    assert (tmp_path / "evaluation_cases.csv").read_text().count("\n") == 3


def test_report_goes_on_where_it_was(case: Case, tmp_path: Path) -> None:
    """Numbers survive the file, nan included; another checkpoint's file is refused."""
    settings = {"geometry": BEAM, "pictures": False, "baselines": False}
    report = EvaluationReport(tmp_path, **settings, description={"checkpoint": "a"})
    assert not report.resume()
    report.score_case(case, {"cascade": np.full(case.hu.shape, -1000.0)}, image=_image(case))
    report.cases[0]["scores"]["cascade"]["native_bone_mae_hu"] = math.nan
    report.write(finished=False)
    assert "summary" not in json.loads(report.path.read_text())
    assert EvaluationReport(tmp_path, **settings, description={"checkpoint": "a"}).resume()
    report.write()
    again = EvaluationReport(tmp_path, **settings, description={"checkpoint": "a"})
    assert again.resume() and again.summary() == report.summary()
    assert math.isnan(again.cases[0]["scores"]["cascade"]["native_bone_mae_hu"])
    with pytest.raises(UserError, match="must be of the same checkpoint to go on with"):
        EvaluationReport(tmp_path, **settings, description={"checkpoint": "b"}).resume()


def test_a_case_without_a_body_is_named(case: Case, tmp_path: Path) -> None:
    """Air has nothing to score, nor has a body that was not scanned."""
    report = EvaluationReport(tmp_path, geometry=BEAM, pictures=False, baselines=False)
    air = np.full(case.hu.shape, -1000, np.int16)
    for hu, valid in ((air, None), (case.hu, np.zeros(case.hu.shape, np.uint8))):
        empty = Case("thorax_7", "p", hu, case.affine, valid)
        with pytest.raises(UserError, match="case thorax_7 must show a body, got no scanned voxel above -500 HU"):
            report.score_case(empty, {"cascade": air}, image=_image(case))
    assert not report.cases


def test_least_squares_explains_what_back_projection_does_not(case: Case) -> None:
    """Both baselines are bounded and see the patient; data consistency fits the radiographs better."""
    image, affine = _image(case), volume_affine((32, 32, 32), 11.2)
    errors = []
    for method in (normalized_backprojection, least_squares):
        mu = method(image, BEAM, grid=32)
        assert mu.shape == (1, 1, 32, 32, 32) and mu.min() >= 0 and mu.max() < 0.2
        errors.append(float((line_integrals(mu, BEAM, affine=affine) - image).norm() / image.norm()))
    assert errors[1] < 0.5 * errors[0]


def test_mean_volume_never_holds_who_is_scored() -> None:
    """It is of training patients, and there is none where the training section itself is scored."""
    mean = training_mean(section="validation", num_phantoms=1, grid=16)
    assert mean is not None
    one = mean_volume([{"seed": 0}], grid=16)
    assert one is not None and np.array_equal(mean, one)
    assert training_mean(section="training", num_phantoms=1) is None
    assert mean_volume([]) is None


def test_infer_hu_is_the_cascades_output_in_hu(small_cascade) -> None:
    """On its own grid, whole HU in the window; without calibration there is no data consistency, so another volume."""
    network = small_cascade(stage=1).eval()
    image = torch.rand(1, 2, 128, 128)
    with torch.no_grad():
        unit = network(image)[0, 0]
    hu = infer_hu(network, image, BEAM, inferer=CascadeInferer(amp=True, consistency_rounds=0))
    assert hu.shape == (16, 16, 16) and np.array_equal(hu, hu.round())
    np.testing.assert_allclose(hu, unit.numpy() * 2048 - 1024, atol=40)  # bfloat16
    assert not np.array_equal(hu, infer_hu(network, image, BEAM, calibrated=False))


def test_evaluate_workflow_takes_protocols_as_a_key(
    small_cascade, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """configs/evaluate.json scores by the protocols of its top-level key, and names patient and weights."""
    monkeypatch.chdir(BUNDLE)
    torch.save(small_cascade(stage=1, token_dim=64).state_dict(), tmp_path / "weights.pt")
    overrides = {
        "checkpoint": str(tmp_path / "weights.pt"),
        "geometry": BEAM.to_dict(),
        "num_phantoms": 2,
        "baselines": False,
        "pictures": False,
        "device": "$torch.device('cpu')",
        "preprocessing#transforms#0#spatial_size": 32,
        "output_dir": str(tmp_path),
    }
    run(config_file="configs/evaluate.json", protocols="native,x2ct", refine_steps=1, **overrides)
    report = json.loads((tmp_path / "evaluation_metrics.json").read_text())
    assert report["protocols"] == ["native", "x2ct"] and len(report["checkpoint_sha256"]) == 64
    assert [case["patient"] for case in report["cases"]] == ["phantom_2000000", "phantom_2000001"]
    assert list(report["summary"]) == ["refined", "cascade"] and report["refine_steps"] == 1
    summary = report["summary"]["cascade"]
    assert report["summary"]["refined"]["native_psnr_3d_db"] != summary["native_psnr_3d_db"]
    low, high = summary["x2ct_psnr_3d_db"]["ci95"]
    assert low <= summary["x2ct_psnr_3d_db"]["mean"] <= high
    assert {"native_body_lung_bias_hu", "x2ct_valid_ssim_slicewise"} <= set(summary)
