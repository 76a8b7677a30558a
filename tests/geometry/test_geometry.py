# SPDX-License-Identifier: Apache-2.0
"""Laws of the acquisition geometry and its sidecar."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from progressive_cascade import ConeBeam, load_geometry, save_geometry, volume_affine
from progressive_cascade.geometry import PRESETS, VIEWS
from progressive_cascade.geometry.views import view_angles, view_axes, view_name

ANGLED = ("lao30", "rao45.5", "cranial20", "caudal10", "lao30_cranial15", "rao30_caudal25", "lao180", "cranial90")


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


@pytest.mark.parametrize(
    ("name", "angles"), [("pa", "lao0"), ("left_lateral", "lao90"), ("right_lateral", "rao90_cranial0")]
)
def test_named_views_are_angles(name, angles):
    """PA, left and right lateral are the primary angles 0, 90 and -90, to the last bit."""
    for named, angled in zip(view_axes(name), view_axes(angles), strict=True):
        np.testing.assert_array_equal(named, angled)


@pytest.mark.parametrize("view", VIEWS + ANGLED)
def test_view_axes_are_orthonormal(view):
    """Central ray, columns and rows of any view stand at right angles, and no view but an AP is a mirror image."""
    along, column, row = view_axes(view)
    np.testing.assert_allclose(np.stack([along, column, row]) @ np.stack([along, column, row]).T, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(np.cross(column, row), along if view == "ap" else -along, atol=1e-15)


@pytest.mark.parametrize(
    ("view", "detector"),
    [
        ("lao30", (-0.5, 3**0.5 / 2, 0.0)),
        ("rao30", (0.5, 3**0.5 / 2, 0.0)),
        ("cranial30", (0.0, 3**0.5 / 2, 0.5)),
        ("caudal30", (0.0, 3**0.5 / 2, -0.5)),
        ("lao90_cranial30", (-(3**0.5) / 2, 0.0, 0.5)),
    ],
)
def test_positioner_angles_say_where_the_detector_is(view, detector):
    """LAO: at the patient's left front; RAO: right front; cranial: towards the head (DICOM PS3.3 C.8.7.5.1.2)."""
    np.testing.assert_allclose(view_axes(view)[0], detector, atol=1e-15)


@pytest.mark.parametrize("view", ANGLED)
def test_view_name_inverts_the_angles(view):
    """A view's angles give its name back."""
    assert view_name(*view_angles(view)) == view


def test_view_name_prefers_the_plain_names():
    """0, 90 and -90 degrees are PA and the laterals; an angle beyond the positioner's range is refused."""
    assert [view_name(angle) for angle in (0.0, 90.0, -90.0, 1e-9)] == ["pa", "left_lateral", "right_lateral", "pa"]
    with pytest.raises(ValueError, match="view angles must lie within"):
        view_name(181.0)


def test_detector_offset_shifts_the_image_the_other_way():
    """A detector moved 8.4 mm down and 4.2 mm to the right sees everything 10 pixels higher, 5 further left."""
    beam = ConeBeam(views=ANGLED)
    moved = replace(beam, detector_offset=(8.4, 4.2))
    for view in range(len(ANGLED)):
        col, row = _pixel(beam, view, (30.0, -40.0, 50.0))
        np.testing.assert_allclose(_pixel(moved, view, (30.0, -40.0, 50.0)), (col - 5.0, row - 10.0), atol=1e-9)


@pytest.mark.parametrize("view", [*VIEWS, "lao30_cranial15"])
def test_detector_rotation_turns_the_image_counter_clockwise(view):
    """Turning the detector a quarter clockwise brings what was above the centre to its left, as far away."""
    beam = ConeBeam(views=(view,), isocenter=(1.0, 2.0, 3.0))
    turned = replace(beam, detector_rotation=90.0)
    col, row = _pixel(beam, 0, (20.0, 30.0, 80.0))
    np.testing.assert_allclose(_pixel(turned, 0, (20.0, 30.0, 80.0)), (row, 511.0 - col), atol=1e-9)


@pytest.mark.parametrize("view", [*VIEWS, *ANGLED])
def test_detector_affine_follows_every_pose(view):
    """A pixel's place projects back to it for any angle, offset and turn, at the source's full distance."""
    beam = ConeBeam(
        views=(view,),
        isocenter=(5.0, 6.0, 7.0),
        pixel_spacing=(0.7, 0.9),
        detector_shape=(400, 300),
        detector_offset=(11.0, -23.0),
        detector_rotation=33.0,
    )
    world = beam.detector_affine(0) @ np.array([100.0, 200.0, 0.0, 1.0])
    np.testing.assert_allclose(_pixel(beam, 0, tuple(world[:3])), (100.0, 200.0), atol=1e-9)
    depth = beam.projection_matrices()[0, 2] @ world
    assert depth == pytest.approx(beam.source_to_detector)


def test_poses_agree_with_the_matrices():
    """The source is the point no matrix can project, and the detector's centre projects to its middle pixel."""
    beam = ConeBeam(views=VIEWS + ANGLED, detector_offset=(11.0, -23.0), detector_rotation=-20.0, isocenter=(1, 2, 3))
    sources, centers, rotations = beam.poses()
    for view, matrix in enumerate(beam.projection_matrices()):
        np.testing.assert_allclose(matrix @ [*sources[view], 1.0], 0.0, atol=1e-8)
        np.testing.assert_allclose(_pixel(beam, view, tuple(centers[view])), (255.5, 255.5), atol=1e-9)
        np.testing.assert_allclose(rotations[view] @ rotations[view].T, np.eye(3), atol=1e-15)


def test_volume_affine_centres_the_grid_on_the_isocenter():
    """The mean of the first and the last voxel centre is the isocenter."""
    affine = volume_affine((4, 6, 8), 2.0, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(affine @ [1.5, 2.5, 3.5, 1.0], [1.0, 2.0, 3.0, 1.0])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_sidecar_returns_every_preset(name, tmp_path):
    """Writing and reading a geometry changes nothing."""
    save_geometry(ConeBeam.preset(name), tmp_path / "geometry.json")
    assert load_geometry(tmp_path / "geometry.json") == ConeBeam.preset(name)


def test_sidecar_returns_angles_offset_and_rotation(tmp_path):
    """A C-arm's geometry survives its sidecar."""
    beam = ConeBeam(views=ANGLED, detector_offset=(1.5, -2.0), detector_rotation=90.0)
    save_geometry(beam, tmp_path / "geometry.json")
    assert load_geometry(tmp_path / "geometry.json") == beam


def test_sidecar_of_an_earlier_release_is_read(tmp_path):
    """A sidecar without offset and rotation means a detector that is centred and upright."""
    old = {key: value for key, value in ConeBeam().to_dict().items() if not key.startswith("detector_")}
    path = tmp_path / "geometry.json"
    path.write_text(json.dumps({**old, "detector_shape": [512, 512]}))
    assert load_geometry(path) == ConeBeam()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sid": 1000}, "unknown keys"),
        ({"source_to_detector": 100}, "must exceed source_to_isocenter"),
        ({"views": ["pa", "sideways"]}, "views must be names"),
        ({"views": ["lao30", "lao200", "cranial91", "LAO30", "lao30_", "lao30cranial20", ""]}, "got .'lao200', 'cra"),
        ({"views": ["pa", 3]}, "lao30_caudal15.*got .3"),
        ({"views": "pa"}, "views must be a non-empty sequence"),
        ({"detector_offset": [1.0]}, "detector_offset must be 2"),
        ({"detector_rotation": float("inf")}, "detector_rotation must be 1 finite"),
        ({"detector_rotation": "upright"}, "detector_rotation must be 1 number"),
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
    with pytest.raises(FileNotFoundError, match="geometry file must exist"):
        load_geometry(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="must be JSON"):
        load_geometry(path)


def test_preset_must_exist():
    """An unknown preset is answered with the known ones."""
    with pytest.raises(ValueError, match="chest_stand"):
        ConeBeam.preset("chest")
