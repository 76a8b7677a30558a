# SPDX-License-Identifier: Apache-2.0
"""Laws of bringing a radiograph onto the model's detector."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from progressive_cascade.radiograph.onto import fill, find_border, find_markers, open_field, resample, turn
from tests.support.radiographs import grey, phantom_pair, signal

DETECTOR = {"target_spacing": (2.0, 2.0), "target_offset": (0.0, 0.0)}


def _everywhere(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape, dtype=bool)


def test_resampling_onto_itself_changes_nothing():
    """The same detector: every pixel as it was, to the last bit."""
    image = np.random.default_rng(0).random((64, 80)).astype(np.float32)
    same, seen = resample(image, _everywhere(image), spacing=(2, 2), offset=(0, 0), shape=(64, 80), **DETECTOR)
    np.testing.assert_array_equal(same, image)
    assert seen.all()


def test_resampling_averages_blocks():
    """Pixels of half the pitch are averaged two by two."""
    image = np.random.default_rng(0).random((64, 80)).astype(np.float32)
    coarse, _ = resample(image, _everywhere(image), spacing=(1, 1), offset=(0, 0), shape=(32, 40), **DETECTOR)
    np.testing.assert_allclose(coarse, image.reshape(32, 2, 40, 2).mean(axis=(1, 3)), rtol=1e-5)


@pytest.mark.parametrize("pitch", [0.37, 1.3, 3.1])
def test_resampling_keeps_the_place_and_never_stretches(pitch: float):
    """A disc of 20 mm around a point 7 mm off the central ray is found there, as large, at any pitch and aspect."""
    pitches = (pitch, 0.8 * pitch)
    shape = tuple(round(120 / step) for step in pitches)
    row, col = ((np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, pitches, strict=True))
    disc = (np.hypot(row[:, None] - 4, col[None] + 9) < 20).astype(np.float32)
    image, _ = resample(disc, _everywhere(disc), spacing=pitches, offset=(3.0, -2.0), shape=(80, 80), **DETECTOR)
    place = (np.arange(80) - 39.5) * 2
    total = image.sum()
    assert abs((image.sum(axis=1) @ place) / total - 7) < 0.6
    assert abs((image.sum(axis=0) @ place) / total + 11) < 0.6
    assert total * 4 == pytest.approx(disc.sum() * pitches[0] * pitches[1], rel=0.03)


def test_small_radiograph_is_padded_and_masked():
    """Beyond the radiograph weights are 0, and the image goes on with its edge."""
    image = np.full((40, 40), 3.0, dtype=np.float32)
    padded, seen = resample(image, _everywhere(image), spacing=(2, 2), offset=(0, 0), shape=(64, 64), **DETECTOR)
    assert seen.sum() == 1600 and (padded == 3).all()


@pytest.mark.parametrize(("columns", "rows"), [*product("LR", "HF"), *[(b, a) for a, b in product("LR", "HF")]])
def test_turning_undoes_all_eight_ways(columns: str, rows: str):
    """However stored, a radiograph whose directions are known ends up as it is read."""
    truth = np.arange(12).reshape(3, 4)
    opposite = dict(zip("LRHF", "RLFH", strict=True))
    stored, letters = truth, ["L", "F"]
    if columns in "HF":
        stored, letters = stored.T, ["F", "L"]
    if letters[0] == opposite[columns]:
        stored = stored[:, ::-1]
    if letters[1] == opposite[rows]:
        stored = stored[::-1]
    np.testing.assert_array_equal(turn(stored, (columns, rows), ("L", "F"))[0], truth)


def test_border_and_marker_are_found_and_nothing_else():
    """A collimator's border and a lead letter are masked; the patient without them is not."""
    image = grey(phantom_pair(256)[0], 4095).astype(np.float32)
    assert find_border(image).all() and not find_markers(image, (1.68, 1.68)).any()
    marked = image.copy()
    marked[30:38, 20:24] = 4095
    assert find_markers(marked, (1.68, 1.68))[32, 22]
    assert find_markers(marked, (1.68, 1.68)).mean() < 0.01
    collimated = image.copy()
    collimated[:, :20] = 4095
    assert not find_border(collimated)[:, :20].any() and find_border(collimated)[:, 21:].all()


def test_open_field_is_the_unattenuated_signal():
    """60000 counts beside the patient, though noise makes some pixels brighter; none where he fills the picture."""
    counts = signal(phantom_pair(256)[0])
    noisy = np.random.default_rng(0).poisson(counts).astype(np.float32)
    assert open_field(noisy, _everywhere(noisy)) == pytest.approx(60000, rel=0.002)


def test_filling_takes_the_nearest_pixel():
    """A masked column takes its neighbour's values."""
    image = np.tile(np.arange(6.0), (4, 1))
    seen = np.ones((4, 6), dtype=bool)
    seen[:, 5] = False
    assert (fill(image, seen)[:, 5] == 4).all()
