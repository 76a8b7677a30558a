# SPDX-License-Identifier: Apache-2.0
"""Laws of a pair: whatever the files, the same input of the network; what was assumed is said; left stays left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import PRESETS, ConeBeam
from progressive_cascade.io import save_nifti
from progressive_cascade.radiograph import orientation
from progressive_cascade.radiograph.fit import Model
from progressive_cascade.radiograph.lengths import Choices
from progressive_cascade.radiograph.pair import Pair, assemble_pair
from progressive_cascade.radiograph.read import read_radiograph
from progressive_cascade.radiograph.record import Radiograph
from progressive_cascade.radiograph.warn import slice_difference, slice_warnings
from tests.support.radiographs import BEAM, FOCAL, SIZE, grey, phantom_pair, save_dx, signal


def _assemble(frontal: Radiograph, lateral: Radiograph, beam: ConeBeam | None = None, **choices: object) -> Pair:
    given = Choices(**choices)  # pyright: ignore[reportArgumentType]
    return assemble_pair(frontal, lateral, model=Model(SIZE, FOCAL), beam=beam, choices=given)


def _plain(index: int, **changes: object) -> Radiograph:
    """Line integrals on the model's detector, as `simulate` writes them."""
    image = phantom_pair()[index]
    known = Radiograph(
        f"view{index}",
        image,
        np.ones(image.shape, dtype=bool),
        "line_integral",
        spacing=(3.36, 3.36),
        directions=(("L", "F"), ("P", "F"))[index],
    )
    return replace(known, **changes)  # pyright: ignore[reportArgumentType]


def _seen() -> np.ndarray:
    return np.ones(phantom_pair()[0].shape, dtype=bool)


def test_plain_pair_is_the_networks_input():
    """Line integrals on the model's detector go through to the last bit, and nothing but distances is assumed."""
    pair = _assemble(_plain(0), _plain(1))
    np.testing.assert_array_equal(pair.image, phantom_pair())
    assert pair.calibrated and pair.weights is None and not pair.warnings and not pair.notes
    assert [line.split(" is ")[0] for line in pair.assumptions] == ["source_to_detector", "source_to_isocenter"]
    assert pair.beam == replace(BEAM, pixel_spacing=pair.beam.pixel_spacing)


def test_a_pair_is_sized_where_both_sizes_are_known():
    """By the file or by the user; one that is assumed is enough for none."""
    assert _assemble(_plain(0), _plain(1)).sized
    assert not _assemble(_plain(0), _plain(1, spacing=None, pixels=phantom_pair()[1][1:], mask=_seen()[1:])).sized
    assert _assemble(_plain(0), _plain(1, spacing=None), field_of_view=430.0).sized


@pytest.mark.parametrize("way", range(8))
def test_nifti_lies_any_way(tmp_path: Path, way: int):
    """Stored in any of eight ways, with the affine that says so, a pair is the same."""
    paths = []
    for view, name in enumerate(("pa", "lateral")):
        array, affine = phantom_pair()[view].T, BEAM.detector_affine(view)
        for axis in range(2):
            if way >> axis & 1:
                array = np.flip(array, axis)
                affine = affine.copy()
                affine[:3, 3] += affine[:3, axis] * (SIZE - 1)
                affine[:3, axis] *= -1
        if way & 4:
            array, affine = array.T, affine[:, [1, 0, 2, 3]]
        save_nifti(np.ascontiguousarray(array[..., None]), affine, tmp_path / f"{name}.nii.gz")
        paths.append(tmp_path / f"{name}.nii.gz")
    frontal, lateral = (read_radiograph(path) for path in paths)
    pair = _assemble(frontal, lateral, beam=BEAM)
    np.testing.assert_array_equal(pair.image, phantom_pair())


def test_dicom_signal_of_another_detector_gives_line_integrals(tmp_path: Path):
    """256² counts, flipped as PatientOrientation says: the line integrals come back, their scale read off the air."""
    processing = {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LIN"}
    linear = {**processing, "PixelIntensityRelationshipSign": 1, "ImagerPixelSpacing": ["1.68", "1.68"]}
    counts = signal(phantom_pair(256))
    frontal = save_dx(counts[0][:, ::-1], tmp_path / "pa.dcm", PatientOrientation=["R", "F"], **linear)
    side = {"ViewPosition": "LL", "PatientOrientation": ["P", "H"]}
    lateral = save_dx(counts[1][::-1], tmp_path / "lat.dcm", **{**linear, **side})
    pair = _assemble(read_radiograph(frontal), read_radiograph(lateral), surroundings="none")
    assert pair.calibrated
    seen = np.ones_like(pair.image) if pair.weights is None else pair.weights
    assert seen.mean() > 0.98
    assert float(np.abs(pair.image - phantom_pair())[seen > 0].mean()) < 0.02


def test_display_pictures_are_uncalibrated_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """16-bit PNGs at which nobody looks: the same picture but for its scale, every assumption with its cost."""
    monkeypatch.setattr(orientation, "load_orientation_net", lambda: None)
    for view, name in enumerate(("pa", "lat")):
        Image.fromarray(grey(phantom_pair()[view]).astype(np.uint16)).save(tmp_path / f"{name}.png")
    frontal, lateral = (read_radiograph(tmp_path / f"{name}.png") for name in ("pa", "lat"))
    pair = _assemble(frontal, lateral)
    assert not pair.calibrated
    for view in range(2):
        assert np.corrcoef(pair.image[view].ravel(), phantom_pair()[view].ravel())[0, 1] > 0.99
    text = "\n".join(pair.assumptions)
    assert "430 mm" in text and "1800 mm" in text and "scale" in text and "lies as a pa is read" in text
    assert all("cost" in line or "exchanged" in line for line in pair.assumptions)


def test_an_ultrasound_is_refused_and_a_thumbnail_warned_of(tmp_path: Path):
    """Speckle in which all looks like lead letters is no patient; few pixels and a film of 19 mm are told of."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    fan = np.hypot(rows, cols - SIZE / 2) < 0.9 * SIZE
    fan &= np.abs(cols - SIZE / 2) < 0.8 * rows
    speckle = np.where(fan, np.random.default_rng(0).rayleigh(40, fan.shape), 0)
    for name, picture in (("us", speckle), ("pa", grey(phantom_pair()[0], 255)), ("lat", grey(phantom_pair()[1], 255))):
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    frontal, lateral, ultrasound = (read_radiograph(tmp_path / f"{name}.png") for name in ("pa", "lat", "us"))
    for pair in ((frontal, ultrasound), (ultrasound, lateral)):
        with pytest.raises(UserError, match=r"us\.png must show a chest, got narrow, bright structures"):
            _assemble(*pair)
    small = _assemble(replace(frontal, spacing=(0.15, 0.14)), lateral)
    (line,) = [line for line in small.warnings if "too small for a chest" in line]
    assert line.startswith("the frontal X-ray is 19 x 18 mm at the detector")
    assert not [line for line in _assemble(frontal, lateral).warnings if "thumbnail" in line or "small" in line]
    Image.open(tmp_path / "pa.png").resize((100, 100)).save(tmp_path / "pa.png")
    told = [line for line in _assemble(read_radiograph(tmp_path / "pa.png"), lateral).warnings if "thumbnail" in line]
    assert told == ["the frontal X-ray has 100 x 100 pixels, as few as a thumbnail: give the film itself"]


def test_spacing_given_by_hand_scales_the_picture(tmp_path: Path):
    """Half the pitch: the picture fills half the detector, the rest is masked."""
    frontal, lateral = (replace(_plain(view), spacing=None) for view in range(2))
    pair = _assemble(frontal, lateral, pixel_spacing=(1.68, 1.68))
    assert pair.weights is not None and pair.weights.mean() == pytest.approx(0.25, abs=0.01)
    assert not any("side of" in line for line in pair.assumptions)


def test_exchanged_views_are_put_right():
    """A lateral given as the PA, and the PA as the lateral, are exchanged, with a note."""
    pair = _assemble(_plain(1), _plain(0))
    np.testing.assert_array_equal(pair.image, phantom_pair())
    assert "exchanged" in pair.notes[0]


def test_two_laterals_are_refused():
    """Two of one kind are no pair; nor are two patients."""
    with pytest.raises(UserError, match="two laterals"):
        _assemble(_plain(1), _plain(1))
    with pytest.raises(UserError, match="two frontals by their views, pa and lao20"):
        _assemble(_plain(0, view="pa"), _plain(0, view="lao20"))
    with pytest.raises(UserError, match="patient"):
        _assemble(_plain(0, patient="one"), _plain(1, patient="two"))


def test_ap_and_right_lateral_keep_their_own_geometry():
    """AP and right lateral become views of the geometry, not mirror images of a PA and a left lateral."""
    frontal = _plain(0, view="ap")
    lateral = _plain(1, view="right_lateral", directions=("A", "F"), pixels=phantom_pair()[1][:, ::-1])
    pair = _assemble(frontal, lateral, source_to_detector=1800.0, source_to_isocenter=1500.0)
    assert pair.beam.views == ("ap", "right_lateral")
    np.testing.assert_array_equal(pair.image[1], phantom_pair()[1][:, ::-1])


def test_bedside_is_assumed_of_an_ap_alone():
    """Without distances an AP was taken at the bedside, a PA at the stand."""
    beams = [_assemble(_plain(0, view=view), _plain(1)).beam for view in ("ap", "pa")]
    distances = [beam.source_to_detector for beam in beams]
    assert distances == [PRESETS["bedside_ap"].source_to_detector, PRESETS["chest_stand"].source_to_detector]


def test_views_of_two_scales_do_not_fit():
    """A lateral scaled by 20 % holds other slices than the PA; the right one holds the same."""
    image, seen = phantom_pair(), np.ones((2, SIZE, SIZE))
    right = slice_difference(image, seen)
    scaled = _assemble(_plain(0), _plain(1, spacing=(3.36 * 1.2, 3.36 * 1.2))).image
    assert slice_difference(scaled, seen) > 3 * right


def test_near_sources_mix_slices_and_are_allowed_to():
    """The limit grows as one over the distance, from 1500 mm on; farther it stays what it is there."""
    assert slice_warnings(0.07, calibrated=False)
    assert not slice_warnings(0.07, calibrated=False, source_to_isocenter=1000.0)
    assert slice_warnings(0.07, calibrated=False, source_to_isocenter=1900.0)
    assert slice_warnings(0.11, calibrated=True, source_to_isocenter=800.0)
    assert not slice_warnings(0.11, calibrated=True, source_to_isocenter=600.0)


@pytest.mark.parametrize("name", ["source_to_detector", "source_to_isocenter"])
def test_distances_come_from_options_before_tags(name: str):
    """What the user gives goes before what the file says."""
    tags = {"source_to_detector": 1820.0, "source_to_isocenter": 1510.0}
    frontal = _plain(0, **tags)
    assert getattr(_assemble(frontal, _plain(1)).beam, name) == tags[name]
    given: dict[str, Any] = {name: 1600.0}
    assert getattr(_assemble(frontal, _plain(1), **given).beam, name) == 1600.0
