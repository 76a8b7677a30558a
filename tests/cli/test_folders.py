# SPDX-License-Identifier: Apache-2.0
"""Laws of `reconstruct --input`: one failure does not stop the rest, what is done is not done twice."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import progressive_cascade.inference.reconstruct as inference
from progressive_cascade.cli import main
from tests.support.radiographs import grey, phantom_pair

NUM_PAIRS, BROKEN = 20, ("case03", "case11")


def write_pairs(folder: Path) -> None:
    """Twenty pairs of PNG, of which one has no lateral and one is text."""
    views = [grey(view, 255).astype(np.uint8) for view in phantom_pair()]
    folder.mkdir()
    for index in range(NUM_PAIRS):
        for name, view in zip(("pa", "lat"), views, strict=True):
            Image.fromarray(view).save(folder / f"case{index:02d}_{name}.png")
    (folder / "case03_lat.png").unlink()
    (folder / "case11_pa.png").write_text("no picture")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The twenty pairs."""
    write_pairs(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def made(cascade: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which reconstructions were made, counted; figures are left out, being slow."""
    calls: list[int] = []
    stand_in = inference.reconstruct

    def counted(*arguments, **keywords):
        calls.append(len(calls))
        return stand_in(*arguments, **keywords)

    monkeypatch.setattr("progressive_cascade.inference.reconstruct.reconstruct", counted)
    monkeypatch.setattr("progressive_cascade.report.volume_figure", lambda hu, spacing, path, **_: path.touch())
    return calls


def _rows(output: Path) -> list[dict[str, str]]:
    with open(output / "summary.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_folder_goes_on_after_failures_and_interruptions(
    folder: Path, made: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty pairs, two broken, interrupted in the middle and started again: 18 volumes, 2 lines, nothing twice."""
    command = ["reconstruct", "--input", str(folder), "--output", str(tmp_path / "out"), "--no-report"]
    counted = inference.reconstruct

    def interrupted(*arguments, **keywords):
        if len(made) == 8:
            raise KeyboardInterrupt
        return counted(*arguments, **keywords)

    monkeypatch.setattr("progressive_cascade.inference.reconstruct.reconstruct", interrupted)
    assert main(command) == 130
    assert len(_rows(tmp_path / "out")) == 9, "eight done, one failed"
    # As if the process had died between two of a pair's files.
    (tmp_path / "out" / "case00.json").unlink()
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.reconstruct", counted)
    assert main(command) == 2
    assert len(made) == 18 + 1
    rows = _rows(tmp_path / "out")
    assert [row["case"] for row in rows] == [f"case{index:02d}" for index in range(NUM_PAIRS)]
    failed = {row["case"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert tuple(failed) == BROKEN
    assert "must have a lateral beside it" in failed["case03"] and "case11_pa.png" in failed["case11"]
    volumes = {path.name for path in (tmp_path / "out").glob("case*.nii.gz")} - {
        path.name for path in (tmp_path / "out").glob("*.radiographs.nii.gz")
    }
    assert len(volumes) == 18 and not {f"{name}.nii.gz" for name in BROKEN} & volumes
    assert "2 failed" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert {row["intensities"] for row in rows if row["status"] == "done"} == {"display"}


def test_folder_with_a_table_takes_its_pairs_alone(folder: Path, made: list[int], tmp_path: Path) -> None:
    """A CSV chooses and names the cases; with --overwrite they are made again."""
    (tmp_path / "pairs.csv").write_text("case,pa,lateral\none,case00_pa.png,case00_lat.png\n")
    command = ["reconstruct", "--input", str(folder), "--output", str(tmp_path / "out"), "--no-report"]
    command += ["--pairs", str(tmp_path / "pairs.csv")]
    assert main(command) == 0 == main(command)
    assert len(made) == 1 and (tmp_path / "out" / "one.nii.gz").is_file()
    assert main([*command, "--overwrite"]) == 0
    assert len(made) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--pa", "a.png"), "--input must come without"),
        ((), "must hold pairs"),
        (("--output", "IN/out"), "must lie outside"),
    ],
)
def test_folder_that_cannot_be_is_refused(
    cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    """One line, exit code 2."""
    (tmp_path / "in").mkdir()
    output = ["--output", str(tmp_path / "out")]
    given = [part.replace("IN", str(tmp_path / "in")) for part in more]
    assert main(["reconstruct", "--input", str(tmp_path / "in"), *output, *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
