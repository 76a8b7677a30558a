# SPDX-License-Identifier: Apache-2.0
"""No command that takes a patient's files says whose they are: not in a file, not in a name, not on the screen."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from progressive_cascade.cli import main
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.cases import RawCases, raw_items
from tests.ct.test_prepare import _write_dicom
from tests.support import planted
from tests.support.cube import place_coarsely
from tests.support.radiographs import phantom_pair, save_dx
from tests.support.trunk import trunk_hu

PERSON = "Zwetschkenbaum_Adalbert_ZB-4711-0815"
PLANTED = {**planted.PLANTED, "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4711"}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's folder, which has his name: two radiographs and a CT, each named in every way."""
    folder = tmp_path_factory.mktemp("in") / PERSON
    (folder / "dx").mkdir(parents=True)
    frontal, lateral = phantom_pair()
    save_dx(frontal, folder / "dx" / f"{PERSON}_1.dcm", **PLANTED)
    save_dx(lateral, folder / "dx" / f"{PERSON}_2.dcm", ViewPosition="LL", PatientOrientation=["P", "F"], **PLANTED)
    _write_dicom(folder / "ct", trunk_hu((40, 30, 24)).round(), patient=PLANTED["PatientID"])
    planted.plant(folder / "ct", PLANTED)
    return folder


def _found(folder: Path, said: str) -> list[str]:
    """The planted words that stand in names or bytes below a folder, or in what was printed, each with its place."""
    texts = {"the screen": said}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        texts[f"the name {name}"] = name
        if path.is_file():
            texts[name] = planted.text_of(path)
    texts = {place: text.lower() for place, text in texts.items()}
    words = [PERSON, *(part for value in PLANTED.values() for part in value.split("^"))]
    return [f"{word} in {place}" for word in words for place, text in texts.items() if word.lower() in text]


def _run(out: Path, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return _found(out, captured.out + captured.err)


def test_no_command_names_the_patient(
    person: Path,
    cascade: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Single pairs with page, sigma's sidecar and DICOM, folders, simulated X-rays, reports."""
    place_coarsely(monkeypatch)
    out = tmp_path / "out"
    pair = ("--pa", person / "dx" / f"{PERSON}_1.dcm", "--lateral", person / "dx" / f"{PERSON}_2.dcm")
    dicom = ("--dicom-output", out / "one" / "series")
    assert _run(out, capsys, "reconstruct", *pair, "--output", out / "one" / "ct.nii.gz", *dicom) == []
    assert _run(out, capsys, "report", out / "one" / "ct.nii.gz") == []
    assert _run(out, capsys, "reconstruct", "--input", person / "dx", "--output", out / "many") == []
    assert len(list((out / "many").glob("case_*.nii.gz"))) == 2, "the CT and its radiographs"
    assert _run(out, capsys, "simulate", person / "ct", "--output", out / "xrays") == []


def test_an_evaluation_does_not_name_the_patient(person: Path, tmp_path: Path) -> None:
    """CTs as they come go by a hash; what is wrong with one is said without its place. (`prepare`: test_pseudonyms.)"""
    (item,) = raw_items(person / "ct")
    assert _found(tmp_path, f"{item['case']} {item['patient']}") == []
    for path in (person / "ct").glob("*.dcm"):
        (tmp_path / "ct" / PERSON).mkdir(parents=True, exist_ok=True)
        (tmp_path / "ct" / PERSON / path.name).write_bytes(path.read_bytes()[:-100])
    try:
        (item,) = raw_items(tmp_path / "ct")
        RawCases().load(item)
    except UserError as error:
        assert _found(tmp_path / "none", str(error)) == []
    else:
        pytest.fail("a series cut short must not be taken")


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
    study = PLANTED["StudyInstanceUID"]
    folder = ("reconstruct", "--input", person / "dx", "--no-report", "--output")
    found = _run(tmp_path / "kept", capsys, *folder, tmp_path / "kept", "--keep-names")
    assert f"{study} in summary.csv" in found
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
    found = _run(series, capsys, "reconstruct", *pair, "--no-report", "--dicom-output", series, "--keep-identity")
    assert {"Zwetschkenbaum in IM0001.dcm", f"{study} in IM0001.dcm"} <= set(found)
