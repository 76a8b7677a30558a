# SPDX-License-Identifier: Apache-2.0
"""Laws of the pictures: sides, scales, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from progressive_cascade.report.diagrams import Curve, Diagram
from progressive_cascade.report.drawing import central_planes, film_values
from progressive_cascade.report.figures import (
    comparison_figure,
    curves_figure,
    hero_figure,
    radiographs_figure,
    volume_figure,
)

SHAPE = (24, 20, 16)


def _volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def _radiographs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 8, (2, 32, 32)).astype(np.float32)


def _marked(x: int, y: int, z: int) -> list[np.ndarray]:
    """The three planes of an empty volume with one bright voxel."""
    volume = np.zeros(SHAPE)
    volume[x, y, z] = 1
    return [plane.image for plane in central_planes(volume, (1.0, 1.0, 1.0))]


def test_central_planes_patients_right_is_on_the_left() -> None:
    """A voxel far along +x (the patient's right) is in column 0 of the axial and the coronal slice."""
    axial, coronal, _ = _marked(SHAPE[0] - 1, SHAPE[1] // 2, SHAPE[2] // 2)
    assert np.argwhere(axial)[0, 1] == 0
    assert np.argwhere(coronal)[0, 1] == 0


def test_central_planes_front_is_up_and_on_the_left() -> None:
    """A voxel far along +y is in row 0 of the axial slice and in column 0 of the sagittal one."""
    axial, _, sagittal = _marked(SHAPE[0] // 2, SHAPE[1] - 1, SHAPE[2] // 2)
    assert np.argwhere(axial)[0, 0] == 0
    assert np.argwhere(sagittal)[0, 1] == 0


def test_central_planes_head_is_up() -> None:
    """A voxel far along +z is in row 0 of the coronal and the sagittal slice."""
    _, coronal, sagittal = _marked(SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] - 1)
    assert np.argwhere(coronal)[0, 0] == 0
    assert np.argwhere(sagittal)[0, 0] == 0


def test_central_planes_extent_is_in_mm() -> None:
    """Height and width are voxels times spacing along the axes the plane shows."""
    axial, coronal, sagittal = central_planes(np.zeros(SHAPE), (1.0, 2.0, 3.0))
    assert axial.extent == (40.0, 24.0)
    assert coronal.extent == (48.0, 24.0)
    assert sagittal.extent == (48.0, 40.0)


def test_film_values_keep_a_constant() -> None:
    """Unsharp masking leaves an image without detail as it is."""
    image = np.full((40, 40), 3.0, np.float32)
    np.testing.assert_allclose(film_values(image), image, atol=1e-5)


def test_film_values_are_an_unsharp_mask() -> None:
    """By scipy's Gaussians of 3 % and 8 % of the width, mirrored at the borders, also of an image that is no square."""
    image = np.random.default_rng(0).uniform(0, 6, (48, 80)).astype(np.float32)
    details = [gain * (image - gaussian_filter(image, width * 80)) for width, gain in ((0.03, 0.8), (0.08, 0.4))]
    np.testing.assert_allclose(film_values(image), image + sum(details), atol=1e-5)


def test_film_values_are_linear() -> None:
    """Twice the line integrals give twice the display values, so that two pictures can share one scale."""
    image = _radiographs()[0]
    np.testing.assert_allclose(film_values(2 * image), 2 * film_values(image), rtol=1e-4, atol=1e-4)


def test_figures_are_pngs(tmp_path: Path) -> None:
    """Every figure is one readable PNG, and nothing else is left in the folder."""
    hu, image = _volume(), _radiographs()
    radiographs_figure(image, tmp_path / "a.png")
    volume_figure(hu, 2.0, tmp_path / "b.png")
    volume_figure(hu, (1.0, 1.0, 2.0), tmp_path / "c.png", radiographs=image)
    comparison_figure(hu, hu, radiographs=image, reprojected=image, path=tmp_path / "d.png", title="a case")
    hero_figure(image, {"reconstruction": hu, "CT": hu}, tmp_path / "e.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    for path in tmp_path.iterdir():
        assert min(imread(path).shape[:2]) > 200


def test_figure_is_deterministic(tmp_path: Path) -> None:
    """The same volume gives the same pixels."""
    for name in ("a.png", "b.png"):
        volume_figure(_volume(), 1.4, tmp_path / name)
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))


def test_volume_figure_shows_the_patients_right_on_the_left(tmp_path: Path) -> None:
    """Bone in the patient's right half brightens the left half of the axial panel."""
    hu = np.full((64, 64, 64), -1000, np.int16)
    hu[40:, :, :] = 1000
    volume_figure(hu, 5.6, tmp_path / "ct.png")
    pixels = imread(tmp_path / "ct.png")[..., 0]
    rows = slice(pixels.shape[0] // 2, pixels.shape[0])  # the soft-tissue row, where air is black
    panel = pixels[rows, : pixels.shape[1] // 3]
    middle = panel.shape[1] // 2
    assert panel[:, :middle].mean() > 5 * panel[:, middle:].mean()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((8, 8), 1.4), ((8, 8, 0), 1.4), ((8, 8, 8), 0.0), ((8, 8, 8), (1.0, 2.0)), ((8,) * 3, np.nan)],
)
def test_volume_figure_refuses_what_is_no_volume(tmp_path: Path, shape: tuple[int, ...], spacing: float) -> None:
    """A wrong shape or spacing is an error, and no file appears."""
    with pytest.raises(ValueError, match=r"must be"):
        volume_figure(np.zeros(shape), spacing, tmp_path / "ct.png")
    assert not list(tmp_path.iterdir())


def test_comparison_figure_refuses_other_shapes(tmp_path: Path) -> None:
    """Truth and reconstruction must be on one grid, radiographs and re-projections too."""
    hu, image, path = _volume(), _radiographs(), tmp_path / "x.png"
    with pytest.raises(ValueError, match="pred_hu must have shape"):
        comparison_figure(hu, hu[1:], radiographs=image, reprojected=image, path=path)
    with pytest.raises(ValueError, match="reprojected must have shape"):
        comparison_figure(hu, hu, radiographs=image, reprojected=image[:, 1:], path=path)
    with pytest.raises(ValueError, match="radiographs must be two radiographs"):
        comparison_figure(hu, hu, radiographs=image[:1], reprojected=image, path=path)
    with pytest.raises(ValueError, match="volumes must hold"):
        hero_figure(image, {}, path)
    assert not path.exists()


def _diagram(*, log_x: bool = False) -> Diagram:
    curves = [Curve(name, [1.0, 10.0], [20.0, 22.0 + k], [19.0, 21.0], [21.0, 25.0]) for k, name in enumerate("ab")]
    return Diagram("noise", "photons", "PSNR [dB]", curves, log_x=log_x)


def test_curves_figure_has_a_diagram_per_cell(tmp_path: Path) -> None:
    """More columns make the picture wider, more rows taller."""
    curves_figure([[_diagram()]], tmp_path / "one.png")
    curves_figure([[_diagram(), _diagram(log_x=True)]] * 2, tmp_path / "four.png", title="native")
    one, four = (imread(tmp_path / name).shape for name in ("one.png", "four.png"))
    assert four[1] == 2 * one[1] and four[0] > 1.5 * one[0]


def test_curves_figure_refuses_ragged_rows(tmp_path: Path) -> None:
    """A table has as many diagrams in each row."""
    for rows in ([], [[]], [[_diagram()], []]):
        with pytest.raises(ValueError, match="rows must hold the same number of diagrams"):
            curves_figure(rows, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_is_titled_with_the_headline_scores_alone():
    """Thirty scores do not fit over a picture."""
    from progressive_cascade.cli.results import describe_scores
    from progressive_cascade.evaluation.metrics import HEADLINES, evaluate_volume

    hu = np.full((24, 24, 24), -1000, np.int16)
    hu[6:18, 6:18, 6:18] = 30
    line = describe_scores(evaluate_volume(hu + np.int16(5), hu, protocol="native"), "native")
    assert len(line.split("   ")) == len(HEADLINES["native"]) and "native" not in line
    assert line.startswith("PSNR, 3-D 5") and "Mean absolute error 5 HU" in line
