# SPDX-License-Identifier: Apache-2.0
"""Laws of the benchmark of geometries: what is not measured again."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import geometries


def test_only_what_other_weights_measured_is_measured_again() -> None:
    """Rows stay with the weights that made them, and go where these have changed."""
    rows = [{"weights": "any", "case": "a"}, {"weights": "stand", "case": "a"}]
    earlier = {"weights": {"any": "1", "stand": "2"}, "rows": rows}
    assert geometries.of_weights(earlier, {"any": "1", "stand": "2"}) == earlier
    found = geometries.of_weights(earlier, {"any": "3", "stand": "2"})
    assert found == {"weights": {"any": "3", "stand": "2"}, "rows": rows[1:]}
