# SPDX-License-Identifier: Apache-2.0
"""Laws of the command line: help that teaches, one line for a mistake, files that are whole or absent."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from progressive_cascade import ConeBeam, load_geometry
from progressive_cascade.cli import build_parser, main
from progressive_cascade.cli.common import check_output_folder, describe_error, select_device
from progressive_cascade.errors import UserError
from progressive_cascade.io import save_nifti
from tests.support.commands import fails_with, load_image

COMMANDS = ("check", "demo", "phantom", "simulate", "reconstruct", "prepare", "train", "evaluate", "calibrate")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The program's help names all commands, exits with 0 and shows the way from nothing to a CT."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help contains a command line that its own parser accepts."""
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out.replace("\\\n", " ")
    examples = [line.split()[1:] for line in text.splitlines() if line.startswith("  progressive-cascade ")]
    assert examples
    for example in examples:
        assert build_parser().parse_args(example).command == command


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` names the program and exits with 0."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("progressive-cascade 0.")


def test_phantom_is_written_as_it_is_generated(tmp_path: Path) -> None:
    """The files hold the phantom's HU, labels and affine, whatever the size."""
    from progressive_cascade.phantom import generate_phantom

    ct, labels = tmp_path / "a" / "ct.nii.gz", tmp_path / "labels.nii.gz"
    assert main(["phantom", "--seed", "3", "--size", "16", "--output", str(ct), "--labels", str(labels)]) == 0
    phantom = generate_phantom(3, shape=(16, 16, 16), spacing=22.4)
    image = load_image(ct)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), phantom.hu)
    np.testing.assert_allclose(image.affine, phantom.affine)
    np.testing.assert_array_equal(np.asanyarray(load_image(labels).dataobj), phantom.labels)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["ct.nii.gz", "labels.nii.gz"]


def test_simulate_writes_the_four_files(xrays: Path) -> None:
    """The folder holds the two views, the geometry and the picture, and nothing else."""
    names = sorted(path.name for path in xrays.iterdir())
    assert names == ["geometry.json", "lateral.nii.gz", "pa.nii.gz", "radiographs.png"]


def test_simulate_isocenter_is_the_bodys_center(xrays: Path) -> None:
    """The sidecar remembers where in the patient's world the rays meet: the body's centre, within a voxel."""
    beam = load_geometry(xrays / "geometry.json")
    np.testing.assert_allclose(beam.isocenter, (40.0, -30.0, 700.0), atol=5.6)


def test_simulate_radiographs_stand_on_the_detector(xrays: Path) -> None:
    """Each radiograph is float32 (column, row, 1) with its detector's affine."""
    beam = load_geometry(xrays / "geometry.json")
    for view, name in enumerate(("pa", "lateral")):
        image = load_image(xrays / f"{name}.nii.gz")
        assert image.shape == (512, 512, 1)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.affine, beam.detector_affine(view), atol=1e-3)


def test_simulate_ellipsoid_has_its_thickness(xrays: Path) -> None:
    """The central ray sees mu of 20 HU times the ellipsoid's axis along it, within two voxels."""
    from progressive_cascade.attenuation import water_attenuation

    for name, axis in (("pa", 16), ("lateral", 24)):
        pixels = np.asanyarray(load_image(xrays / f"{name}.nii.gz").dataobj)[..., 0]
        expected = water_attenuation() * 1.02 * 2 * axis * 5.6
        assert pixels[255:257, 255:257].mean() == pytest.approx(expected, abs=2 * 5.6 * water_attenuation())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "arguments are required"),
        (("simulat",), "invalid choice"),
        (("phantom", "--seed", "-1", "--output", "a.nii.gz"), "--seed: must be a whole number"),
        (("phantom", "--seed", "1.5", "--output", "a.nii.gz"), "--seed: must be a whole number"),
        (("phantom", "--seed", "1", "--output", "a.png"), "--output must be a file that ends in .nii"),
        (("phantom", "--seed", "1", "--size", "2", "--output", "a.nii.gz"), "--size must be between"),
        (("phantom", "--seed", "1", "--output", "a.nii", "--labels", "a.nii"), "--labels must be another file"),
        (("simulate", "missing.nii.gz", "--output", "out"), "missing.nii.gz"),
        (("simulate", "x.nii.gz", "--output", "out", "--preset", "chest"), "--preset: invalid choice: 'chest'"),
        (("prepare", "missing", "--output", "out"), "missing"),
        (("prepare", "missing", "--output", "out", "--test-fraction", "2"), "--test-fraction: must be a number"),
        (("train", "--dataset", "missing"), "missing"),
        (("train", "--stages", "4"), "invalid choice: 4"),
        (("evaluate", "--output", "out"), "needs --dataset DATASET, --cts INPUT or --phantoms N"),
        (("evaluate", "--output", "out", "--phantoms", "2", "--sample-idx", "2"), "--sample-idx must be below"),
        (("calibrate", "--phantoms", "0", "--output", "out.json"), "name --dataset, or --phantoms above 0"),
        (("calibrate", "--phantoms", "1", "--models", "nowhere"), "--models must name a folder that holds model.pt"),
        (("calibrate", "--output", "out.txt"), "--output must be a file that ends in .json"),
    ],
)
def test_mistake_is_one_line(
    arguments: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user's mistake gives exit code 2, one line that names it, and no file."""
    monkeypatch.chdir(tmp_path)
    assert expected in fails_with(capsys, *arguments)
    assert not list(tmp_path.rglob("*"))


def test_output_below_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An output folder whose parent is a file is named, before any work is done."""
    (tmp_path / "file").write_text("not a folder")
    for arguments in (
        ("phantom", "--seed", 1, "--output", tmp_path / "file" / "ct.nii.gz"),
        ("simulate", "x.nii.gz", "--output", tmp_path / "file" / "deep" / "xrays"),
        ("prepare", tmp_path, "--output", tmp_path / "file"),
        ("evaluate", "--phantoms", 1, "--output", tmp_path / "file"),
        ("demo", "--output", tmp_path / "file"),
    ):
        line = fails_with(capsys, *arguments)
        assert "--output must be in a folder" in line
        assert str(tmp_path / "file") in line


def test_unwritable_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without write permission is refused (root may write anywhere, so the permission is simulated)."""
    monkeypatch.setattr("progressive_cascade.cli.common.os.access", lambda *_: False)
    with pytest.raises(UserError, match="--output must be writable"):
        check_output_folder(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def test_grey_levels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture in grey levels is no CT, and nothing is written."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 32)).astype(np.int16)
    save_nifti(picture, np.diag([10.0, 10.0, 10.0, 1.0]), tmp_path / "picture.nii.gz")
    line = fails_with(capsys, "simulate", tmp_path / "picture.nii.gz", "--output", tmp_path / "xrays")
    assert "picture.nii.gz" in line
    assert "HU" in line
    assert not (tmp_path / "xrays").exists()


def test_debug_shows_the_error(tmp_path: Path) -> None:
    """With --debug the exception itself comes out."""
    with pytest.raises(FileNotFoundError):
        main(["simulate", str(tmp_path / "missing.nii.gz"), "--output", str(tmp_path / "out"), "--debug"])


def test_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no user can mend keeps its traceback."""

    def broken(options: argparse.Namespace) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("progressive_cascade.cli.phantom.run_phantom", broken)
    with pytest.raises(KeyError):
        main(["phantom", "--seed", "1", "--output", "a.nii.gz"])


def test_describe_error_finds_the_cause() -> None:
    """A user's mistake that a workflow wrapped in another error is still told."""
    try:
        try:
            raise UserError("models/stage1_best.pt must exist")
        except UserError as error:
            raise RuntimeError("failed to evaluate config") from error
    except RuntimeError as error:
        assert describe_error(error) == "models/stage1_best.pt must exist"
    assert describe_error(OSError(28, "No space left on device", "ct.nii.gz")) == "ct.nii.gz: No space left on device"
    assert describe_error(ValueError("two\n  lines")) == "two lines"
    assert describe_error(RuntimeError("ours")) is None


def test_select_device_refuses_what_is_not_there() -> None:
    """An unknown or absent device is named; the CPU is always there."""
    assert select_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"--device must be a device of this machine.*'gpu'"):
        select_device("gpu")


def test_default_geometry_is_the_chest_stand() -> None:
    """`simulate` and `reconstruct` agree on the geometry where none is named."""
    options = build_parser().parse_args(["simulate", "ct.nii.gz", "--output", "out"])
    assert ConeBeam.preset(options.preset) == ConeBeam()
