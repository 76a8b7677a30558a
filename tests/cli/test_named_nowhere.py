# SPDX-License-Identifier: Apache-2.0
"""No command that takes a patient's files says whose they are: not in a file, not in a name, not on the screen."""

from __future__ import annotations

import json
import os
import re
import stat
from importlib import import_module
from pathlib import Path

import pytest
from pydicom import dcmread

from progressive_cascade.cli import build_parser, main
from tests.support.cube import place_coarsely
from tests.support.planted import IN_A_STUDY, PERSON, found

WITHOUT_PATIENTS = ("check", "demo", "phantom", "export", "calibrate")
"""Commands that read no patient's file, or what `prepare` wrote alone, where patients go by hashes."""
ELSEWHERE = {
    "prepare": "tests.ct.test_pseudonyms",
    "train": "tests.training.test_tracking",
    "serve": "tests.cli.test_services_name_nobody",
    "watch": "tests.cli.test_services_name_nobody",
    "listen": "tests.cli.test_services_name_nobody",
}
"""Commands that other files look at, and which."""


def _run(out: Path, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return found(out, captured.out + captured.err)


def test_every_command_is_looked_at() -> None:
    """A new command is either run by a test that looks for the planted words, or reads no patient's file."""
    subparsers = next(action for action in build_parser()._actions if isinstance(action.choices, dict))
    here = [name for name in subparsers.choices if name not in (*WITHOUT_PATIENTS, *ELSEWHERE)]
    for command, module in {**dict.fromkeys(here, __name__), **ELSEWHERE}.items():
        source = Path(import_module(module).__file__ or "").read_text(encoding="utf-8")
        assert re.search(rf"[(\[ ]\"{command}\", ", source), f"{command} must be run by a test of {module}"


def test_no_command_names_the_patient(
    person: Path,
    cascade: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Single pairs with page, sigma's sidecar and DICOM, folders, simulated X-rays, reports, comparisons."""
    place_coarsely(monkeypatch)
    out = tmp_path / "out"
    pair = ("--pa", person / "dx" / f"{PERSON}_1.dcm", "--lateral", person / "dx" / f"{PERSON}_2.dcm")
    dicom = ("--dicom-output", out / "one" / "series")
    assert _run(out, capsys, "reconstruct", *pair, "--output", out / "one" / "ct.nii.gz", *dicom) == []
    assert _run(out, capsys, "report", out / "one" / "ct.nii.gz") == []
    assert _run(out, capsys, "reconstruct", "--input", person / "dx", "--output", out / "many") == []
    assert len(list((out / "many").glob("case_*.nii.gz"))) == 2, "the CT and its radiographs"
    assert _run(out, capsys, "simulate", person / "ct", "--output", out / "xrays") == []
    compared = ("--align", "--output", out / "scores.json", "--picture", out / "borders.png")
    assert _run(out, capsys, "compare", person / "ct", person / "ct", *compared) == []


def test_an_evaluation_does_not_name_the_patient(
    person: Path, cascade: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CTs as they come go by a hash; what is wrong with one is said without its place. (`prepare`: test_pseudonyms.)"""
    place_coarsely(monkeypatch)
    source, out = tmp_path / "in" / PERSON, tmp_path / "out"
    for name, size in (("ct", None), ("cut", -100)):
        (source / name).mkdir(parents=True)
        for path in (person / "ct").glob("*.dcm"):
            dataset = dcmread(path)
            dataset.SeriesInstanceUID = dataset.SeriesInstanceUID[:60] + ("" if size is None else ".1")
            dataset.save_as(source / name / path.name)
            if size is not None:
                (source / name / path.name).write_bytes((source / name / path.name).read_bytes()[:size])
    arguments = ("evaluate", "--no-baselines", "--save-nifti", "--output", out, "--cts", source)
    assert _run(out, capsys, *arguments) == []
    assert len(list(out.glob("*.nii.gz"))) == 1, "the series that is whole"


def test_a_folder_that_fails_does_not_name_the_patient(
    person: Path, cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged file and a missing view: summary and screen say what is wrong with which view, not where it lies."""
    source = tmp_path / PERSON
    source.mkdir()
    for name in ("1.dcm", "2.dcm"):
        content = (person / "dx" / f"{PERSON}_{name}").read_bytes()
        (source / name).write_bytes(content[: len(content) // 2] if name == "2.dcm" else content)
    assert _run(tmp_path / "out", capsys, "reconstruct", "--input", source, "--output", tmp_path / "out", code=2) == []
    assert "lateral of case_" in (tmp_path / "out" / "summary.csv").read_text()
    (source / "2.dcm").unlink()
    out = tmp_path / "lone"
    assert _run(out, capsys, "reconstruct", "--input", source, "--output", out, code=2) == []
    assert "must have a lateral beside it" in (out / "summary.csv").read_text()


def test_names_are_there_when_they_are_asked_for(
    person: Path, cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test above can fail: --keep-names and --keep-identity name the patient, a key leads back."""
    study = IN_A_STUDY["StudyInstanceUID"]
    folder = ("reconstruct", "--input", person / "dx", "--no-report", "--output")
    named = _run(tmp_path / "kept", capsys, *folder, tmp_path / "kept", "--keep-names")
    assert f"{study} in summary.csv" in named
    key = tmp_path / "key.json"
    for name in ("first", "again"):
        assert _run(tmp_path / name, capsys, *folder, tmp_path / name, "--key", key) == []
    values = json.loads(key.read_text())
    (case,) = values["patients"]
    assert values["patients"] == {case: study} and (tmp_path / "again" / f"{case}.nii.gz").is_file()
    assert os.name == "nt" or stat.S_IMODE(key.stat().st_mode) == 0o600
    pair = (
        "--pa",
        person / "dx" / f"{PERSON}_1.dcm",
        "--lateral",
        person / "dx" / f"{PERSON}_2.dcm",
        "--output",
        tmp_path / "ct.nii.gz",
    )
    series = tmp_path / "series"
    named = _run(series, capsys, "reconstruct", *pair, "--no-report", "--dicom-output", series, "--keep-identity")
    assert {"Zwetschkenbaum in IM0001.dcm", f"{study} in IM0001.dcm"} <= set(named)
