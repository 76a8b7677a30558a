# SPDX-License-Identifier: Apache-2.0
"""Laws of the command line: help that teaches, one line for a mistake, files that are whole or absent."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, load_geometry, volume_affine
from progressive_cascade.cli import build_parser, main
from progressive_cascade.cli.common import check_output_folder, describe_error, select_device
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.scores import summarize
from progressive_cascade.inference.reconstruct import Reconstruction
from progressive_cascade.io import finite, save_json, save_nifti
from progressive_cascade.networks.uncertainty import UncertaintyHead

COMMANDS = ("check", "demo", "phantom", "simulate", "reconstruct", "prepare", "train", "evaluate")


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder written by `simulate` from an ellipsoid that lies off the world's origin."""
    folder = tmp_path_factory.mktemp("simulate")
    points = np.indices((64, 64, 64)).transpose(1, 2, 3, 0) - 31.5
    hu = np.where(((points / [24, 16, 60]) ** 2).sum(-1) < 1, 20, -1000).astype(np.int16)
    save_nifti(hu, volume_affine((64, 64, 64), 5.6, (40.0, -30.0, 700.0)), folder / "ct.nii.gz")
    assert main(["simulate", str(folder / "ct.nii.gz"), "--output", str(folder / "xrays")]) == 0
    return folder / "xrays"


@pytest.fixture
def cascade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for networks and phantoms: every patient is a cylinder, every reconstruction one of 100 HU more."""
    shape, spacing = (32, 32, 32), 11.2
    x, y, _ = np.indices(shape) - 15.5
    cylinder = np.where(x**2 + y**2 < 100, 0, -1000).astype(np.int16)

    def reconstruct(image: np.ndarray, beam: ConeBeam, *, calibrated: bool = True, **_: object) -> Reconstruction:
        return Reconstruction(
            hu=(cylinder + 100).astype(np.int16),
            affine=volume_affine(shape, spacing, beam.isocenter),
            agreement={view: {"relative_residual": 0.1, "psnr_db": float("inf")} for view in beam.views},
            reprojected=image,
            image=image,
            calibrated=calibrated,
        )

    monkeypatch.setattr("progressive_cascade.inference.reconstruct.load_cascade", lambda *_, **__: None)
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.check_beam", lambda *_: None)
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.reconstruct", reconstruct)
    phantom = SimpleNamespace(hu=cylinder, labels=None, affine=volume_affine(shape, spacing))
    monkeypatch.setattr("progressive_cascade.phantom.generate_phantom", lambda seed, **_: phantom)
    weights = tmp_path / "shipped" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"shipped")
    monkeypatch.setattr("progressive_cascade.inference.reconstruct.default_checkpoint", lambda: weights)


def _fails_with(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail, and returns its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("progressive-cascade: error: ")
    return lines[0]


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
    image = nib.load(ct)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), phantom.hu)
    np.testing.assert_allclose(image.affine, phantom.affine)
    np.testing.assert_array_equal(np.asanyarray(nib.load(labels).dataobj), phantom.labels)
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
        image = nib.load(xrays / f"{name}.nii.gz")
        assert image.shape == (512, 512, 1)
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(image.affine, beam.detector_affine(view), atol=1e-3)


def test_simulate_ellipsoid_has_its_thickness(xrays: Path) -> None:
    """The central ray sees mu of 20 HU times the ellipsoid's axis along it, within two voxels."""
    from progressive_cascade.attenuation import water_attenuation

    for name, axis in (("pa", 16), ("lateral", 24)):
        pixels = np.asanyarray(nib.load(xrays / f"{name}.nii.gz").dataobj)[..., 0]
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
        (("evaluate", "--output", "out"), "needs --dataset DATASET or --phantoms N"),
        (("evaluate", "--output", "out", "--phantoms", "2", "--sample-idx", "2"), "--sample-idx must be below"),
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
    assert expected in _fails_with(capsys, *arguments)
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
        line = _fails_with(capsys, *arguments)
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
    line = _fails_with(capsys, "simulate", tmp_path / "picture.nii.gz", "--output", tmp_path / "xrays")
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

    monkeypatch.setattr("progressive_cascade.cli.simulation.run_phantom", broken)
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


def test_summary_leaves_out_what_is_not_finite() -> None:
    """Means are over finite scores, and JSON gets null instead of infinity."""
    cases = [
        {"case": str(value), "scores": {"cascade": {"native_psnr": value}}} for value in (20.0, 22.0, float("inf"))
    ]
    summary = summarize(cases)["cascade"]["native_psnr"]
    assert (summary["mean"], summary["std"], summary["num_patients"]) == (21.0, 1.0, 2)
    assert json.dumps(finite({"a": [float("nan"), 1.0]}), allow_nan=False) == '{"a": [null, 1.0]}'


def test_evaluate_writes_scores_and_pictures(cascade: None, tmp_path: Path) -> None:
    """Per case and in summary, each score under its protocol's name: a shift of 100 HU is an MAE of 100 HU."""
    output = tmp_path / "evaluation"
    arguments = ["evaluate", "--phantoms", "3", "--num-samples", "2", "--save-nifti", "--no-baselines"]
    assert main([*arguments, "--output", str(output)]) == 0
    report = json.loads((output / "evaluation_metrics.json").read_text())
    assert report["protocols"] == ["native"]
    assert len(report["cases"]) == 2
    assert report["summary"]["cascade"]["native_mae_hu"]["mean"] == pytest.approx(100.0)
    assert report["cases"][0]["agreement"]["pa"]["relative_residual"] > 0.05
    assert len(list(output.glob("comparison_*.png"))) == len(list(output.glob("*.nii.gz"))) == 2


def test_evaluate_sample_idx_takes_one_case(cascade: None, tmp_path: Path) -> None:
    """The case is counted from 0 over the section, and nothing else is evaluated."""
    every, one = tmp_path / "every", tmp_path / "one"
    assert main(["evaluate", "--phantoms", "2", "--no-baselines", "--output", str(every)]) == 0
    assert main(["evaluate", "--phantoms", "2", "--no-baselines", "--sample-idx", "1", "--output", str(one)]) == 0
    cases = [json.loads((folder / "evaluation_metrics.json").read_text())["cases"] for folder in (every, one)]
    assert cases[1] == cases[0][1:]


def test_evaluate_refuses_another_grid(cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CT that was not prepared for the cascade's grid is named."""
    for name in ("ct", "valid"):
        save_nifti(np.ones((16, 16, 16), np.int16), volume_affine((16, 16, 16), 22.4), tmp_path / name / "a.nii.gz")
    test, training = ({"label": "ct/a.nii.gz", "valid": "valid/a.nii.gz", "patient": name} for name in "ab")
    save_json({"training": [training], "validation": [], "test": [test]}, tmp_path / "datalist.json")
    out = tmp_path.with_name("out")
    assert main(["evaluate", "--dataset", str(tmp_path), "--no-baselines", "--output", str(out)]) == 2
    assert "case a must lie on the cascade's grid (32, 32, 32), got (16, 16, 16)" in capsys.readouterr().err


def test_reconstruct_writes_its_files_together(cascade: None, xrays: Path, tmp_path: Path) -> None:
    """All share the CT's name; the sidecar names the weights by hash, and the CT is in the patient's world."""
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz")]
    geometry = ["--geometry", str(xrays / "geometry.json"), "--checkpoint", str(weights)]
    assert main(["reconstruct", *views, *geometry, "--output", str(tmp_path / "out" / "ct.nii.gz")]) == 0
    written = ["ct.html", "ct.json", "ct.nii.gz", "ct.png", "ct.radiographs.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    sidecar = json.loads((tmp_path / "out" / "ct.json").read_text())
    assert sidecar["checkpoint"] == {"file": "weights.pt", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert sidecar["geometry"] == load_geometry(xrays / "geometry.json").to_dict()
    image = nib.load(tmp_path / "out" / "ct.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine @ [15.5, 15.5, 15.5, 1], [*sidecar["geometry"]["isocenter"], 1], atol=1e-3)


@pytest.mark.parametrize("option", [[], ["--portable"]])
def test_reconstruct_takes_the_fast_arithmetic_unless_told(
    cascade: None, xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    """`--portable` asks the inferer for plain torch; without it the inferer chooses."""
    from progressive_cascade.inference import inferers

    asked = []
    build = inferers.CascadeInferer
    monkeypatch.setattr(inferers, "CascadeInferer", lambda **given: asked.append(given["portable"]) or build(**given))
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz")]
    geometry = ["--geometry", str(xrays / "geometry.json")]
    assert main(["reconstruct", *views, *geometry, "--output", str(tmp_path / "ct.nii.gz"), *option]) == 0
    assert asked == [bool(option)]


def test_reconstruct_writes_sigma_on_the_cts_grid(
    cascade: None, xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sigma is whole HU with the CT's affine; without its weights, or in the CT's place, nothing is written."""
    weights, out = tmp_path / "uncertainty.pt", tmp_path / "out"
    monkeypatch.setattr("progressive_cascade.inference.uncertainty.default_uncertainty", lambda: weights)
    views = ["reconstruct", "--pa", xrays / "pa.nii.gz", "--lateral", xrays / "lateral.nii.gz"]
    command = [*views, "--output", out / "ct.nii.gz", "--uncertainty", out / "sigma.nii.gz"]
    assert f"{weights} must exist" in _fails_with(capsys, *command)
    torch.save(UncertaintyHead().state_dict(), weights)
    assert "must be another file than --output" in _fails_with(capsys, *command[:-1], out / "." / "ct.nii.gz")
    assert not out.exists()
    assert main([str(argument) for argument in command]) == 0
    assert "calibrated with another checkpoint" in capsys.readouterr().out
    ct, sigma = (nib.load(out / f"{name}.nii.gz") for name in ("ct", "sigma"))
    np.testing.assert_array_equal(sigma.affine, ct.affine)
    assert sigma.shape == ct.shape and sigma.get_data_dtype() == np.int16
    assert (np.asanyarray(sigma.dataobj) == 32).all()


def test_reconstruct_refuses_what_is_no_image(
    cascade: None, xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no radiograph is named, and nothing is written."""
    (tmp_path / "pa.nii.gz").write_text("no image")
    line = _fails_with(
        capsys,
        *("reconstruct", "--pa", tmp_path / "pa.nii.gz", "--lateral", xrays / "lateral.nii.gz"),
        *("--output", tmp_path / "out" / "ct.nii.gz"),
    )
    assert "pa.nii.gz" in line
    assert not (tmp_path / "out").exists()


def test_demo_leaves_everything_in_one_folder(
    cascade: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truth, X-rays, reconstruction and pictures lie in the folder, and each is printed."""
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    files = [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"truth.nii.gz", "pa.nii.gz", "geometry.json", "reconstruction.nii.gz", "reconstruction.json"} <= names
    assert {"reconstruction.png", "comparison.png", "radiographs.png"} <= names
    assert all(str(path) in printed for path in files)


def test_reconstruct_says_when_it_cannot_calibrate(
    cascade: None, xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey levels of a display are taken, but the sidecar and a note say that data consistency was left out."""
    for name in ("pa", "lateral"):
        image = nib.load(xrays / f"{name}.nii.gz")
        grey = (np.asanyarray(image.dataobj) * 400).astype(np.int16)
        save_nifti(grey, image.affine, tmp_path / f"{name}.nii.gz")
    views = ["--pa", str(tmp_path / "pa.nii.gz"), "--lateral", str(tmp_path / "lateral.nii.gz")]
    assert main(["reconstruct", *views, "--output", str(tmp_path / "ct.nii.gz")]) == 0
    assert "no line integrals" in capsys.readouterr().out
    assert json.loads((tmp_path / "ct.json").read_text())["calibrated"] is False


def test_select_device_refuses_what_is_not_there() -> None:
    """An unknown or absent device is named; the CPU is always there."""
    assert select_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"--device must be a device of this machine.*'gpu'"):
        select_device("gpu")


def test_default_geometry_is_the_chest_stand() -> None:
    """`simulate` and `reconstruct` agree on the geometry where none is named."""
    options = build_parser().parse_args(["simulate", "ct.nii.gz", "--output", "out"])
    assert ConeBeam.preset(options.preset) == ConeBeam()
