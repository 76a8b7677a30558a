# SPDX-License-Identifier: Apache-2.0
"""Laws of a comparison: places in the world count, what was not measured does not, and an alignment undoes both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from progressive_cascade.ct.placement import PreparedCase, place_ct
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.comparison import compare
from progressive_cascade.evaluation.metrics import evaluate_volume
from progressive_cascade.phantom import generate_phantom

SPACING = 5.6


@pytest.fixture(scope="module")
def truth() -> PreparedCase:
    """A simulated patient of 64³ voxels, away from the world's origin, the lowest slices not scanned."""
    phantom = generate_phantom(2_000_003, shape=(64, 64, 64), spacing=SPACING)
    affine = phantom.affine.copy()
    affine[:3, 3] += (40.0, -25.0, 700.0)
    valid = np.ones(phantom.hu.shape, np.uint8)
    valid[:, :, :8] = 0
    return PreparedCase(phantom.hu, valid, affine, (64, 64, 64), (SPACING,) * 3, 358.4, 0.0, 0.0)


def _moved(affine: np.ndarray, by: tuple[float, float, float]) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += by
    return moved


def test_the_same_volume_has_no_error(truth: PreparedCase) -> None:
    """Where both lie on the same place nothing is interpolated, and every measure agrees."""
    found = compare(truth.hu, truth.affine, truth)
    assert found.scores["native_mae_hu"] < 0.01 and found.overlap == 1.0 and found.aligned is None
    assert found.scores["clinical_body_dice"] == 1.0
    assert found.scores["clinical_lung_left_ml"] == found.scores["clinical_true_lung_left_ml"] > 500


def test_what_was_not_scanned_does_not_count(truth: PreparedCase) -> None:
    """Whatever the reconstruction shows there."""
    hu = np.where(truth.valid > 0, truth.hu, 1000)
    assert compare(hu, truth.affine, truth).scores["native_mae_hu"] < 0.01


def test_orientation_and_voxel_size_do_not_matter(truth: PreparedCase) -> None:
    """A copy whose axes run the other way, on voxels half as large, lies where it lay."""
    fine = np.repeat(np.repeat(np.repeat(truth.hu, 2, 0), 2, 1), 2, 2)[::-1, ::-1]
    affine = truth.affine @ np.diag([-0.5, -0.5, 0.5, 1.0])
    affine[:3, 3] = (truth.affine @ np.array([63.25, 63.25, -0.25, 1.0]))[:3]
    found = compare(fine, affine, truth)
    assert found.scores["native_psnr_3d_db"] > 30 and found.scores["clinical_body_dice"] > 0.99


def test_a_place_beside_it_costs_and_is_undone(truth: PreparedCase) -> None:
    """Two voxels aside the score falls by what it should; aligned, nothing is left of it."""
    found = compare(truth.hu, _moved(truth.affine, (2 * SPACING, 0, 0)), truth, similarity=True)
    aside = np.roll(truth.hu, 2, axis=0)
    expected = evaluate_volume(aside, truth.hu, valid=truth.valid)["native_psnr_3d_db"]
    assert found.scores["native_psnr_3d_db"] == pytest.approx(expected, abs=0.3)
    assert found.similarity is not None and found.aligned_scores is not None
    assert found.similarity.shift[0] == pytest.approx(2 * SPACING, abs=0.1)
    assert found.aligned_scores["native_psnr_3d_db"] > expected + 15


def test_what_lies_elsewhere_is_refused_or_laid_on_the_middle(truth: PreparedCase) -> None:
    """A volume half a metre away has no place to believe: one line says how much of the body lies in it."""
    away = _moved(truth.affine, (0, 0, -500))
    with pytest.raises(UserError, match="0 % of the CT's body in it; where it does not know its place, align them"):
        compare(truth.hu, away, truth)
    found = compare(truth.hu, away, truth, similarity=True)
    assert not found.scores and found.overlap == 0 and found.aligned_scores is not None
    assert found.aligned_scores["native_psnr_3d_db"] > 40


def test_what_lies_far_aside_is_aligned_whole(truth: PreparedCase) -> None:
    """Nothing is cut off by the CT's cube on the way, and how it lay is said from where it lay."""
    for by in ((100.0, 0.0, 0.0), (0.0, 0.0, -130.0), (30.0, 400.0, -60.0)):
        found = compare(truth.hu, _moved(truth.affine, by), truth, similarity=True)
        assert found.similarity is not None and found.aligned_scores is not None
        assert np.allclose(found.similarity.shift, by, atol=1.0) and found.aligned_overlap == pytest.approx(1, abs=0.01)
        assert found.aligned_scores["native_body_mae_hu"] < 15, by


def test_what_a_reconstruction_does_not_reach_does_not_count(truth: PreparedCase) -> None:
    """A part of the volume is scored as that part, before and after an alignment; NaN is as good as an end."""
    part, unknown = slice(0, 40), truth.hu.astype(np.float32)
    unknown[40:] = np.nan
    cut, holed = (compare(hu, truth.affine, truth, similarity=True) for hu in (truth.hu[part], unknown))
    for found in (cut, holed):
        assert found.overlap == pytest.approx(cut.overlap) and 0.5 < found.overlap < 0.9
        assert found.scores["native_body_mae_hu"] < 0.01 and found.aligned_scores is not None
        assert found.aligned_scores["native_body_mae_hu"] < 15 and found.aligned_overlap == pytest.approx(
            found.overlap, abs=0.02
        )


def test_voxels_that_are_finer_are_smoothed_as_the_cts_were() -> None:
    """A noisy CT that stands on the cube has nearly no error against itself."""
    phantom = generate_phantom(2_000_003, shape=(128, 128, 128), spacing=SPACING / 2)
    noisy = phantom.hu + np.random.default_rng(0).normal(0, 100, phantom.hu.shape).astype(np.float32)
    case = place_ct(noisy, phantom.affine, shape=(64, 64, 64), spacing=SPACING, remove_table=False)
    assert compare(noisy, phantom.affine, case).scores["native_body_mae_hu"] < 1


def test_what_cannot_be_compared_is_refused(truth: PreparedCase) -> None:
    """Air, a few slices, and what an alignment brings nowhere."""
    with pytest.raises(UserError, match="the reconstruction must show a body"):
        compare(np.full_like(truth.hu, -1000), truth.affine, truth, similarity=True)
    with pytest.raises(UserError, match=r"must lie on the CT after an alignment, got .* % of the CT's body in it"):
        compare(truth.hu[:, :, 20:26], _moved(truth.affine, (0, 0, 20 * SPACING)), truth, similarity=True)


def test_what_no_alignment_lays_on_the_ct_is_scored_as_it_lies(truth: PreparedCase) -> None:
    """A body five times as large is nowhere found; the scores at its place are there."""
    affine = truth.affine @ np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:3, 3] += truth.isocenter - (affine @ np.array([31.5, 31.5, 31.5, 1.0]))[:3]
    found = compare(truth.hu, affine, truth, similarity=True)
    assert found.scores == compare(truth.hu, affine, truth).scores
    assert found.similarity is None and found.aligned_scores is None


def test_a_ct_without_a_body_is_refused(truth: PreparedCase) -> None:
    """Nothing but air is nothing to compare with."""
    with pytest.raises(UserError, match="the CT must show a body"):
        compare(truth.hu, truth.affine, replace(truth, hu=np.full_like(truth.hu, -1000)))
