# SPDX-License-Identifier: Apache-2.0
"""Laws of `simulate` with a geometry and an exposure of one's own; its plain use is in test_cli.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from progressive_cascade import ConeBeam, load_geometry, save_geometry, volume_affine
from progressive_cascade.cli import main
from progressive_cascade.inference.transforms import to_line_integrals
from progressive_cascade.io import save_nifti
from progressive_cascade.physics import Exposure
from tests.support.cube import place_coarsely

CENTER = (40.0, -30.0, 700.0)
SMALL = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))


@pytest.fixture(scope="module", autouse=True)
def coarse_cube() -> Iterator[None]:
    """The same cube of 358.4 mm on 64³ voxels; test_cli.py has X-rays that come from 256³."""
    with pytest.MonkeyPatch.context() as patch:
        place_coarsely(patch, 64)
        yield


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ellipsoid that lies off the world's origin."""
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    points = np.indices((48, 48, 48)).transpose(1, 2, 3, 0) - 23.5
    hu = np.where(((points / [18, 12, 45]) ** 2).sum(-1) < 1, 20, -1000).astype(np.int16)
    save_nifti(hu, volume_affine((48, 48, 48), 7.0, CENTER), path)
    return path


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sidecar of a small detector that stands elsewhere."""
    path = tmp_path_factory.mktemp("geometry") / "geometry.json"
    save_geometry(replace(SMALL, isocenter=(1.0, 2.0, 3.0)), path)
    return path


@pytest.fixture(scope="module")
def ideal(ct: Path, geometry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ideal exposure with the small detector."""
    folder = tmp_path_factory.mktemp("ideal") / "xrays"
    assert _simulate(ct, folder, "--geometry", geometry) == 0
    return folder


def _simulate(ct: Path, folder: Path, *options: object) -> int:
    return main(["simulate", str(ct), "--output", str(folder), *(str(option) for option in options)])


def _pixels(folder: Path, name: str = "pa") -> np.ndarray:
    return np.asanyarray(nib.load(folder / f"{name}.nii.gz").dataobj)[..., 0].T


def test_geometry_is_moved_to_the_ct(ideal: Path) -> None:
    """The sidecar's distances and detector are kept, its isocenter becomes the CT's centre; no exposure is recorded."""
    beam = load_geometry(ideal / "geometry.json")
    assert beam.at((0.0, 0.0, 0.0)) == SMALL
    np.testing.assert_allclose(beam.isocenter, CENTER, atol=7.0)
    assert sorted(path.name for path in ideal.iterdir()) == [
        "geometry.json",
        "lateral.nii.gz",
        "pa.nii.gz",
        "radiographs.png",
    ]


def test_keep_isocenter_leaves_the_geometry_where_it_is(ct: Path, ideal: Path, tmp_path: Path) -> None:
    """The ellipsoid moves on the image by what the isocenter is off, magnified."""
    beam = load_geometry(ideal / "geometry.json")
    x, y, z = beam.isocenter
    save_geometry(beam.at((x + 28.0, y, z)), tmp_path / "geometry.json")
    assert _simulate(ct, tmp_path / "xrays", "--geometry", tmp_path / "geometry.json", "--keep-isocenter") == 0
    assert load_geometry(tmp_path / "xrays" / "geometry.json").isocenter == pytest.approx((x + 28.0, y, z))
    # 28 mm, magnified 1.2 times, on pixels of 6.72 mm: five columns towards the patient's left.
    np.testing.assert_allclose(_pixels(tmp_path / "xrays")[:, 8:], _pixels(ideal)[:, 3:-5], atol=0.15)


def test_views_can_be_named(ct: Path, geometry: Path, tmp_path: Path) -> None:
    """By name or by a C-arm's angles, in place of the geometry's own."""
    views = ("ap", "lao80_cranial3")
    assert _simulate(ct, tmp_path / "xrays", "--geometry", geometry, "--views", *views) == 0
    assert load_geometry(tmp_path / "xrays" / "geometry.json").views == views
    assert all((tmp_path / "xrays" / f"{view}.nii.gz").is_file() for view in views)


def test_exposure_is_applied_and_recorded(ct: Path, geometry: Path, ideal: Path, tmp_path: Path) -> None:
    """A tube's spectrum attenuates more than 70 keV does; the sidecar says what was done, and the seed repeats it."""
    options = ("--geometry", geometry, "--spectrum", "120kV", "--photons", "1e4", "--scatter", "0.2")
    for name, seed in (("a", 1), ("b", 1)):
        assert _simulate(ct, tmp_path / name, *options, "--seed", seed) == 0
    np.testing.assert_array_equal(_pixels(tmp_path / "a"), _pixels(tmp_path / "b"))
    record = json.loads((tmp_path / "a" / "exposure.json").read_text())
    assert record.pop("seed") == 1
    assert record.pop("pixels") == "line integrals"
    assert Exposure.from_dict(record) == Exposure("120kV", photons=1e4, scatter=0.2)
    assert _simulate(ct, tmp_path / "tube", "--geometry", geometry, "--spectrum", "120kV") == 0
    behind = _pixels(ideal) > 1
    assert 1.05 < np.median(_pixels(tmp_path / "tube")[behind] / _pixels(ideal)[behind]) < 1.25


def test_plain_run_removes_a_stale_exposure(ct: Path, geometry: Path, tmp_path: Path) -> None:
    """What an earlier run recorded does not stay beside other radiographs."""
    for options in (("--spectrum", "60keV"), ()):
        assert _simulate(ct, tmp_path / "xrays", "--geometry", geometry, "--overwrite", *options) == 0
        assert (tmp_path / "xrays" / "exposure.json").exists() == bool(options)


def test_display_values_are_no_line_integrals(ct: Path, geometry: Path, tmp_path: Path) -> None:
    """12 bits, bone bright by default, bone dark as MONOCHROME1; reconstruction sees that they are uncalibrated."""
    for name, options in (("two", ("--display",)), ("one", ("--display", "--photometric", "MONOCHROME1"))):
        assert _simulate(ct, tmp_path / name, "--geometry", geometry, *options) == 0
        assert nib.load(tmp_path / name / "pa.nii.gz").get_data_dtype() == np.int16
    two, one = _pixels(tmp_path / "two"), _pixels(tmp_path / "one")
    assert two.min() == 0
    assert two.max() == 4095
    assert np.abs(two + one - 4095).max() <= 1
    assert two[32, 32] > two[0, 0]
    assert not to_line_integrals(two[None])[1]
    assert json.loads((tmp_path / "one" / "exposure.json").read_text())["pixels"] == "MONOCHROME1"


def test_other_views_are_named_after_themselves(ct: Path, tmp_path: Path) -> None:
    """Any set of views but PA and left lateral gives one file per view's name."""
    save_geometry(replace(SMALL, views=("right_lateral", "ap", "left_lateral")), tmp_path / "geometry.json")
    assert _simulate(ct, tmp_path / "xrays", "--geometry", tmp_path / "geometry.json") == 0
    beam = load_geometry(tmp_path / "xrays" / "geometry.json")
    for view, name in enumerate(beam.views):
        image = nib.load(tmp_path / "xrays" / f"{name}.nii.gz")
        np.testing.assert_allclose(image.affine, beam.detector_affine(view), atol=1e-3)
    assert (tmp_path / "xrays" / "radiographs.png").stat().st_size > 1000
    assert len(list((tmp_path / "xrays").iterdir())) == 5


def test_oblique_views_are_simulated(ct: Path, tmp_path: Path) -> None:
    """A C-arm's angles name the file; a view from 30 degrees lies between PA and lateral in thickness."""
    save_geometry(replace(SMALL, views=("pa", "lao30_cranial15", "left_lateral")), tmp_path / "geometry.json")
    assert _simulate(ct, tmp_path / "xrays", "--geometry", tmp_path / "geometry.json") == 0
    pa, oblique, lateral = (
        _pixels(tmp_path / "xrays", name)[30:34, 30:34].mean() for name in ("pa", "lao30_cranial15", "left_lateral")
    )
    assert pa < oblique < lateral


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--spectrum", "120"), "--spectrum must be a tube voltage from 60kV to 150kV or a photon energy"),
        (("--spectrum", "200kV"), "--spectrum must be a tube voltage"),
        (("--spectrum", "5keV"), "--spectrum must be a tube voltage"),
        (("--photons", "0"), "--photons: must be a number above 0, got '0'"),
        (("--photons", "many"), "--photons: must be a number above 0, got 'many'"),
        (("--photons", "inf"), "--photons: must be a number"),
        (("--photons", "1e20"), "--photons must be at most 1e+12, got 1e+20"),
        (("--scatter", "-1"), "--scatter: must be a number of at least 0"),
        (("--seed", "3"), "--seed must come with --photons"),
        (("--display", "--photometric", "RGB"), "--photometric: invalid choice: 'RGB'"),
        (("--photometric", "MONOCHROME1"), "--photometric must come with --display"),
        (("--keep-isocenter",), "--keep-isocenter must come with --geometry"),
        (("--views", "pa", "lao300"), "--views must be names out of"),
        (("--views", "pa", "pa"), "geometry must have different views, got pa, pa"),
        (("--geometry", "missing.json"), "missing.json"),
        (("--geometry", "broken.json"), "broken.json"),
        (("--geometry", "twice.json"), "geometry must have different views, got pa, pa"),
        (("--geometry", "broken.json", "--preset", "c_arm"), "not allowed with argument"),
    ],
)
def test_mistake_is_one_line(
    options: tuple[str, ...],
    expected: str,
    ct: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user's mistake gives exit code 2, one line that names the option, and no file."""
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"source_to_isocenter": 1500}')
    save_geometry(replace(SMALL, views=("pa", "pa")), "twice.json")
    assert _simulate(ct, tmp_path / "xrays", *options) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]
    assert not (tmp_path / "xrays").exists()


def test_ct_that_is_none_leaves_nothing_behind(
    geometry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grey levels with an exposure asked for: the CT is named, and nothing is written."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 32)).astype(np.int16)
    save_nifti(picture, np.diag([10.0, 10.0, 10.0, 1.0]), tmp_path / "picture.nii.gz")
    assert _simulate(tmp_path / "picture.nii.gz", tmp_path / "xrays", "--geometry", geometry, "--photons", "1e5") == 2
    assert "picture.nii.gz: CT must be in HU" in capsys.readouterr().err
    assert not (tmp_path / "xrays").exists()


@pytest.fixture(scope="module")
def hard_xrays(tmp_path_factory):
    """X-rays of a small phantom at 120 kV, and of the same one at 70 keV."""
    folder = tmp_path_factory.mktemp("hard")
    assert main(["phantom", "--seed", "3", "--size", "64", "--output", str(folder / "ct.nii.gz")]) == 0
    for name, extra in (("hard", ["--spectrum", "120kV"]), ("plain", [])):
        assert main(["simulate", str(folder / "ct.nii.gz"), "--output", str(folder / name), *extra]) == 0
    return folder


def test_reconstruct_undoes_the_spectrum_it_finds_beside_the_xrays(hard_xrays):
    """Line integrals of 120 kV come close to those of 70 keV; what was far apart differs by a fraction."""
    from progressive_cascade.cli.radiographs import at_one_energy, choose_exposure
    from progressive_cascade.io import read_nifti

    hard, plain = (read_nifti(hard_xrays / name / "pa.nii.gz")[0].astype(np.float32) for name in ("hard", "plain"))
    options = argparse.Namespace(pa=hard_xrays / "hard" / "pa.nii.gz", spectrum=None)
    exposure = choose_exposure(options)
    undone = at_one_energy(hard, exposure)
    assert exposure.spectrum == "120kV"
    assert np.abs(undone - plain).mean() < 0.25 * np.abs(hard - plain).mean()
    assert (
        at_one_energy(plain, choose_exposure(argparse.Namespace(pa=hard_xrays / "plain" / "pa", spectrum=None)))
        is plain
    )


@pytest.mark.parametrize(("text", "words"), [("[1]", "exposure file"), ('{"kv": 3}', "unknown keys")])
def test_reconstruct_names_a_broken_exposure_file(hard_xrays, tmp_path, capsys, text, words):
    """One line, exit code 2, nothing written."""
    for name in ("pa.nii.gz", "lateral.nii.gz"):
        (tmp_path / name).write_bytes((hard_xrays / "hard" / name).read_bytes())
    (tmp_path / "exposure.json").write_text(text, encoding="utf-8")
    pair = ["--pa", str(tmp_path / "pa.nii.gz"), "--lateral", str(tmp_path / "lateral.nii.gz")]
    assert main(["reconstruct", *pair, "--output", str(tmp_path / "ct.nii.gz")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "ct.nii.gz").exists()


def test_reconstruct_names_an_impossible_spectrum(hard_xrays, tmp_path, capsys):
    """One line that names the option."""
    pair = ["--pa", str(hard_xrays / "hard" / "pa.nii.gz"), "--lateral", str(hard_xrays / "hard" / "lateral.nii.gz")]
    assert main(["reconstruct", *pair, "--spectrum", "9000kV", "--output", str(tmp_path / "ct.nii.gz")]) == 2
    assert "--spectrum" in capsys.readouterr().err
