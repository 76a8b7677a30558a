# SPDX-License-Identifier: Apache-2.0
"""Laws of the calibration: intervals cover, nobody is predicted with his own help, errors are the protocol's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progressive_cascade.errors import UserError
from progressive_cascade.evaluation import trust
from progressive_cascade.evaluation.metrics import body_mask, evaluate_volume
from progressive_cascade.evaluation.perturbed import PERTURBATIONS
from progressive_cascade.evaluation.ridge import (
    Table,
    choose_terms,
    conformal_bounds,
    fit_line,
    predict_unseen,
    rank_correlation,
)
from progressive_cascade.evaluation.sigma import GAUSSIAN, fit_sigma, shares_within, sigma_report
from progressive_cascade.evaluation.trials import EDGES_HU, plan_trials, tally_sigma, volume_errors
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.inference.signs import SIGNS
from progressive_cascade.training.cases import Case
from tests.support.trunk import trunk_hu


def _table(num_patients: int = 12, cases: int = 4, noise: float = 0.1, seed: int = 0) -> Table:
    """Targets that follow the first column, and the second one's square; the third says nothing."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(num_patients * cases, 3))
    targets = 2 + values[:, 0] + 0.5 * values[:, 1] ** 2 + noise * random.normal(size=len(values))
    patients = np.repeat(np.arange(num_patients), cases)
    return Table(["a", "b", "c"], values, targets, patients, np.ones(len(values)))


def test_line_is_found_where_there_is_one() -> None:
    """The terms that made the targets are chosen first, and unseen patients come out right."""
    table = _table()
    names, penalty = choose_terms(table, ["a", "b", "c", "b²"])
    assert names[:2] == ["a", "b²"]
    unseen = predict_unseen(table, names, penalty)
    assert np.abs(unseen - table.targets).mean() < 0.15
    assert rank_correlation(unseen, table.targets) > 0.95


def test_nobody_is_predicted_with_his_own_help() -> None:
    """Whatever a patient's own targets are, what is said of him stays the same."""
    table = _table()
    other = Table(table.names, table.values, np.where(table.patients == 3, 99.0, table.targets), *_rest(table))
    own = table.patients == 3
    first, second = (predict_unseen(each, ["a"], 1.0) for each in (table, other))
    np.testing.assert_allclose(first[own], second[own])


def _rest(table: Table) -> tuple[np.ndarray, np.ndarray]:
    return table.patients, table.weights


def test_sums_choose_what_leaving_out_would() -> None:
    """The fast sums of a patient give the misses that fitting without him gives, to the standardisation."""
    table = _table(num_patients=30)
    names, penalty = choose_terms(table, ["a"])
    assert names == ["a"]
    misses = predict_unseen(table, ["a"], penalty) - table.targets
    without = predict_unseen(table, ["c"], penalty) - table.targets
    assert np.mean(misses**2) < np.mean(without**2)


def test_sign_that_is_missing_counts_as_the_mean() -> None:
    """A NaN adds what the mean adds."""
    table = _table()
    values = table.values.copy()
    values[0, 0] = np.nan
    fit = fit_line(Table(table.names, values, table.targets, *_rest(table)), ["a"], 1.0)
    values[0, 0] = fit.centers[0]
    filled = Table(table.names, values, table.targets, *_rest(table))
    assert fit.predict(filled)[0] == pytest.approx(fit.intercept)


@pytest.mark.parametrize("skew", [False, True])
def test_conformal_interval_covers_exchangeable_cases(skew: bool) -> None:
    """Of 400 draws of 39 misses and one more, the interval of the 39 holds the one more in 90 % or a little over."""
    random = np.random.default_rng(1)
    inside = []
    for _ in range(400):
        misses = random.normal(size=40)
        misses = np.exp(misses) if skew else misses
        below, above = conformal_bounds(misses[1:], np.ones(39), 0.9)
        assert below <= 0 <= above
        inside.append(below <= misses[0] <= above)
    assert 0.87 <= np.mean(inside) <= 0.97


def test_rank_correlation_is_spearmans() -> None:
    """Against scipy, ties included."""
    from scipy.stats import spearmanr

    random = np.random.default_rng(2)
    one, other = random.integers(0, 8, 50).astype(float), random.normal(size=50)
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)


def _tally(scale: float, seed: int) -> np.ndarray:
    """Errors of 150 HU in soft tissue, where sigma says so many times less."""
    errors = np.abs(np.random.default_rng(seed).normal(size=20_000)) * 150.0
    tally = np.zeros((5, 96, 96), np.int64)
    row = int(np.searchsorted(EDGES_HU, 150.0 / scale)) - 1
    tally[3, row] = np.bincount(np.clip(np.searchsorted(EDGES_HU, errors) - 1, 0, 95), minlength=96)
    return tally


def test_recalibrated_sigma_covers_unseen_patients() -> None:
    """Sigma that is half of what it should be is doubled where it is wrong, and left where nothing was seen."""
    records = [{"patient": f"p{index}", "tally": _tally(2.0, index)} for index in range(4)]
    assert shares_within(records[0]["tally"][3], 1.0, 1.0)[0] < 0.45
    fitted = fit_sigma(records)
    assert fitted["air"] == [1.0, 1.0]
    np.testing.assert_allclose(shares_within(records[0]["tally"][3], *fitted["soft"]), GAUSSIAN, atol=0.02)
    report = sigma_report(records)
    assert max(map(abs, report["body"]["after"]["off"])) < 0.02 < abs(report["body"]["before"]["off"][0])
    assert report["patients"] == 4 and trust.helps(report) and sigma_report(records[:1]) == {}


def _record(patient: int, index: int, random: np.random.Generator) -> dict[str, Any]:
    signs = {name: float(random.normal()) for name in SIGNS} | {"beyond": 0.0, "second": None}
    level = 4.5 + 0.3 * signs["residual_before"]
    errors = {"body_mae_hu": float(np.exp(level)), "psnr_3d_db": 30.0 - level, "body_surface_mm": 3.0}
    about = {"name": f"{patient}_{index}", "patient": str(patient), "group": "phantoms" if patient > 4 else "patients"}
    about |= {"perturbation": "display curve" if index else "nominal", "undeclared": bool(index), "whole": not index}
    return {**about, "signs": signs, "errors": {**errors, "lungs_surface_mm": None}, "tally": _tally(2.0, patient)}


def test_calibration_is_what_trust_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From records to a file that is loaded and expects the errors of the records; what nobody had is left out."""
    from progressive_cascade.inference.trust import load_trust
    from progressive_cascade.io import finite, save_json

    monkeypatch.setattr(trust, "CANDIDATES", ("residual_before", "second", "soft_hu²"))
    random = np.random.default_rng(3)
    records = [_record(patient, index, random) for patient in range(7) for index in range(3)]
    content, report = trust.fit_trust(records, checkpoints={"a" * 64: "model.pt"}, uncertainty="b", refine_steps=8)
    save_json(finite(content), tmp_path / "trust.json")
    save_json(finite(report), tmp_path / "report.json")
    loaded = load_trust(tmp_path / "trust.json")
    assert set(loaded.lines) == {"body_mae_hu", "psnr_3d_db", "body_surface_mm"} and loaded.sigma["soft"][0] > 1.5
    assert "21 reconstructions of 5 CTs" in loaded.calibrated_on and "2 unseen phantoms" in loaded.calibrated_on
    for record in records[:5]:
        signs = {name: float("nan") if value is None else value for name, value in record["signs"].items()}
        found = loaded.expect(signs)
        assert found["body_mae_hu"]["value"] == pytest.approx(record["errors"]["body_mae_hu"], rel=0.1)
        assert found["psnr_3d_db"]["value"] == pytest.approx(record["errors"]["psnr_3d_db"], abs=0.1)
    assert "expected_mae" in [term.name for term in loaded.lines["psnr_3d_db"].terms if term.slope]
    judged = report["errors"]["body_mae_hu"]["all"]
    assert judged["cases"] == 21 and judged["rank_correlation"] > 0.95 and judged["coverage"] > 0.8
    changed = [{**r, "errors": {**r["errors"], "body_mae_hu": 900.0}} if r["patient"] == "3" else r for r in records]
    _, rows = trust.fit_errors(changed)
    for row, before in zip(rows, report["rows"], strict=True):
        if row["patient"] == "3":  # nobody is expected with his own help
            assert (row["expected"], row["interval"]) == (before["expected"], before["interval"])
    with pytest.raises(UserError, match="at least 4 patients"):
        trust.fit_errors(records[:3])


def test_plan_meets_everybody_before_anybody_twice() -> None:
    """Phantoms of both populations: well first, then each under another perturbation; nobody gives somebody."""
    plan = plan_trials(None, phantoms=4, perturbations=8)
    assert [trial.perturbation for trial in plan[:4]] == ["nominal"] * 4
    assert len(plan) == 8 == len({trial.name for trial in plan}) and len({t.perturbation for t in plan[4:]}) == 4
    assert {trial.item.get("population", "basic") for trial in plan} == {"basic", "clinical"}
    with pytest.raises(UserError, match="there must be somebody"):
        plan_trials(None, phantoms=0, perturbations=1)
    assert [name for name, each in PERTURBATIONS.items() if each.undeclared] == [
        "gain 0.8, told calibrated",
        "distance wrong by 5 %",
        "lateral turned 2°, untold",
    ]


def test_errors_are_those_of_the_protocol() -> None:
    """MAE in the body and PSNR equal `native`; the tally counts the body's voxels once each."""
    from progressive_cascade.evaluation.clinical import segment_chest

    truth = trunk_hu((32, 32, 32)).astype(np.float32)
    random = np.random.default_rng(4)
    hu = (truth + random.normal(0, 60, truth.shape)).round().astype(np.int16)
    valid = np.ones(truth.shape, np.uint8)
    valid[:, :, :4] = 0
    case = Case("trunk", "trunk", truth, np.diag([11.2, 11.2, 11.2, 1.0]), valid)
    body = np.asarray(body_mask(truth)) & (valid > 0)
    errors = volume_errors(hu, case, body, segment_chest(truth, 11.2, valid=valid))
    scores = evaluate_volume(hu, truth, valid=valid)
    assert errors["body_mae_hu"] == pytest.approx(scores["native_body_mae_hu"], rel=1e-5)
    assert errors["psnr_3d_db"] == pytest.approx(scores["native_psnr_3d_db"], abs=1e-4)
    assert 0 <= errors["body_surface_mm"] < 11.2
    result = Reconstruction(hu, case.affine, {}, np.zeros(0), np.zeros(0), True)
    tally = tally_sigma(result, case, body, np.full(truth.shape, 60.0, np.float32))
    assert tally.sum() == body.sum() and tally.shape == (5, 96, 96)
    assert abs(shares_within(tally.sum(axis=0), 1.0, 1.0)[0] - GAUSSIAN[0]) < 0.05
