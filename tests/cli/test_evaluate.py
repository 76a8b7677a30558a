# SPDX-License-Identifier: Apache-2.0
"""Laws of `evaluate`: every score under its protocol's name, one case or many."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progressive_cascade import volume_affine
from progressive_cascade.cli import main
from progressive_cascade.cli.evaluation_jobs import _network
from progressive_cascade.evaluation.results import EvaluationReport
from progressive_cascade.evaluation.scores import summarize
from progressive_cascade.io import finite, save_json, save_nifti
from tests.cli.conftest import stand_in
from tests.support.cube import place_coarsely
from tests.support.trunk import trunk_affine, trunk_hu


def test_summary_leaves_out_what_is_not_finite() -> None:
    """Means are over finite scores, and JSON gets null instead of infinity."""
    cases = [
        {"case": str(value), "scores": {"cascade": {"native_psnr": value}}} for value in (20.0, 22.0, float("inf"))
    ]
    summary = summarize(cases)["cascade"]["native_psnr"]
    assert (summary["mean"], summary["std"], summary["num_patients"]) == (21.0, 1.0, 2)
    assert json.dumps(finite({"a": [float("nan"), 1.0]}), allow_nan=False) == '{"a": [null, 1.0]}'


TWO_OF_THREE = ["evaluate", "--phantoms", "3", "--num-samples", "2", "--save-nifti", "--no-baselines"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of two cases."""
    output = tmp_path_factory.mktemp("evaluated") / "out"
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, output.parent)
        assert main([*TWO_OF_THREE, "--output", str(output)]) == 0
    return output


def test_evaluate_writes_scores_and_pictures(evaluated: Path) -> None:
    """Per case and in summary, each score under its protocol's name: a shift of 100 HU is an MAE of 100 HU."""
    output = evaluated
    report = json.loads((output / "evaluation_metrics.json").read_text())
    assert report["protocols"] == ["native"]
    assert len(report["cases"]) == 2
    assert report["summary"]["cascade"]["native_mae_hu"]["mean"] == pytest.approx(100.0)
    assert report["cases"][0]["agreement"]["pa"]["relative_residual"] > 0.05
    assert len(list(output.glob("comparison_*.png"))) == len(list(output.glob("*.nii.gz"))) == 2


def test_a_dask_cluster_evaluates_the_same_bytes(
    evaluated: Path, cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LocalCluster against this process: every file of the folder. CTs as they come are prepared there first."""
    distributed = pytest.importorskip("distributed")
    output = tmp_path / "out"
    _network.cache_clear()
    with distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        address = ["--scheduler", cluster.scheduler_address, "--output", str(output)]
        assert main([*TWO_OF_THREE, *address]) == 0
        assert main(["evaluate", "--cts", str(tmp_path), *address]) == 2
    _network.cache_clear()
    assert "prepare --scheduler" in capsys.readouterr().err
    names = {path.name for path in evaluated.iterdir()}
    assert names == {path.name for path in output.iterdir()}
    assert [name for name in sorted(names) if (evaluated / name).read_bytes() != (output / name).read_bytes()] == []


def test_evaluate_sample_idx_takes_one_case(evaluated: Path, cascade: None, tmp_path: Path) -> None:
    """The case is counted from 0 over the section, and nothing else is evaluated."""
    one = tmp_path / "one"
    assert main(["evaluate", "--phantoms", "2", "--no-baselines", "--sample-idx", "1", "--output", str(one)]) == 0
    cases = [json.loads((folder / "evaluation_metrics.json").read_text())["cases"] for folder in (evaluated, one)]
    assert cases[1] == cases[0][1:]


def test_evaluate_takes_cts_as_they_come(
    cascade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prepared in memory: a copy and a broken file are named and skipped, what was mended is said."""
    place_coarsely(monkeypatch)
    hu = trunk_hu().astype(np.float32)
    hu[:2, :2] = np.nan
    for name in ("a", "copy"):
        save_nifti(hu, trunk_affine(), tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "z.nii.gz").write_bytes(b"broken")
    output = tmp_path / "out"
    arguments = ["evaluate", "--no-baselines", "--output", str(output), "--cts"]
    assert main([*arguments, str(tmp_path / "in")]) == 0
    printed = capsys.readouterr().out
    for line in ("note: a: 160 voxels", "skipped: copy: the same voxels as a", "skipped: z: "):
        assert line in printed
    assert [case["case"] for case in json.loads((output / "evaluation_metrics.json").read_text())["cases"]] == ["a"]
    assert main([*arguments, str(tmp_path / "in" / "z.nii.gz"), "--overwrite"]) == 2
    assert "at least one usable CT" in capsys.readouterr().err
    assert (output / "a.html").is_file()


def test_an_interrupted_evaluation_leaves_the_old_one(
    evaluated: Path, cascade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --overwrite, too: pictures and numbers in a folder are always of one run."""
    shutil.copytree(evaluated, tmp_path / "out")

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    before = content()
    assert {"phantom_2000000.html", "comparison_phantom_2000001.png", "evaluation_metrics.json"} <= set(before)
    score, scored = EvaluationReport.score_case, []

    def stop_at_second(report: EvaluationReport, case: Any, *given: Any, **options: Any) -> Any:
        scored.append(case.name)
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score(report, case, *given, **options)

    monkeypatch.setattr(EvaluationReport, "score_case", stop_at_second)
    assert main([*TWO_OF_THREE, "--output", str(tmp_path / "out"), "--overwrite"]) == 130
    assert len(scored) == 2
    assert content() == before


def test_evaluate_refuses_another_grid(cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CT that was not prepared for the cascade's grid is named."""
    for name in ("ct", "valid"):
        save_nifti(np.ones((16, 16, 16), np.int16), volume_affine((16, 16, 16), 22.4), tmp_path / name / "a.nii.gz")
    test, training = ({"label": "ct/a.nii.gz", "valid": "valid/a.nii.gz", "patient": name} for name in "ab")
    save_json({"training": [training], "validation": [], "test": [test]}, tmp_path / "datalist.json")
    out = tmp_path.with_name("out")
    assert main(["evaluate", "--dataset", str(tmp_path), "--no-baselines", "--output", str(out)]) == 2
    assert "case a must lie on the cascade's grid (32, 32, 32), got (16, 16, 16)" in capsys.readouterr().err
