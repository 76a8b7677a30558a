# SPDX-License-Identifier: Apache-2.0
"""Laws of what assumptions are said to cost: what was measured, told once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from progressive_cascade.radiograph.assumptions import COST_OF_LENGTH, COST_OF_SCALE, tell_cost_once

MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "robustness.json"


@pytest.fixture(scope="module")
def lost() -> dict[tuple[str, float, str], float]:
    """PSNR lost against a pair of which nothing is wrong [dB], by condition, degree and what was told."""
    summary: list[dict[str, Any]] = json.loads(MEASURED.read_text(encoding="utf-8"))["summary"]
    psnr = {
        (point["condition"], point["value"], point["told"]): point["scores"]["native_psnr_3d_db"]["mean"]
        for point in summary
    }
    nominal = psnr["nominal", 0.0, "calibrated"]
    return {point: nominal - value for point, value in psnr.items()}


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+) dB", text)]


def test_costs_are_those_that_were_measured(lost: dict[tuple[str, float, str], float]) -> None:
    """To a tenth of a decibel: lengths at 2 and 5 %, intensities of which less is known."""
    lengths = [lost["distance", degree, "calibrated"] for degree in (2.0, 5.0)]
    assert _numbers(COST_OF_LENGTH) == pytest.approx(lengths, abs=0.05)
    assert re.findall(r"(\d+) %", COST_OF_LENGTH) == ["2", "5"]
    assert "next to nothing" in COST_OF_SCALE["scaled"] and abs(lost["scale", 1.0, "scaled"]) < 0.05
    assert _numbers(COST_OF_SCALE["display"]) == pytest.approx([lost["display", 1.0, "display"]], abs=0.05)


def test_what_a_length_costs_is_told_once() -> None:
    """The first line says it, the others refer to it."""
    first, other, last = tell_cost_once([f"a is 1 mm: {COST_OF_LENGTH}", "b", f"c is 2 mm: {COST_OF_LENGTH}"])
    assert COST_OF_LENGTH in first and other == "b" and last == "c is 2 mm: an error costs as much"
