# SPDX-License-Identifier: Apache-2.0
"""Nothing that a command writes or prints names the patient of a DICOM file, unless it was asked to."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from progressive_cascade.cli import main
from progressive_cascade.ct.pseudonyms import read_key, save_key
from progressive_cascade.errors import UserError
from tests.ct.test_prepare import _write_dicom
from tests.support.planted import PLANTED, plant, text_of
from tests.support.trunk import trunk_hu

pytestmark = pytest.mark.usefixtures("small_cube")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients' series, one of them named in every way, and a localizer of his that is left out."""
    pytest.importorskip("SimpleITK")
    folder = tmp_path_factory.mktemp("archive")
    person = folder / "Zwetschkenbaum_ZB-4711-0815"
    _write_dicom(person / "chest", trunk_hu((40, 30, 24)).round(), patient=PLANTED["PatientID"])
    _write_dicom(person / "brain", trunk_hu((24, 20, 4)), patient=PLANTED["PatientID"], modality="MR")
    _write_dicom(folder / "other", trunk_hu((40, 30, 26)).round() + 1, patient="another")
    plant(person)
    return folder


def _said(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Every name, every byte of every file of a folder, unpacked, and what was printed."""
    texts = [*capsys.readouterr()]
    for path in folder.rglob("*"):
        texts.append(str(path.relative_to(folder)))
        if path.is_file():
            texts.append(text_of(path))
    return "\n".join(texts)


def _names(text: str) -> list[str]:
    parts = [part for value in PLANTED.values() for part in value.split("^")]
    return [part for part in parts if part in text]


def test_a_dataset_names_no_patient(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither files nor lists nor the screen do; a patient is told from another, and named by --key alone."""
    key, output = tmp_path / "key.json", tmp_path / "dataset"
    arguments = ["prepare", str(archive), "--output", str(output), "--key", str(key)]
    assert main([*arguments, "--test", "another"]) == 0
    assert _names(_said(output, capsys)) == []
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(read_key(key).patients.values()) == sorted([PLANTED["PatientID"], "another"])
    datalist = json.loads((output / "datalist.json").read_text())
    patients = {item["patient"] for name in ("training", "validation", "test") for item in datalist[name]}
    assert patients == set(read_key(key).patients)
    # Who is held out was named by PatientID.
    assert [read_key(key).patients[item["patient"]] for item in datalist["test"]] == ["another"]


def test_names_are_kept_where_they_are_asked_for(archive: Path, tmp_path: Path) -> None:
    """`--keep-names` calls cases by PatientID, and lists where they lay."""
    person = archive / "Zwetschkenbaum_ZB-4711-0815" / "chest"
    assert main(["prepare", str(person), "--output", str(tmp_path / "dataset"), "--keep-names"]) == 0
    manifest = (tmp_path / "dataset" / "manifest.csv").read_text()
    assert PLANTED["PatientID"] in manifest and str(person) in manifest


def test_a_key_comes_back_as_it_was_and_nothing_else_is_one(tmp_path: Path) -> None:
    """The same salt gives the same names; a file that is no key is refused."""
    path = tmp_path / "key.json"
    path.write_text('{"salt": "' + "0f" * 32 + '", "patients": {"p1": "one"}}')
    key = read_key(path)
    save_key(key, path)
    assert read_key(path) == key and key.name("one") != key.name("two")
    for text in ("[]", '{"salt": "x", "patients": {}}', '{"salt": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"key\.json must hold a salt and patients"):
            read_key(path)
