# SPDX-License-Identifier: Apache-2.0
"""Laws of the benchmark of simulated films: what varies follows from a number, and stays in its range."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from progressive_cascade.phantom import generate_phantom
from progressive_cascade.training.cases import Case

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import films


def test_films_are_cropped_grey_pictures_that_follow_from_a_number(tmp_path: Path) -> None:
    """Both of one size, 80 to 100 % of the detector, all grey levels in use; the same again."""
    phantom = generate_phantom(2_000_001, shape=(64, 64, 64), spacing=5.6)
    case, shown = Case("phantom", "phantom", phantom.hu, phantom.affine, None), []
    for folder in ("first", "again"):
        (tmp_path / folder).mkdir()
        pair = films.make_films(case, 3, tmp_path / folder)
        shown.append([np.asarray(Image.open(path)) for path in pair])
    for views in shown:
        assert views[0].shape == views[1].shape and 0.8 * 512 <= views[0].shape[0] <= 512
        assert all((view.min(), view.max()) == (0, 255) for view in views)
    assert all(np.array_equal(one, two) for one, two in zip(shown[0], shown[1], strict=True))
