# SPDX-License-Identifier: Apache-2.0
"""Laws of the published tables: evaluated case by case, resumable, and written from nothing but the evaluations."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade.ct.tissues import TISSUES
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.results import EvaluationReport
from progressive_cascade.evaluation.scores import summarize
from progressive_cascade.io import save_json, save_nifti
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.training.cases import load_case

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import results_evaluation
import results_tables
from published.tables import METHODS, NATIVE, PAPERS, TABLES
from results_tables import fill
from tests.conftest import SMALL
from tests.support.processes import start_server

SCORES = [name for name, _ in (*NATIVE.values(), *PAPERS.values())]
SCORES += [
    f"native_{region}{tissue}_{kind}_hu" for region in ("", "body_") for tissue in TISSUES for kind in ("mae", "bias")
]
HOPES = ("28–30, 0.85–0.90", "32–35, 0.92–0.95", "35–38, 0.95–0.97")


@pytest.fixture
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms of 64³ voxels in place of 256³."""
    monkeypatch.setattr(
        "progressive_cascade.phantom.generate_phantom",
        lambda seed, **kinds: generate_phantom(seed, shape=(64, 64, 64), spacing=5.6, **kinds),
    )


def _report(*patients: str) -> dict:
    """An evaluation in which stage k beats stage k - 1 by exactly 1 in every score; the caller's own."""
    return copy.deepcopy(_evaluation(*patients))


@functools.cache
def _evaluation(*patients: str) -> dict:
    rng = np.random.default_rng(0)
    methods = {name: k for k, name in enumerate(METHODS)}
    methods |= {"stage_1_at_64": 10, "stage_2_at_128": 11}
    cases = []
    for patient in patients:
        own = dict(zip(SCORES, rng.uniform(0, 9, len(SCORES)), strict=True))
        scores = {method: {name: value + add for name, value in own.items()} for method, add in methods.items()}
        cases.append({"case": f"scan of {patient}", "patient": patient, "scores": scores})
    weights = {
        f"stage_{k}": {"file": f"stage{k}_best.pt", "sha256": hashlib.sha256(bytes(k)).hexdigest()} for k in (1, 2, 3)
    }
    return {"checkpoints": weights, "summary": summarize(cases), "cases": cases}


def _document(*tables: str) -> str:
    blocks = [f"<!-- results: {name} -->\nold\n<!-- end of results -->" for name in tables]
    return "\n\n".join(["# Title", *blocks, "after\n"])


def test_evaluation_scores_every_stage_and_goes_on(
    small_cascade, small_phantoms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages at full size and on their own grid; a second run takes up the first one's cases untouched."""
    networks = {stage: small_cascade(stage=stage).eval() for stage in (1, 2, 3)}
    settings = {"geometry": SMALL["geometry"], "pictures": False, "baselines": False, "stem": "evaluation_phantoms"}
    items = evaluation_items(num_phantoms=2)
    results_evaluation.evaluate(items[:1], networks, EvaluationReport(tmp_path, **settings))
    first = json.loads((tmp_path / "evaluation_phantoms_metrics.json").read_text())["cases"]
    methods = {"stage_1", "stage_2", "stage_3", "stage_1_at_16", "stage_2_at_32"}
    assert len(first) == 1 and set(first[0]["scores"]) == methods
    made = []
    monkeypatch.setattr(results_evaluation, "load_case", lambda item: made.append(item) or load_case(item))
    results_evaluation.evaluate(items, networks, EvaluationReport(tmp_path, **settings))
    assert made == items[1:]
    second = json.loads((tmp_path / "evaluation_phantoms_metrics.json").read_text())
    assert second["cases"][:1] == first and second["num_patients"] == 2
    assert (tmp_path / "evaluation_phantoms_cases.csv").read_text().count("\n") == 1 + 2 * len(methods)


def test_scores_of_the_same_weights_are_kept(
    small_cascade, small_phantoms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights of stage 2: it alone is scored again, and the record is the one that scoring everything gives."""
    networks = {stage: small_cascade(stage=stage).eval() for stage in (1, 2)}
    items = evaluation_items(num_phantoms=1)

    def report(folder: str, second: str, **settings: object) -> EvaluationReport:
        weights = {"stage_1": {"sha256": "one"}, "stage_2": {"sha256": second}}
        common = {"geometry": SMALL["geometry"], "pictures": False, "description": {"checkpoints": weights}}
        return EvaluationReport(tmp_path / folder, **common, **settings)

    results_evaluation.evaluate(items, networks, report("before", "old"))
    torch.nn.init.normal_(networks[2].stages[-1].unet.out.bias, std=0.1)
    whole = report("whole", "new")
    results_evaluation.evaluate(items, networks, whole)
    reconstructed = []
    infer = results_evaluation.infer_hu
    monkeypatch.setattr(
        results_evaluation, "infer_hu", lambda network, *rest: reconstructed.append(network) or infer(network, *rest)
    )
    kept = report("kept", "new")
    results_evaluation.evaluate(items, networks, kept, earlier=tmp_path / "before")
    assert reconstructed == [networks[2]]
    assert json.dumps(kept.cases) == json.dumps(whole.cases)
    before = kept.read_cases(tmp_path / "before" / kept.path.name, may_differ=("checkpoints",))
    assert kept.cases[0]["scores"]["stage_2"] != before[0]["scores"]["stage_2"]
    with pytest.raises(UserError, match="must be of the same protocols"):
        results_evaluation.still_true(report("", "new", protocols="x2ct"), tmp_path / "before")


def test_jobs_give_what_one_process_gives(small_cascade, tmp_path: Path) -> None:
    """The same records in the same order, however many cases are evaluated at once."""
    start_server()
    items = []
    for seed in (2_000_000, 2_000_001):
        phantom = generate_phantom(seed, shape=(64, 64, 64), spacing=5.6)
        files = {"label": tmp_path / f"{seed}.nii.gz", "valid": tmp_path / f"{seed}_valid.nii.gz"}
        save_nifti(phantom.hu.astype(np.int16), phantom.affine, files["label"])
        save_nifti(np.ones(phantom.hu.shape, np.uint8), phantom.affine, files["valid"])
        items.append({**files, "case": str(seed), "patient": str(seed)})
    networks = {1: small_cascade(stage=1).eval()}
    settings = {"geometry": SMALL["geometry"], "pictures": False, "baselines": False}
    reports = [EvaluationReport(tmp_path / str(jobs), **settings) for jobs in (1, 2)]
    for jobs, report in enumerate(reports, start=1):
        results_evaluation.evaluate(items, networks, report, jobs=jobs)
    for one, other in zip(reports[0].cases, reports[1].cases, strict=True):
        assert one["case"] == other["case"]
        for method, scores in one["scores"].items():
            assert other["scores"][method] == pytest.approx(scores, rel=1e-3, nan_ok=True)  # threads sum differently


def test_evaluation_refuses_to_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither phantoms nor patients, no weights, or no jobs: one line, exit 2, no file."""
    for arguments in (["--phantoms", "0"], ["--models", str(tmp_path / "none")], ["--jobs", "0"]):
        assert results_evaluation.main([*arguments, "--output", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("patients", [("phantom_2000000", "phantom_2000001"), ("LIDC-1", "TCGA-2"), ("LIDC-1",)])
def test_table_says_who_how_and_with_which_weights(table: str, patients: tuple[str, ...]) -> None:
    """Patients, protocol, interval and hashes stand in the caption; every row has as many cells as the head."""
    report = _report(*patients)
    caption, _, body = "\n".join(TABLES[table](report)).partition("\n\n")
    words = " ".join(caption.split())
    assert (
        "seeds 2000000 to 2000001" in words if len(patients) == 2 and "phantom" in patients[0] else patients[0] in words
    )
    assert "Protocol `native`" in words or "protocols of the papers" in words
    assert "95 % bootstrap interval" in words
    assert all(weights["sha256"][:12] in words for weights in report["checkpoints"].values())
    assert len({line.count("|") for line in body.splitlines()}) == 1 and body.count("\n") >= 3
    assert max(map(len, caption.splitlines())) <= 120


def test_main_table_prints_the_evaluations_numbers() -> None:
    """Mean and interval of each method, rounded and otherwise as they are."""
    report = _report("phantom_1", "phantom_2", "phantom_3")
    score = report["summary"]["stage_2"]["native_psnr_3d_db"]
    (row,) = [line for line in TABLES["main"](report) if "stage 2" in line and line.startswith("|")]
    assert f"{score['mean']:.2f} [{score['ci95'][0]:.2f}, {score['ci95'][1]:.2f}]" in row


def test_gains_table_prints_paired_differences() -> None:
    """Stages that differ by 1 on every patient differ by 1 with certainty; the best baseline is the last here."""
    rows = TABLES["gains"](_report("phantom_1", "phantom_2", "phantom_3"))
    gain = "| +1.00 [+1.00, +1.00] | +1.0000 [+1.0000, +1.0000] | +1.0 [+1.0, +1.0] |"
    assert f"| cascade, stage 3 (256³) − cascade, stage 2 (128³) {gain}" in rows
    assert any(row.startswith("| cascade, stage 3 (256³) − least squares | +3.00") for row in rows)


def test_hopes_table_has_each_stage_on_its_own_grid() -> None:
    """What is hoped for in print stands beside what was measured at 64³, 128³ and 256³."""
    report = _report("phantom_1", "phantom_2")
    rows = [row for row in TABLES["hopes"](report) if row.startswith(("| 1", "| 2", "| 3"))]
    for row, method, hope in zip(rows, ("stage_1_at_64", "stage_2_at_128", "stage_3"), HOPES, strict=True):
        assert hope in row and f"{report['summary'][method]['native_psnr_3d_db']['mean']:.2f} [" in row


def test_papers_table_says_why_its_numbers_do_not_compare() -> None:
    """The x2ct protocol never stands without its warning."""
    text = " ".join(TABLES["papers"](_report("LIDC-1", "TCGA-2")))
    assert "may not be compared" in text and "4.29 dB" in text and "4095" in text


def test_fill_replaces_what_stands_between_the_markers() -> None:
    """Only there; a second time nothing changes; tables without an evaluation stay."""
    text = _document("phantoms main", "patients each")
    filled, written = fill(text, {"phantoms": _report("phantom_1", "phantom_2")})
    assert written == ["phantoms main"]
    assert filled.startswith("# Title\n") and filled.endswith("\n\nafter\n")
    assert filled.count("old") == 1 and "old" in filled.split("patients each")[1]
    assert fill(filled, {"phantoms": _report("phantom_1", "phantom_2")})[0] == filled
    assert fill(text, {}) == (text, [])


def test_fill_refuses_markers_it_does_not_know() -> None:
    """An unknown evaluation or table, a block without an end, an evaluation without the table's numbers."""
    for name in ("phantoms mian", "patient main", ""):
        with pytest.raises(UserError, match="a marker must name one of phantoms main, "):
            fill(_document(name), {})
    with pytest.raises(UserError, match="must be closed"):
        fill("<!-- results: phantoms main -->\n", {})
    report = _report("phantom_1")
    del report["summary"]["stage_3"]
    with pytest.raises(UserError, match="lacks 'stage_3' for the table 'phantoms tissues'"):
        fill(_document("phantoms tissues"), {"phantoms": report})


def test_script_writes_and_checks(tmp_path: Path) -> None:
    """`--check` tells an outdated document by its exit code and leaves it; without it the tables are written."""
    save_json(_report("LIDC-1", "TCGA-2"), tmp_path / "evaluation_patients_metrics.json")
    document = tmp_path / "README.md"
    document.write_text(_document("patients main", "phantoms main"), encoding="utf-8")
    arguments = ["--results", str(tmp_path), "--documents", str(document)]
    assert results_tables.main([*arguments, "--check"]) == 1
    assert document.read_text(encoding="utf-8") == _document("patients main", "phantoms main")
    assert results_tables.main(arguments) == 0
    assert "held out for testing (LIDC-1, TCGA-2)" in document.read_text(encoding="utf-8")
    assert results_tables.main([*arguments, "--check"]) == 0


def test_an_unfinished_evaluation_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its summary an evaluation is still running: its tables stay as they are."""
    report = _report("LIDC-1", "TCGA-2")
    del report["summary"]
    save_json(report, tmp_path / "evaluation_patients_metrics.json")
    document = tmp_path / "README.md"
    document.write_text(_document("patients main"), encoding="utf-8")
    assert results_tables.main(["--results", str(tmp_path), "--documents", str(document)]) == 0
    assert document.read_text(encoding="utf-8") == _document("patients main")
    assert "no evaluation yet" in capsys.readouterr().out


def test_published_tables_are_those_of_the_evaluations() -> None:
    """README and model card print what benchmarks/results holds, wherever it holds an evaluation."""
    assert results_tables.main(["--check"]) == 0
