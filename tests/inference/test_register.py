# SPDX-License-Identifier: Apache-2.0
"""Laws of films brought into register: a lateral goes where it is explained best, and stays where it is as good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from scipy import ndimage

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.inference import register as module
from progressive_cascade.inference.first_look import Explained
from progressive_cascade.inference.register import Move, move_films, register
from progressive_cascade.radiograph.pair import Pair

BEAM = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))
NETWORK = cast(Any, None)
MM = BEAM.pixel_spacing[0] / BEAM.magnification
"""A row, in the isocenter's plane."""


def _films() -> np.ndarray:
    """Two smooth pictures without symmetry (2, 128, 128)."""
    noise = np.random.default_rng(3).normal(size=(2, 128, 128))
    smooth = np.stack([ndimage.gaussian_filter(view, 6) for view in noise])
    return (3 + 60 * smooth).astype(np.float32)


def _pair(image: np.ndarray, weights: np.ndarray | None = None, *, sized: bool = False) -> Pair:
    return Pair(image, weights, BEAM, "display", sized=sized)


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], None]:
    """Stage 1 explains these films, whatever it is given."""

    def explain(truth: np.ndarray) -> None:
        def pairs(_: Any, images: np.ndarray, __: Any, *, calibrated: bool, weights: np.ndarray) -> Explained:
            assert not calibrated
            return Explained(cast(Any, None), np.stack([truth] * len(images)), images, weights > 0.5)

        monkeypatch.setattr(module, "explain_pairs", pairs)
        monkeypatch.setattr(module, "detour", lambda *_: None)

    return explain


def test_moved_lateral_lies_where_it_is_said() -> None:
    """Five rows down, the frontal untouched; what comes in at the top has no weight."""
    films = _films()
    image, weights = move_films(_pair(films), Move(5 * MM))
    assert np.array_equal(image[0], films[0]) and weights[0].all()
    np.testing.assert_allclose(image[1, 6:], films[1, 1:-5], atol=1e-3)
    assert not weights[1, :5].any() and weights[1, 6:].all()
    assert move_films(_pair(films), Move())[0] is films


def test_scaled_lateral_keeps_the_central_ray() -> None:
    """Ten per cent larger about the middle; a pixel that had no weight has none where it went."""
    films, weights = _films(), np.ones((2, 128, 128), dtype=np.float32)
    weights[1, :, :20] = 0
    image, seen = move_films(_pair(films, weights), Move(lateral=1.1))
    middle = 63.5
    for row, col in ((30, 40), (90, 100), (64, 64)):
        source = ndimage.map_coordinates(
            films[1], [[middle + (row - middle) / 1.1], [middle + (col - middle) / 1.1]], order=1
        )
        assert image[1, row, col] == pytest.approx(float(source[0]), abs=1e-3)
    assert not seen[1, :, :14].any() and seen[1, :, 18:].all()


@pytest.mark.parametrize(
    ("down", "size", "both"),
    [(22.0, 1.0, 1.0), (-30.0, 1.06, 1.0), (8.0, 0.9, 1.0), (0.0, 1.0, 1.12), (-13.0, 1.0, 0.9), (13.0, 0.94, 1.1)],
)
def test_films_out_of_place_are_brought_back(explained, down: float, size: float, both: float) -> None:
    """Most of the way, in both views, with what was done in a note."""
    films = _films()
    explained(films)
    misplaced, seen = move_films(_pair(films), Move(down, both, size * both))
    found = register(NETWORK, _pair(2 * misplaced + 1, seen))
    assert found.weights is not None
    (note,) = found.notes
    assert ("was moved" in note) == (down != 0 or "moved" in note) and "so the first stage" in note
    for view in range(2):
        before = np.abs(misplaced[view] - films[view])[seen[view] > 0].mean()
        after = np.abs((found.image[view] - 1) / 2 - films[view])[found.weights[view] > 0].mean()
        assert after < max(0.4 * before, 0.02)


def test_films_of_known_size_are_moved_alone(explained) -> None:
    """Their size is believed, whatever would explain them better."""
    films = _films()
    explained(films)
    misplaced, seen = move_films(_pair(films), Move(26.0, 1.1, 1.1))
    found = register(NETWORK, _pair(misplaced, seen, sized=True))
    assert "moved up" in found.notes[0] and "size" not in found.notes[0].split(":")[0]


def test_films_in_register_stay(explained) -> None:
    """The very pair; also where moving it explains only a little more."""
    films = _films()
    explained(films)
    pair = _pair(films)
    assert register(NETWORK, pair) is pair
    noise = np.random.default_rng(0).normal(size=films.shape).astype(np.float32)
    noisy = _pair(films + 0.2 * films.std() * noise)
    assert register(NETWORK, noisy) is noisy


_TRIED = [Move(down, 0.92 + size, 0.92 - size / 3) for down in (-30.0, -10.0, 5.0, 20.0) for size in (-0.1, 0.0, 0.06)]
_TRIED += [Move(10.0, size, size) for size in (0.8, 0.9, 1.0)]


def test_likeliest_move_lies_between_those_tried() -> None:
    """Of shares that grow with the square of the way from a move it is that one, whether it was tried or not."""
    true = np.array(Move(12.0, 0.88, 0.9).deviations(sized=False))
    left = {
        move: 0.2 * float(np.exp(0.3 * np.sum((np.array(move.deviations(sized=False)) - true) ** 2))) for move in _TRIED
    }
    found = module._likeliest(left, sized=False)
    assert found.down == pytest.approx(12, abs=2) and found[1:] == pytest.approx((0.88, 0.9), abs=0.015)


def test_likeliest_of_equals_is_what_is_likely() -> None:
    """Films that are explained alike everywhere are of the likely size and at one height."""
    assert module._likeliest(dict.fromkeys(_TRIED, 0.3), sized=False) == Move(0.0, 0.92, 0.92)
    heights = [Move(down) for down in (-26.0, -13.0, 13.0, 26.0)]
    assert module._likeliest(dict.fromkeys(heights, 0.3), sized=True) == Move()


def test_blank_films_stay(explained) -> None:
    """Without contrast nothing is explained anywhere; nor by a stage that shows none."""
    blank, films = np.full((2, 128, 128), 2.0, dtype=np.float32), _films()
    for shown, taken in ((films, blank), (blank, films)):
        explained(shown)
        pair = _pair(taken)
        assert register(NETWORK, pair) is pair
