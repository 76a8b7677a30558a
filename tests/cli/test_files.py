# SPDX-License-Identifier: Apache-2.0
"""Nothing of the user's is lost: no command writes over an input, into one, or over what exists."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade.cli import build_parser, main
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_json, save_nifti
from progressive_cascade.paths import check_files

PAIR = ("reconstruct", "--pa", "in/pa.nii.gz", "--lateral", "in/lateral.nii.gz")
INTO_AN_INPUT = {
    "an output named like an input": (*PAIR, "--output", "in/pa.nii.gz"),
    "through a symbolic link": (*PAIR, "--output", "soft.nii.gz"),
    "through a hard link": (*PAIR, "--output", "hard.nii.gz"),
    "through a linked folder": (*PAIR, "--output", "linked/pa.nii.gz"),
    "by a roundabout path": (*PAIR, "--output", "in/../in/lateral.nii.gz"),
    "sigma over an input": (*PAIR, "--output", "ct.nii.gz", "--uncertainty", "in/pa.nii.gz"),
    "the sidecar over the geometry": (*PAIR, "--geometry", "in/ct.json", "--output", "in/ct.nii.gz"),
    "X-rays over the CT": ("simulate", "in/pa.nii.gz", "--output", "in"),
    "X-rays over their geometry": ("simulate", "in/ct.nii", "--geometry", "in/geometry.json", "--output", "in"),
    "X-rays into the series": ("simulate", "in", "--output", "in/xrays"),
    "a dataset over its archive": ("prepare", "in", "--output", "in"),
    "a dataset inside its archive": ("prepare", "in", "--output", "linked/deep/dataset"),
    "an archive inside the dataset": ("prepare", "in/ct", "--output", "in"),
    "training inside the dataset": ("train", "--dataset", "in", "--output", "in/runs"),
    "evaluation inside its CTs": ("evaluate", "--cts", "archive", "--output", "archive/evaluation"),
    "evaluation inside the dataset": ("evaluate", "--dataset", "in", "--output", "in/evaluation"),
    "a calibration inside the dataset": ("calibrate", "--dataset", "in", "--output", "in/trust.json"),
    "an export inside the weights": ("export", "--models", "in", "--output", "in/zoo"),
    "a page over the CT it shows": ("report", "in/ct.nii", "--output", "soft.html"),
    "scores over what they compare": ("compare", "in/pa.nii.gz", "in/ct.nii", "--output", "hard.json"),
    "two outputs in one place": ("phantom", "--seed", "1", "--output", "new.nii.gz", "--labels", "./new.nii.gz"),
}
OVER_A_FILE = {
    "calibrate": ("calibrate", "--dataset", "archive", "--output", "in/geometry.json"),
    "compare": ("compare", "in/pa.nii.gz", "in/ct.nii", "--output", "in/geometry.json"),
    "demo": ("demo", "--output", "in"),
    "evaluate": ("evaluate", "--phantoms", "1", "--output", "in"),
    "phantom": ("phantom", "--seed", "1", "--output", "in/pa.nii.gz"),
    "prepare": ("prepare", "archive", "--output", "in"),
    "reconstruct": (*PAIR, "--output", "other/ct.nii.gz"),
    "report": ("report", "in/ct.nii", "--output", "other/page.html"),
    "simulate": ("simulate", "archive/a.nii.gz", "--output", "in"),
    "train": ("train", "--stages", "1", "--output", "in"),
}
NEVER_REPLACES = {"check": "writes nothing", "export": "takes a new or empty folder alone, with or without an option"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with inputs of every command, and links to them, as the working folder."""
    monkeypatch.chdir(tmp_path)
    volume = np.zeros((4, 4, 4), np.int16)
    for name in ("in/pa", "in/lateral", "in/ct/a", "in/valid/a", "archive/a", "other/ct"):
        save_nifti(volume, np.eye(4), f"{name}.nii.gz")
    save_nifti(volume, np.eye(4), "in/ct.nii")
    item = {"label": "ct/a.nii.gz", "valid": "valid/a.nii.gz"}
    sections = {name: [{**item, "patient": name}] for name in ("training", "validation", "test")}
    save_json(sections, "in/datalist.json")
    for name in ("in/ct.json", "in/geometry.json"):
        save_json(
            {
                "source_to_isocenter": 1500.0,
                "source_to_detector": 1800.0,
                "detector_shape": [512, 512],
                "pixel_spacing": [0.84, 0.84],
                "views": ["pa", "left_lateral"],
                "isocenter": [0.0, 0.0, 0.0],
            },
            name,
        )
    for name in ("in/models/stage1_best.pt", "in/truth.nii.gz", "in/evaluation_metrics.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("the user's")
    Path("other/page.html").write_text("the user's")
    os.symlink("in/pa.nii.gz", "soft.nii.gz")
    os.symlink("in/ct.nii", "soft.html")
    os.link("in/pa.nii.gz", "hard.nii.gz")
    os.link("in/ct.nii", "hard.json")
    os.symlink("in", "linked")
    return tmp_path


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _refusal(arguments: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must refuse in one line and leave every file as it was."""
    before = _content(here)
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert _content(here) == before
    return line


@pytest.mark.parametrize("way", INTO_AN_INPUT)
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_output_is_or_lies_inside_an_input(
    way: str, overwrite: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before any work, with --overwrite too, and every file stays as it was."""
    arguments = INTO_AN_INPUT[way]
    more = ("--overwrite",) if overwrite and arguments[0] != "export" else ()
    line = _refusal((*arguments, *more), here, capsys)
    assert any(words in line for words in ("must be another file", "must lie outside of", "must not hold"))


@pytest.mark.parametrize("command", OVER_A_FILE)
def test_no_command_replaces_a_file_unasked(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the file and the way out, and every file stays as it was."""
    line = _refusal(OVER_A_FILE[command], here, capsys)
    assert "exists" in line
    assert "--overwrite" in line


def test_every_command_that_writes_is_tested_here() -> None:
    """A new command must be among the cases above, and must have --overwrite, or replace nothing ever."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    writing = {
        name: {option for action in parser._actions for option in action.option_strings}
        for name, parser in commands.choices.items()
        if any(option.startswith("--output") for action in parser._actions for option in action.option_strings)
    }
    assert set(writing) - set(NEVER_REPLACES) == set(OVER_A_FILE)
    assert all("--overwrite" in options for name, options in writing.items() if name not in NEVER_REPLACES)
    assert {arguments[0] for arguments in INTO_AN_INPUT.values()} >= {"export", *OVER_A_FILE} - {"demo"}


def test_overwrite_replaces_and_a_run_that_goes_on_is_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --overwrite the file is new; `train --resume` needs no --overwrite to go on."""
    assert main(["phantom", "--seed", "1", "--size", "8", "--output", "other/ct.nii.gz"]) == 2
    before = Path("other/ct.nii.gz").read_bytes()
    assert main(["phantom", "--seed", "1", "--size", "8", "--output", "other/ct.nii.gz", "--overwrite"]) == 0
    assert Path("other/ct.nii.gz").read_bytes() != before
    capsys.readouterr()
    assert main(["train", "--stages", "1", "--output", "in", "--resume"]) == 2
    assert "resume must find" in capsys.readouterr().err


def test_names_that_differ_in_case_are_told_apart_by_the_disk(tmp_path: Path) -> None:
    """Where a disk takes both names for one file, so do we; where it does not, they are two files."""
    (tmp_path / "pa.nii.gz").touch()
    upper = tmp_path / "PA.nii.gz"
    if upper.exists():
        with pytest.raises(UserError, match="another file"):
            check_files(reads={"--pa": tmp_path / "pa.nii.gz"}, writes={"--output": [upper]})
    else:
        check_files(reads={"--pa": tmp_path / "pa.nii.gz"}, writes={"--output": [upper]})
        os.link(tmp_path / "pa.nii.gz", upper)  # what such a disk answers: two names, one file
        with pytest.raises(UserError, match="another file"):
            check_files(reads={"--pa": tmp_path / "pa.nii.gz"}, writes={"--output": [upper]}, overwrite=True)


def test_help_prints_in_a_terminal_without_unicode() -> None:
    """Every character has a plain form: the help of the program and of each command exits with 0."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    code = (
        "from progressive_cascade.cli import main, build_parser\n"
        "names = list(build_parser()._subparsers._group_actions[0].choices)\n"
        "assert all(main([*name, '--help']) == 0 for name in ([], *([n] for n in names)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    text = done.stdout.decode("ascii")
    assert "256^3" in text
    assert "??" not in text
