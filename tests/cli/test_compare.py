# SPDX-License-Identifier: Apache-2.0
"""Laws of `compare`: two files in, scores out, on the screen and in a file."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from progressive_cascade.cli import main
from progressive_cascade.export.dicom import write_dicom_series
from progressive_cascade.export.dicom_objects import write_dicom_multiframe
from progressive_cascade.io import save_nifti
from progressive_cascade.phantom import generate_phantom
from tests.support.cube import place_coarsely

SPACING = 5.6


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CT and a reconstruction 100 HU too dense, 20 mm aside and half a metre away, in the working folder."""
    monkeypatch.chdir(tmp_path)
    place_coarsely(monkeypatch, 64)
    phantom = generate_phantom(2_000_003, shape=(64, 64, 64), spacing=SPACING)
    save_nifti(phantom.hu, phantom.affine, "ct.nii.gz")
    for name, by in (("dense", 0.0), ("away", 500.0)):
        affine = phantom.affine.copy()
        affine[2, 3] += by
        save_nifti((phantom.hu + 100).astype(np.int16), affine, f"{name}.nii.gz")
    return tmp_path


def test_scores_are_printed_and_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A volume 100 HU too dense has an error of 100 HU, under the protocol's name, on the screen and in the file."""
    arguments = ["compare", "dense.nii.gz", "ct.nii.gz", "--protocol", "native", "xmed"]
    assert main([*arguments, "--output", "scores.json", "--picture", "borders.png"]) == 0
    said = capsys.readouterr().out
    assert "100 % of the CT's body lies in the reconstruction" in said
    assert "right lung [ml]" in said and "xmed_psnr" in said and "aligned" not in said
    report = json.loads((here / "scores.json").read_text())
    assert report["scores"]["native_bias_hu"] == pytest.approx(100, abs=1)
    printed = f"{report['scores']['native_mae_hu']:.2f}"
    assert any(line.split() == ["native_mae_hu", printed] for line in said.splitlines())
    assert report["similarity"] is None and report["aligned_scores"] is None
    assert imread(here / "borders.png").shape[1] > 500


def test_what_does_not_know_its_place_is_aligned(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a metre away it is refused, with what to do; with --align it is scored, and where it lay is said."""
    assert main(["compare", "away.nii.gz", "ct.nii.gz", "--output", "scores.json"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "away.nii.gz" in line and "ct.nii.gz" in line and "0 % of the CT's body" in line and "align" in line
    assert not (here / "scores.json").exists()
    assert main(["compare", "away.nii.gz", "ct.nii.gz", "--align", "--output", "scores.json"]) == 0
    said = capsys.readouterr().out
    assert "their middles were laid on each other" in said and "as it lies" not in said
    report = json.loads((here / "scores.json").read_text())
    assert report["scores"] is None and report["aligned_scores"]["native_bias_hu"] == pytest.approx(100, abs=10)
    assert report["similarity"]["scale"] == pytest.approx(1, abs=0.03)


def test_columns_line_up_in_a_narrow_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of both tables, within 80 letters."""
    arguments = ["compare", "dense.nii.gz", "ct.nii.gz", "--align", "--protocol", "native", "x2ct", "perx2ct", "xmed"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if line.endswith("  aligned")]
    assert len(heads) == 2 and len({line.index("as it lies") for line in heads}) == 1
    assert {len(line) for line in lines[lines.index(heads[0]) :] if line} == {len(heads[0])}
    assert max(map(len, lines)) < 80


def test_a_dicom_series_is_scored_as_the_file(here: Path) -> None:
    """What `reconstruct --dicom-output` writes, as slices and as one file."""
    image = nib.load("dense.nii.gz")
    hu = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    write_dicom_series(hu, image.affine, "slices")  # type: ignore[attr-defined]
    write_dicom_multiframe(hu, image.affine, "frames/ct.dcm")  # type: ignore[attr-defined]
    for name in ("slices", "frames"):
        assert main(["compare", name, "ct.nii.gz", "--output", f"{name}.json"]) == 0
        scores = json.loads((here / f"{name}.json").read_text())["scores"]
        assert scores["native_bias_hu"] == pytest.approx(100, abs=1) and scores["native_mae_hu"] < 101


def test_a_scanners_table_is_removed_on_request(here: Path) -> None:
    """A scan against itself is the same but for what lies around the body; voxels without a place are taken as told."""
    image = nib.load("ct.nii.gz")
    hu = np.array(image.dataobj)  # type: ignore[attr-defined]
    hu[8:56, 4:6] = np.where(hu[8:56, 4:6] < -500, 300, hu[8:56, 4:6])
    save_nifti(hu, image.affine, "table.nii.gz")  # type: ignore[attr-defined]
    scores = []
    for more in ([], ["--remove-table"]):
        assert main(["compare", "table.nii.gz", "ct.nii.gz", "--output", "s.json", "--overwrite", *more]) == 0
        scores.append(json.loads((here / "s.json").read_text())["scores"]["native_mae_hu"])
    assert scores[0] > 20 > 5 > scores[1]


def test_what_a_file_does_not_say_is_assumed_as_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reconstruction without a place takes --assume-spacing, and it is said."""
    image = nib.load("dense.nii.gz")
    bare = nib.Nifti1Image(np.asarray(image.dataobj), None)  # type: ignore[attr-defined]
    bare.header["qform_code"] = bare.header["sform_code"] = 0
    nib.save(bare, "bare.nii.gz")
    assert main(["compare", "bare.nii.gz", "ct.nii.gz", "--align"]) == 2
    assert "bare.nii.gz must say where its voxels are" in capsys.readouterr().err
    assert main(["compare", "bare.nii.gz", "ct.nii.gz", "--align", "--assume-spacing", str(SPACING)]) == 0
    assert "note: reconstruction: the header names no place" in capsys.readouterr().out


def test_files_are_written_together_or_not(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the picture cannot be written the scores are not either."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "borders.png")

    before = sorted(here.iterdir())
    monkeypatch.setattr("progressive_cascade.report.borders_figure", fail)
    assert main(["compare", "dense.nii.gz", "ct.nii.gz", "--output", "s.json", "--picture", "borders.png"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "borders.png" in line and sorted(here.iterdir()) == before


def test_what_is_not_in_hu_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Grey levels, a mask and values without their offset would be scored as if they were HU."""
    image = nib.load("ct.nii.gz")
    hu = np.asarray(image.dataobj).clip(-1000, 3000)  # type: ignore[attr-defined]
    wrong = {"grey": (hu + 1000) / 4000 * 255, "mask": hu > -500, "offset": hu + 1024}
    for name, values in wrong.items():
        save_nifti(values.astype(np.int16), image.affine, f"{name}.nii.gz")  # type: ignore[attr-defined]
        assert main(["compare", f"{name}.nii.gz", "ct.nii.gz", "--align", "--output", "s.json"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{name}.nii.gz" in line and "must be in HU" in line and not (here / "s.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.nii.gz", "ct.nii.gz"], "no.nii.gz"),
        (["dense.nii.gz", "no.nii.gz"], "no.nii.gz"),
        (["dense.nii.gz", "ct.nii.gz", "--output", "scores.txt"], "--output"),
        (["dense.nii.gz", "ct.nii.gz", "--picture", "borders.gif"], "--picture"),
        (["dense.nii.gz", "ct.nii.gz", "--protocol", "sparc"], "--protocol"),
    ],
)
def test_bad_input_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """Which names the file or the option."""
    assert main(["compare", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
