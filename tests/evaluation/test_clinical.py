# SPDX-License-Identifier: Apache-2.0
"""Laws of what is measured on a chest, on boxes whose measures are known and on phantoms whose organs are labelled."""

from __future__ import annotations

import math

import numpy as np
import pytest

from progressive_cascade.evaluation.agreement import clinical_table, draw_agreement, limits_of_agreement
from progressive_cascade.evaluation.clinical import (
    MEASURES,
    Chest,
    compare_chests,
    measure_chest,
    score_chests,
    segment_chest,
    surface_distances,
)
from progressive_cascade.phantom import LABELS, generate_phantom

SPACING = 5.0
BODY, RIGHT, LEFT = (slice(4, 60), slice(8, 56), slice(0, 64)), (36, 54), (10, 28)


def chest(right=RIGHT, left=LEFT):
    """A box of water with two boxes of lung, 40 voxels deep and 30 high, and a rod of bone between them."""
    hu = np.full((64, 64, 64), -1000.0)
    hu[BODY] = 40.0
    for start, stop in (right, left):
        hu[start:stop, 12:52, 20:50] = -850.0
    hu[31:33, 12:14, :] = 400.0
    return hu


def test_boxes_have_their_own_measures():
    """Volumes and widths are those of the boxes, to the voxel."""
    measures = measure_chest(segment_chest(chest(), SPACING))
    assert measures["lung_right_ml"] == measures["lung_left_ml"] == 18 * 40 * 30 * 0.125
    assert measures["thorax_width_mm"] == (54 - 10) * SPACING
    assert measures["thorax_depth_mm"] == 40 * SPACING
    assert measures["heart_width_mm"] == (36 - 28) * SPACING
    assert measures["cardiothoracic_ratio"] == pytest.approx(8 / 44)
    assert measures["between_lungs_ml"] == (8 * 40 - 4) * 30 * 0.125


def test_right_is_where_x_rises():
    """A larger right lung is the patient's right: +x."""
    measures = measure_chest(segment_chest(chest(left=(16, 28)), SPACING))
    assert measures["lung_right_ml"] > measures["lung_left_ml"]
    turned = measure_chest(segment_chest(chest(left=(16, 28))[::-1], SPACING))
    assert (turned["lung_right_ml"], turned["lung_left_ml"]) == (measures["lung_left_ml"], measures["lung_right_ml"])


def test_what_agrees_scores_one_and_what_is_shifted_its_shift():
    """Dice is 1 and distances 0 of equal chests; a lung border moved by two voxels is two voxels away."""
    truth = segment_chest(chest(), SPACING)
    same = compare_chests(truth, truth)
    assert all(same[f"{name}_dice"] == 1.0 for name in ("body", "lungs", "bone"))
    assert all(value == 0.0 for name, value in same.items() if name.endswith("_mm"))
    moved = compare_chests(segment_chest(chest(right=(36, 52)), SPACING), truth)
    assert moved["lungs_dice"] == pytest.approx(2 * (16 + 18) / (16 + 18 + 36))
    assert moved["lungs_surface95_mm"] == 2 * SPACING
    assert 0.0 < moved["lungs_surface_mm"] < 2 * SPACING
    assert moved["body_dice"] == 1.0
    with pytest.raises(ValueError, match="found must lie on truth's grid"):
        compare_chests(segment_chest(chest()[::2], SPACING), truth)


def test_distances_are_symmetric():
    """Both surfaces count, whichever is named first."""
    one, other = (np.zeros((20, 20, 20), bool) for _ in range(2))
    one[5:10, 5:15, 5:15] = other[5:13, 5:15, 5:12] = True
    assert sorted(surface_distances(one, other)) == pytest.approx(sorted(surface_distances(other, one)))
    assert not surface_distances(one, np.zeros_like(one)).size


def test_a_volume_without_lungs_has_no_measure():
    """Nothing is made up where nothing can be measured, and nothing of it stands in a table."""
    water = np.full((32, 32, 32), -1000.0)
    water[4:28, 4:28] = 0.0
    found = segment_chest(water, SPACING)
    assert all(math.isnan(value) for value in measure_chest(found).values())
    table = clinical_table(score_chests(found, found))
    assert "body" in table
    assert not set(MEASURES.values()) & set(table)


def test_what_was_not_scanned_does_not_count():
    """Beyond the scanned voxels there is neither body nor lung."""
    valid = np.ones((64, 64, 64))
    valid[:, :, 35:] = 0
    measures = measure_chest(segment_chest(chest(), SPACING, valid=valid))
    assert measures["lung_right_ml"] == 18 * 40 * 15 * 0.125


@pytest.mark.parametrize("seed", [2_000_000, 2_000_001])
def test_a_phantom_is_measured_as_it_was_painted(seed):
    """Lung volumes within 8 % of the labels', the heart's width within 25 mm."""
    phantom = generate_phantom(seed, shape=(96, 96, 96), spacing=256 * 1.4 / 96)
    spacing = 256 * 1.4 / 96
    measures = measure_chest(segment_chest(phantom.hu.astype(np.float32), spacing))
    for side in ("right", "left"):
        painted = (phantom.labels == LABELS[f"lung_{side}"]).sum() * spacing**3 / 1000
        assert measures[f"lung_{side}_ml"] == pytest.approx(painted, rel=0.08)
    heart = np.flatnonzero((phantom.labels == LABELS["heart"]).any(axis=(1, 2)))
    assert measures["heart_width_mm"] == pytest.approx((heart[-1] - heart[0] + 1) * spacing, abs=25.0)


def test_limits_of_agreement_are_those_of_bland_and_altman(tmp_path):
    """Bias and 1.96 standard deviations over patients, whose cases are averaged first; a figure of three patients."""
    measures = {"a": 110.0, "b": 95.0, "c": 101.0}
    cases = [
        {
            "case": name,
            "patient": name[0],
            "scores": {"cascade": {"clinical_lung_left_ml": value, "clinical_true_lung_left_ml": 100.0}, "mean": {}},
        }
        for name, value in [*measures.items(), ("a2", 110.0)]
    ]
    limits = limits_of_agreement(cases)
    assert list(limits) == ["cascade"]
    found = limits["cascade"]["lung_left_ml"]
    differences = np.array(list(measures.values())) - 100.0
    assert found["num_patients"] == 3
    assert found["bias"] == pytest.approx(differences.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * differences.std(ddof=1))
    draw_agreement(cases[:2], tmp_path / "two.png")
    draw_agreement(cases, tmp_path / "three.png")
    assert [path.name for path in tmp_path.iterdir()] == ["three.png"]


def test_lungs_of_which_the_middle_was_not_seen_have_no_heart() -> None:
    """Where no line in the middle of their depth meets both, as in a part of a volume, its width is not known."""
    body = np.ones((40, 40, 20), bool)
    right, left = np.zeros_like(body), np.zeros_like(body)
    for side, place in ((right, slice(25, 38)), (left, slice(2, 15))):
        side[place, 2:6, 2:18] = side[place, 34:38, 2:18] = True
    measured = measure_chest(Chest(body, right, left, np.zeros_like(body), 2.0))
    assert np.isnan(measured["heart_width_mm"]) and measured["thorax_width_mm"] == 72.0
