# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the expected error: what is expected and what is refused, and the tables of both."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from progressive_cascade.evaluation.trust import summarize
from progressive_cascade.inference.trust import Line, Term, Trust
from published.trust import TRUST_TABLES
from trust import expect_all

TRUST = Trust(
    {}, "", 8, 3, {"body_mae_hu": Line(4.0, (Term("noise", 1.0, 0.0, 1.0, -1.0, 1.0),), -0.1, 0.1)}, {}, "two"
)


def _record(patient: str, noise: float | None, true: float) -> dict[str, Any]:
    told = {"name": f"{patient}_0", "patient": patient, "group": "test", "perturbation": "nominal"}
    errors = {"body_mae_hu": true, "psnr_3d_db": 20.0, "lungs_surface_mm": None, "body_surface_mm": 3.0}
    return {**told, "signs": {"noise": noise}, "errors": errors, "undeclared": False}


def test_tables_tell_what_was_expected_and_what_was_not() -> None:
    """A row for each expected error, the reason for a case that has none, coverage and ranks over the rest."""
    records = [_record("a", 0.0, 54.0), _record("b", 0.5, 90.0), _record("c", 1.0, 149.0), _record("d", None, 1.0)]
    rows, refused = expect_all(records, TRUST)
    assert [row["patient"] for row in rows] == ["a", "b", "c"] and [case["patient"] for case in refused] == ["d"]
    assert math.isclose(rows[0]["expected"], math.exp(4.0))
    errors = summarize([{**row, "group": "patients"} for row in rows])
    assert errors["body_mae_hu"]["all"]["rank_correlation"] == 1.0 and errors["body_mae_hu"]["all"]["coverage"] == 1.0
    shares = {"before": {"shares": [0.7, 0.9]}, "after": {"shares": [0.68, 0.95]}}
    report = {"errors": errors, "sigma": {"body": shares, "patients": 3}, "test": {"rows": rows, "refused": refused}}
    main, sigma, cases = (TRUST_TABLES[f"trust {name}"](report) for name in ("main", "sigma", "test"))
    assert main[2].startswith("| MAE in the body [HU], all | 3 | 0 | 3 | 1.00 | 100% |")
    assert sigma[3] == "| body | 70.0% → 68.0% | 90.0% → 95.0% |"
    assert cases[2] == "| a | nominal | 55 (49 to 60) | 54 |" and "none: unlike the cases" in cases[5]
