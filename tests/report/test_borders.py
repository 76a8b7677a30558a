# SPDX-License-Identifier: Apache-2.0
"""Laws of the picture of borders: it shows where they lie, and no grey values."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from progressive_cascade.report.borders import borders_figure


def _ball(radius: float, size: int = 32) -> np.ndarray:
    """Water in air."""
    distance = np.linalg.norm(np.indices((size,) * 3) - (size - 1) / 2, axis=0)
    return np.where(distance < radius, 0, -1000).astype(np.int16)


def test_borders_of_like_volumes_coincide_and_others_do_not(tmp_path) -> None:
    """A smaller ball's line runs inside the truth's area, an equal one's around it."""
    for name, radius in (("same", 10), ("smaller", 6)):
        borders_figure(_ball(10), {name: _ball(radius)}, tmp_path / f"{name}.png", spacing=11.2)
    same, smaller = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("same", "smaller"))
    widths = []
    for picture in (same, smaller):
        amber = (picture[..., 0] > 200) & (picture[..., 2] < 120) & (np.indices(picture.shape[:2])[0] > 150)
        panel = amber[:, : picture.shape[1] // 3]
        columns = np.flatnonzero(panel.any(axis=0))
        widths.append(np.ptp(columns))
    assert widths[1] / widths[0] == pytest.approx(0.6, abs=0.08)


def test_borders_show_nothing_of_what_lies_inside(tmp_path) -> None:
    """Truths whose insides differ, well away from any border, give the same picture, byte for byte."""
    core = _ball(7) > -1000
    for name, value in (("soft", 100), ("hard", 300)):
        truth = np.where(core, value, _ball(10)).astype(np.int16)
        borders_figure(truth, {"ball": _ball(9)}, tmp_path / f"{name}.png", spacing=11.2)
    assert (tmp_path / "soft.png").read_bytes() == (tmp_path / "hard.png").read_bytes()


def test_borders_refuse_what_does_not_compare(tmp_path) -> None:
    """Another shape, or more lines than colours."""
    with pytest.raises(ValueError, match=r"reconstructions\['a'\] must have the truth's shape"):
        borders_figure(_ball(3), {"a": _ball(3, size=16)}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="must be 1 to 3, got 4"):
        borders_figure(_ball(3), dict.fromkeys("abcd", _ball(3)), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
