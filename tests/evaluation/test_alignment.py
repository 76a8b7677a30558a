# SPDX-License-Identifier: Apache-2.0
"""Laws of the similarity alignment: it finds what was done to a volume, and undoes it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from progressive_cascade.evaluation.alignment import Similarity, align, find_similarity
from progressive_cascade.evaluation.metrics import evaluate_volume
from progressive_cascade.phantom import generate_phantom

SPACING = 5.6


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """A simulated patient on stage 1's grid."""
    return generate_phantom(2_000_003, shape=(64, 64, 64), spacing=SPACING).hu.astype(np.float32)


def _lay(hu: np.ndarray, scale: float, angle: float, shift: tuple[float, float, float]) -> np.ndarray:
    """The body so many times as large, turned about z, its middle so far aside [mm], with the same line integrals."""
    turn = Rotation.from_euler("z", angle, degrees=True).as_matrix() * scale
    middle, inverse = (np.array(hu.shape) - 1) / 2, np.linalg.inv(turn)
    offset = middle - inverse @ (middle + np.array(shift) / SPACING)
    laid = ndimage.affine_transform(hu, inverse, offset, order=1, mode="nearest")
    return (laid + 1000) / scale - 1000


@pytest.mark.parametrize(
    ("scale", "angle", "shift"),
    [(1.05, 0, (0, 0, 0)), (0.93, 0, (0, 0, 0)), (1.0, 4, (0, 0, 0)), (1.0, 0, (8, -5, 3)), (1.03, -3, (4, 6, -8))],
)
def test_what_was_done_is_found_and_undone(
    truth: np.ndarray, scale: float, angle: float, shift: tuple[float, float, float]
) -> None:
    """Scale, angle and shift come out, and the body lies on the truth up to the blur of two interpolations."""
    laid = _lay(truth, scale, angle, shift)
    found, similarity = align(laid, truth, spacing=SPACING)
    assert similarity.scale == pytest.approx(scale, abs=0.003)
    assert similarity.angle == pytest.approx(abs(angle), abs=0.2)
    assert np.allclose(similarity.shift, shift, atol=0.3)
    turn = Rotation.from_euler("z", angle, degrees=True).as_matrix() * scale
    assert np.allclose(similarity.matrix[:3, :3], turn, atol=0.005) and np.allclose(
        similarity.matrix[:3, 3], shift, atol=0.3
    )
    before, after = (evaluate_volume(hu, truth)["native_psnr_3d_db"] for hu in (laid, found))
    assert after > max(31, before + 4)


def test_what_lies_right_stays(truth: np.ndarray) -> None:
    """Nothing is moved that lies on the truth already; twice gives the same."""
    found, similarity = align(truth, truth, spacing=SPACING)
    assert similarity == Similarity(1.0, 0.0, (0.0, 0.0, 0.0))
    assert np.array_equal(found, truth.clip(-1024, 1024))
    laid = _lay(truth, 1.02, 1, (2, 0, 0))
    assert align(laid, truth, spacing=SPACING)[1] == align(laid, truth, spacing=SPACING)[1]


def test_what_the_scanner_did_not_see_does_not_count(truth: np.ndarray) -> None:
    """Whatever stands in the truth where nothing was measured, the body is found."""
    valid = np.zeros(truth.shape, np.uint8)
    valid[:, :, 16:48] = 1
    spoilt = np.where(valid > 0, truth, 1000).astype(np.float32)
    _, similarity = align(_lay(truth, 1.04, 0, (0, 6, 0)), spoilt, spacing=SPACING, valid=valid)
    assert similarity.scale == pytest.approx(1.04, abs=0.005) and similarity.shift[1] == pytest.approx(6, abs=0.5)


def test_what_the_reconstruction_does_not_reach_does_not_count(truth: np.ndarray) -> None:
    """Whatever stands where it shows nothing, the body is found."""
    reached = np.zeros(truth.shape, np.uint8)
    reached[12:56, :, 8:] = 1
    cut = np.where(reached > 0, _lay(truth, 1.04, 0, (0, 6, 0)), 1000).astype(np.float32)
    found = find_similarity(cut, truth, spacing=SPACING, reached=reached)
    assert found.scale == pytest.approx(1.04, abs=0.005) and found.shift[1] == pytest.approx(6, abs=0.5)


def test_shapes_must_agree(truth: np.ndarray) -> None:
    """Two grids are refused, with both shapes."""
    with pytest.raises(ValueError, match=r"truth's shape \(64, 64, 64\), got \(32, 64, 64\)"):
        align(truth[::2], truth, spacing=SPACING)
    with pytest.raises(ValueError, match="valid must have truth's shape"):
        align(truth, truth, spacing=SPACING, valid=truth[1:])


def test_it_is_told_in_words() -> None:
    """How it lay, as a person reads it."""
    told = str(Similarity(1.0512, 2.04, (3.0, 4.0, 0.0)))
    assert told == "1.051 times as large, turned 2.0°, 5.0 mm aside"
