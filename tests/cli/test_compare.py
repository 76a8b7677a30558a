# SPDX-License-Identifier: Apache-2.0
"""Laws of `compare`: two files in, scores out, on the screen and in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from progressive_cascade.cli import main
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
