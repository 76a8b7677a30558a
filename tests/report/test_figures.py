# SPDX-License-Identifier: Apache-2.0
"""What stands on pictures: names of views and sides of the patient."""

from __future__ import annotations

import numpy as np
import pytest

from progressive_cascade.report import figures
from progressive_cascade.report.drawing import view_sides, view_title
from progressive_cascade.report.figures import volume_figure


@pytest.mark.parametrize(
    ("view", "named", "sides"),
    [
        ("pa", "PA", ("R", "L")),
        ("ap", "AP", ("R", "L")),
        ("left_lateral", "Left lateral", ("A", "P")),
        ("right_lateral", "Right lateral", ("P", "A")),
        ("lao9.5", "LAO 9.5", ("R", "L")),
        ("lao81_caudal4", "LAO 81 caudal 4", ("A", "P")),
    ],
)
def test_a_picture_says_which_view_it_shows_and_what_lies_at_its_sides(view, named, sides):
    """A right lateral has the patient's front on the right, whatever stands beside it."""
    assert (view_title(view), view_sides(view)) == (named, sides)


def test_a_volumes_picture_names_its_own_views(tmp_path, monkeypatch):
    """What is written on the picture is what the geometry says, not the usual pair."""
    said = []
    monkeypatch.setattr(figures, "caption", lambda _, text: said.append(text))
    image, hu = np.ones((2, 16, 16), dtype=np.float32), np.zeros((8, 8, 8), dtype=np.int16)
    volume_figure(hu, 40.0, tmp_path / "a.png", radiographs=image, views=("ap", "right_lateral"))
    assert said[:2] == ["AP", "Right lateral"]
