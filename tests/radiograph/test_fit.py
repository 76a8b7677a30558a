# SPDX-License-Identifier: Apache-2.0
"""Radiographs on a detector whose size a model may choose: the true rays, the whole film, within what it learnt."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, GeometryRange, volume_affine
from progressive_cascade.projector import line_integrals
from progressive_cascade.radiograph.fit import Model, field_of, fit_detector, is_inside
from progressive_cascade.radiograph.lengths import Choices
from progressive_cascade.radiograph.onto import resample_views
from progressive_cascade.radiograph.pair import Pair, assemble_pair
from progressive_cascade.radiograph.read import read_radiograph
from progressive_cascade.radiograph.record import Radiograph
from tests.support.radiographs import FOCAL, SIZE, phantom_hu, save_dx, signal

RANGE = GeometryRange((600.0, 1900.0), (300.0, 430.0), turn=10.0, offset=30.0, opposite=True)
MODEL = Model(SIZE, FOCAL, RANGE)
XMED = ConeBeam(800.0, 1200.0, (256, 256), (2.4, 2.4))


@cache
def _patient() -> torch.Tensor:
    return hu_to_mu(torch.from_numpy(phantom_hu().astype(np.float32))[None, None])


@cache
def _views(beam: ConeBeam) -> np.ndarray:
    return line_integrals(_patient(), beam, affine=volume_affine((64, 64, 64), 5.6))[0].numpy()


def _radiographs(beam: ConeBeam, **changes: object) -> list[Radiograph]:
    """Line integrals on a geometry's own detector."""
    return [
        replace(
            Radiograph(f"view{index}", pixels, np.ones(pixels.shape, dtype=bool), "line_integral"),
            spacing=beam.pixel_spacing,
            directions=(("L", "F"), ("P", "F"))[index],
            **changes,  # pyright: ignore[reportArgumentType]
        )
        for index, pixels in enumerate(_views(beam))
    ]


def _assemble(beam: ConeBeam, model: Model = MODEL) -> Pair:
    return assemble_pair(*_radiographs(beam), model=model, beam=beam)


def test_another_detector_is_resampled_along_the_same_rays() -> None:
    """256² pixels of a field of 410 mm become the model's, and hold what it would have measured there."""
    pair = _assemble(XMED)
    assert (pair.beam.source_to_isocenter, pair.beam.source_to_detector) == (800.0, 1200.0)
    assert field_of(pair.beam) == pytest.approx(field_of(XMED)) == pytest.approx(409.6)
    direct = _views(replace(XMED, detector_shape=(SIZE, SIZE), pixel_spacing=pair.beam.pixel_spacing))
    assert float(np.abs(pair.image - direct).mean()) < 0.01
    assert pair.weights is None
    assert not any("reach over" in line for line in pair.notes)


def test_a_model_without_a_range_keeps_its_focal_length() -> None:
    """The same film on the detector of a model that knows one geometry."""
    pair = _assemble(XMED, Model(SIZE, FOCAL))
    assert pair.beam.source_to_detector / pair.beam.pixel_spacing[0] == pytest.approx(FOCAL, rel=1e-5)


def test_a_sidecar_of_the_models_detector_stays_as_it_is() -> None:
    """To the last bit, offset and turn too, where its field was trained."""
    beam = ConeBeam(1000.0, 1200.0, (SIZE, SIZE), (3.2, 3.2), detector_offset=(10.0, -20.0), detector_rotation=2.0)
    pair = _assemble(beam)
    assert pair.beam == beam
    np.testing.assert_array_equal(pair.image, _views(beam))


def test_a_detector_off_the_ray_farther_than_trained_is_taken_about_it() -> None:
    """55 mm at the isocenter, where 30 were trained: the same rays on a larger detector about the central one."""
    beam = ConeBeam(1500.0, 1800.0, (SIZE, SIZE), (2.8, 2.8), detector_offset=(0.0, 66.0))
    assert not is_inside(beam, SIZE, RANGE)
    pair = _assemble(beam)
    assert pair.beam.detector_offset == (0.0, 0.0)
    assert field_of(pair.beam) == pytest.approx(358.4 / 3.36 * 2.8 + 110.0, rel=1e-5)
    direct = _views(pair.beam)
    assert pair.weights is not None
    assert float(np.abs(pair.image - direct)[pair.weights > 0].mean()) < 0.05


def test_tags_of_a_bedside_unit_are_kept(tmp_path: Path) -> None:
    """DistanceSourceToDetector and ImagerPixelSpacing make the geometry; only what they leave open is assumed."""
    beam = ConeBeam(800.0, 1000.0, (160, 160), (2.6, 2.6), ("ap", "left_lateral"))
    tags = {
        "PresentationIntentType": "FOR PROCESSING",
        "PixelIntensityRelationship": "LIN",
        "PixelIntensityRelationshipSign": 1,
        "ImagerPixelSpacing": ["2.6", "2.6"],
        "DistanceSourceToDetector": "1000",
    }
    counts = signal(_views(beam))
    frontal = save_dx(counts[0], tmp_path / "ap.dcm", **{**tags, "ViewPosition": "AP"})
    side = {"ViewPosition": "LL", "PatientOrientation": ["P", "F"]}
    lateral = save_dx(counts[1], tmp_path / "lat.dcm", **{**tags, **side})
    pair = assemble_pair(read_radiograph(frontal), read_radiograph(lateral), model=MODEL)
    assert pair.beam.views == ("ap", "left_lateral")
    assert (pair.beam.source_to_isocenter, pair.beam.source_to_detector) == (800.0, 1000.0)
    assert field_of(pair.beam) == pytest.approx(160 * 2.6 / 1.25, rel=1e-5)
    distance, surroundings = pair.assumptions
    assert distance.startswith("source_to_isocenter is 800 mm, 200 mm before the detector as in preset bedside_ap")
    assert surroundings.startswith("the patient goes on above and below the cube")


def test_a_film_larger_than_any_trained_is_cut_and_said_so() -> None:
    """Of 480 mm the middle 430 are seen."""
    pair = _assemble(replace(XMED, pixel_spacing=(2.8125, 2.8125)))
    assert field_of(pair.beam) == pytest.approx(430.0)
    assert pair.notes == [
        "the X-rays reach over 480 mm of the plane through the isocenter, and the model sees the middle 430 mm"
    ]


def test_a_small_film_of_a_whole_body_is_taken() -> None:
    """Beside a child there is air: a film of 250 mm lies on a detector of 300, and what is beside it does not count."""
    beam = ConeBeam(1500.0, 1800.0, (SIZE, SIZE), (300 / SIZE, 300 / SIZE))
    pixels = np.full((SIZE, SIZE), 0.01, np.float32)
    pixels[:, 44:84] = 3.0
    film = [replace(one, pixels=pixels * (1 + 0.1 * index)) for index, one in enumerate(_radiographs(beam))]
    pair = assemble_pair(*film, model=MODEL, beam=beam)
    assert pair.weights is not None
    assert pair.weights.mean() == pytest.approx((250 / 300) ** 2, abs=0.02)
    assert "reach over 250 mm" in pair.notes[-1]
    assert "the model sees 300 mm: what lies beside the X-rays does not count" in pair.notes[-1]


def test_a_film_too_small_for_its_patient_is_refused() -> None:
    """A C-arm's panel cuts an adult: by how much less than trained it shows, and where the body leaves."""
    with pytest.raises(UserError) as error:
        _assemble(ConeBeam.preset("c_arm"))
    assert "must show 300 mm of the plane through the isocenter" in str(error.value)
    assert "got 205.9 mm, 94.1 mm (31.4%) less, and the body leaves the frontal" in str(error.value)


def test_views_of_an_array_are_resampled_likewise() -> None:
    """A geometry's own views on the model's detector; those that stand there already are handed back."""
    target, fit = fit_detector(XMED, field_of(XMED), size=SIZE, trained=RANGE)
    assert fit.notes() == []
    image, seen = resample_views(_views(XMED), XMED, target)
    assert seen is None
    np.testing.assert_allclose(image, _assemble(XMED).image, atol=1e-5)
    same, seen = resample_views(image, target, target)
    assert same is image
    assert seen is None
    wider = replace(target, pixel_spacing=(6.0, 6.0))
    seen = resample_views(image, target, wider)[1]
    assert seen is not None
    assert seen.mean() == pytest.approx((4.8 / 6.0) ** 2, abs=0.03)


def test_a_field_stays_in_its_range_when_its_pitch_is_rounded() -> None:
    """At both borders, and at the widths of usual films."""
    beam = ConeBeam(1370.3, 1811.7)
    for wanted in (100.0, 300.0, 300.0001, 358.4, 429.9999, 430.0, 900.0):
        target, fit = fit_detector(beam, wanted, size=512, trained=RANGE)
        assert is_inside(target, 512, RANGE)
        assert field_of(target) == pytest.approx(fit.field, rel=1e-5)


def test_a_c_arms_angles_are_kept(tmp_path: Path) -> None:
    """Positioner angles of an XA are the view; they are not rounded to a PA."""
    counts = signal(_views(ConeBeam(1000.0, 1200.0, (SIZE, SIZE), (3.36, 3.36))))
    tags = {"Modality": "XA", "ImagerPixelSpacing": ["3.36", "3.36"], "DistanceSourceToDetector": "1200"}
    tags["DistanceSourceToPatient"] = "1000"
    angles = [("5", "3"), ("90", "0")]
    letters = [["L", "F"], ["P", "F"]]
    paths = [
        save_dx(
            counts[view],
            tmp_path / f"{view}.dcm",
            **tags,
            PatientOrientation=letters[view],
            PositionerPrimaryAngle=angles[view][0],
            PositionerSecondaryAngle=angles[view][1],
        )
        for view in range(2)
    ]
    given = (read_radiograph(path) for path in paths)
    pair = assemble_pair(*given, model=MODEL, choices=Choices(intensities="display"))
    assert pair.beam.views == ("lao5_cranial3", "left_lateral")
    assert pair.beam.source_to_isocenter == 1000.0
