# SPDX-License-Identifier: Apache-2.0
"""Ranges of geometries: what is drawn lies inside, what lies outside is named with its share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from progressive_cascade.geometry import ConeBeam, GeometryErrors, GeometryRange, parse_errors, parse_range

BEAM = ConeBeam()
TRAINED = BEAM.projection_matrices()
RANGE = GeometryRange((600.0, 1900.0), (300.0, 430.0), turn=10.0, offset=30.0, opposite=True)


def test_what_is_drawn_lies_inside_the_range_and_fills_it() -> None:
    """500 draws: none misfits, distances reach both ends, half of the views look from the other side."""
    random = np.random.default_rng(0)
    drawn = [RANGE.draw(BEAM, random) for _ in range(500)]
    assert not any(RANGE.misfits(matrices, TRAINED, 512) for matrices in drawn)
    depths = np.array([matrices[0, 2, 3] for matrices in drawn])
    assert depths.min() < 620 and depths.max() > 1880
    front = np.mean([matrices[0, 2, 1] < 0 for matrices in drawn])
    assert 0.4 < front < 0.6


def test_distances_behind_the_isocenter_do_not_matter() -> None:
    """The same rays on a detector farther away, with pixels as much larger, are the same matrices."""
    near, far = ConeBeam(1500, 1600, pixel_spacing=(0.8, 0.8)), ConeBeam(1500, 2000, pixel_spacing=(1.0, 1.0))
    np.testing.assert_allclose(near.projection_matrices(), far.projection_matrices(), rtol=1e-12)


@pytest.mark.parametrize(
    ("beam", "name", "beyond"),
    [
        (ConeBeam(1500 * 1.05, 1800 * 1.05), "distance from source to isocenter", 1.05 / 1.02 - 1),
        (ConeBeam(1500, 1800, pixel_spacing=(0.9, 0.9)), "width of the detector's field", 0.9 / 0.84 / 1.02 - 1),
        (replace(BEAM, views=("lao1", "left_lateral")), "turn", 1.0),
        (replace(BEAM, views=("ap", "left_lateral")), "turn", 359.0),
    ],
)
def test_a_checkpoint_without_a_range_keeps_to_its_own_geometry(beam: ConeBeam, name: str, beyond: float) -> None:
    """Two per cent and half a degree about its own matrices; what lies beyond is named with its share."""
    narrow = GeometryRange.around(TRAINED, 512)
    assert narrow.misfits(TRAINED, TRAINED, 512) == []
    worst = narrow.misfits(beam.projection_matrices(), TRAINED, 512)[0]
    assert name in worst.name
    assert worst.beyond == pytest.approx(beyond, rel=1e-3)


def test_a_turn_is_measured_about_the_worst_axis() -> None:
    """Twelve degrees are a fifth more than ten, from either side of the patient."""
    for view in ("lao12", "rao12"):
        found = RANGE.misfits(replace(BEAM, views=(view, "left_lateral")).projection_matrices(), TRAINED, 512)
        assert [(each.name, each.view) for each in found] == [("turn [degrees]", 0)]
        assert found[0].beyond == pytest.approx(0.2)


def test_a_range_survives_a_checkpoint_and_a_config() -> None:
    """Seven numbers, or a mapping of its fields with lists for pairs."""
    assert GeometryRange.from_values(RANGE.to_values()) == RANGE
    fields = {"source_to_isocenter": [600, 1900], "field": [300, 430], "turn": 10, "offset": 30, "opposite": True}
    assert parse_range(fields) == RANGE
    assert parse_range(None) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source_to_isocenter": [1900, 600], "field": [300, 430]}, "source_to_isocenter must ascend"),
        ({"source_to_isocenter": [600, 1900]}, r"keys \['field'\] must be given"),
        ({"source_to_isocenter": [600, 1900], "field": [300, 430], "turns": 3}, r"unknown keys \['turns'\]"),
        ({"source_to_isocenter": [600, 1900], "field": [300, 430], "turn": -1}, "turn must be at least 0"),
        ({"source_to_isocenter": [600, 1900], "field": [300, 430], "turn": 90}, "turn must be at most 45"),
    ],
)
def test_impossible_ranges_are_refused(values: dict, message: str) -> None:
    """One line that names the field."""
    with pytest.raises(ValueError, match=message):
        parse_range(values)


def test_errors_move_scale_and_turn_no_more_than_said() -> None:
    """The isocenter's image moves, the picture grows about its middle, axes turn: each up to its limit, and near it."""
    random, size, true = np.random.default_rng(0), 512, TRAINED
    pitch = BEAM.pixel_spacing[0] / BEAM.magnification
    errors = GeometryErrors(size=0.05, shift=12.0, turn=2.0)
    shifts, scales, turns = [], [], []
    for _ in range(200):
        for told, was in zip(errors.apply(true, size, random), true, strict=True):
            shifts.append(np.abs(told[:2, 3] / told[2, 3] - was[:2, 3] / was[2, 3]).max() * pitch)
            scales.append(np.linalg.norm(_across(told)) / np.linalg.norm(_across(was)) - 1)
            turns.append(np.degrees(np.arccos(np.clip(told[2, :3] @ was[2, :3], -1, 1))))
    assert 11 < max(shifts) <= 12.001
    assert 0.045 < np.abs(scales).max() < 0.0501
    assert 1.8 < max(turns) <= 2 * np.sqrt(3)
    np.testing.assert_allclose(GeometryErrors().apply(true, size, random), true, atol=1e-9)


def _across(matrix: np.ndarray) -> np.ndarray:
    """What of the columns' direction is not along the central ray."""
    return matrix[0, :3] - (matrix[0, :3] @ matrix[2, :3]) * matrix[2, :3]


@pytest.mark.parametrize("values", [{"size": -0.1}, {"shift": 1e9}, {"turn": float("nan")}, {"height": 3}])
def test_impossible_errors_are_refused(values: dict) -> None:
    """Each names the key."""
    with pytest.raises(ValueError, match=next(iter(values))):
        parse_errors(values)
