# SPDX-License-Identifier: Apache-2.0
"""The expected error of a case in plain words: how far off, between which bounds, and how that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from progressive_cascade.report.wording import Row, Section

_ERRORS = {
    "body_mae_hu": (
        "Mean absolute error inside the body",
        "{:.0f}",
        "How far a voxel of the patient is off on average.",
    ),
    "psnr_3d_db": ("PSNR, 3-D", "{:.1f}", "Over the whole volume; 6 dB more is half the error."),
    "lungs_surface_mm": ("Borders of the lungs", "{:.0f}", "How far they lie from the true ones on average."),
    "body_surface_mm": ("Border of the body", "{:.0f}", "How far it lies from the true one on average."),
}


def expected_cards(record: Mapping[str, Any]) -> list[Row]:
    """The expected error in the body, to see at a glance; none where it is not known."""
    rows = _rows(_expected(record))
    return [Row("Expected error inside the body", rows[0].value, rows[0].meaning)] if rows else []


def expected_sections(record: Mapping[str, Any]) -> list[Section]:
    """All expected errors, or why there are none; no section in a record of before."""
    expected = _expected(record)
    if not expected:
        return []
    rows = _rows(expected)
    if not rows:
        text = f"It is not known how far this CT is off: {expected.get('reason', 'no reason is given')}."
        return [Section("Expected error", "expected", [text])]
    text = (
        "How far this CT is probably off, by what other CTs were off that looked like it to the program. In 9 cases of "
        f"10 the true error lies between the bounds. Calibrated on {expected.get('calibrated_on', 'other patients')}; "
        "a finding that none of those had, nobody expects."
    )
    return [Section("Expected error", "expected", [text], rows=rows)]


def _expected(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("expected_error")
    return found if isinstance(found, Mapping) else {}


def _rows(expected: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, (label, form, meaning) in _ERRORS.items():
        error = expected.get(name)
        if isinstance(error, Mapping) and (numbers := _numbers(error)):
            value, low, high = (form.format(number) for number in numbers)
            rows.append(Row(label, f"about {value} {error.get('unit', '')} ({low} to {high})", meaning))
    return rows


def _numbers(error: Mapping[str, Any]) -> list[float]:
    """Value and bounds; none where the record holds anything else."""
    interval = error.get("interval")
    found = [error.get("value"), *(interval if isinstance(interval, (list, tuple)) else ())]
    good = len(found) == 3 and all(isinstance(each, (int, float)) and math.isfinite(each) for each in found)
    return [float(each) for each in found] if good else []
