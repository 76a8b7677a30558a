# SPDX-License-Identifier: Apache-2.0
"""Laws of the acquisition geometry and its sidecar."""

from __future__ import annotations

import json

import numpy as np
import pytest

from progressive_cascade import ConeBeam, load_geometry, save_geometry, volume_affine
from progressive_cascade.geometry import PRESETS, VIEWS


def _pixel(beam: ConeBeam, view: int, point: tuple[float, float, float]) -> tuple[float, float]:
    col, row, depth = beam.projection_matrices()[view] @ np.array([*point, 1.0])
    return col / depth, row / depth


def test_isocenter_projects_to_the_detector_centre():
    """The central ray of every view meets the detector in its middle, wherever the isocenter is."""
    beam = ConeBeam(views=VIEWS, isocenter=(10.0, -20.0, 30.0))
    for view in range(len(VIEWS)):
        np.testing.assert_allclose(_pixel(beam, view, beam.isocenter), (255.5, 255.5), atol=1e-9)


def test_magnification_is_the_ratio_of_distances():
    """A millimetre in the isocenter plane covers source_to_detector / source_to_isocenter on the detector."""
    beam = ConeBeam(source_to_isocenter=1000, source_to_detector=1500)
    col, _ = _pixel(beam, 0, (-100.0, 0.0, 0.0))
    assert (col - 255.5) * 0.84 == pytest.approx(100 * beam.magnification)


@pytest.mark.parametrize(
    ("view", "point", "expected"),
    [
        ("pa", (50.0, 0.0, 0.0), "left"),
        ("ap", (50.0, 0.0, 0.0), "left"),
        ("left_lateral", (0.0, 50.0, 0.0), "left"),
        ("right_lateral", (0.0, 50.0, 0.0), "right"),
    ],
)
def test_views_are_shown_as_they_are_read(view, point, expected):
    """Patient's right on the left of PA and AP; the front on the left of a left lateral; cranial always up."""
    beam = ConeBeam(views=(view,))
    col, _ = _pixel(beam, 0, point)
    assert ("left" if col < 255.5 else "right") == expected
    assert _pixel(beam, 0, (0.0, 0.0, 50.0))[1] < 255.5


def test_pa_source_stands_behind_the_patient():
    """What is further back is closer to the PA source and magnified more."""
    beam = ConeBeam()
    behind, front = _pixel(beam, 0, (-50.0, -100.0, 0.0))[0], _pixel(beam, 0, (-50.0, 100.0, 0.0))[0]
    assert behind > front > 255.5


def test_detector_affine_lies_on_the_rays():
    """A pixel's place in the world projects back to that pixel."""
    beam = ConeBeam(isocenter=(5.0, 6.0, 7.0))
    for view in range(2):
        world = beam.detector_affine(view) @ np.array([100.0, 200.0, 0.0, 1.0])
        np.testing.assert_allclose(_pixel(beam, view, tuple(world[:3])), (100.0, 200.0), atol=1e-9)


def test_volume_affine_centres_the_grid_on_the_isocenter():
    """The mean of the first and the last voxel centre is the isocenter."""
    affine = volume_affine((4, 6, 8), 2.0, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(affine @ [1.5, 2.5, 3.5, 1.0], [1.0, 2.0, 3.0, 1.0])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_sidecar_returns_every_preset(name, tmp_path):
    """Writing and reading a geometry changes nothing."""
    save_geometry(ConeBeam.preset(name), tmp_path / "geometry.json")
    assert load_geometry(tmp_path / "geometry.json") == ConeBeam.preset(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sid": 1000}, "unknown keys"),
        ({"source_to_detector": 100}, "must exceed source_to_isocenter"),
        ({"views": ["pa", "sideways"]}, "views must be names"),
        ({"pixel_spacing": [0.84]}, "pixel_spacing must be 2"),
        ({"pixel_spacing": [0.84, -1]}, "pixel_spacing must be positive"),
        ({"isocenter": [0, 0, float("nan")]}, "isocenter must be 3 finite"),
        ({"format": "other 7"}, "format must be"),
    ],
)
def test_sidecar_errors_name_file_and_key(change, words, tmp_path):
    """A wrong sidecar is told in one sentence that starts with the file."""
    path = tmp_path / "geometry.json"
    path.write_text(json.dumps({**ConeBeam().to_dict(), **change}))
    with pytest.raises(ValueError, match=words) as caught:
        load_geometry(path)
    assert str(path) in str(caught.value)


def test_sidecar_must_be_json_and_exist(tmp_path):
    """Not JSON is a ValueError, no file a FileNotFoundError, both with the path."""
    path = tmp_path / "geometry.json"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_geometry(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        load_geometry(path)


def test_preset_must_exist():
    """An unknown preset is answered with the known ones."""
    with pytest.raises(ValueError, match="chest_stand"):
        ConeBeam.preset("chest")
