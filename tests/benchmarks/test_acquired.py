# SPDX-License-Identifier: Apache-2.0
"""Laws of the benchmark of acquired films: who is a pair, what the table counts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import acquired
from progressive_cascade.errors import UserError
from published.acquired import acquired_table


def _row(number: int, *, mismatched: bool = False, **more: Any) -> dict[str, Any]:
    plain = {
        "notes": [],
        "warnings": [],
        "agreement_db": [22.0, 20.0 + number],
        "residual": 0.4,
        "slice_difference": 0.1,
    }
    return {"frontal": number, "lateral": number + mismatched, "mismatched": mismatched, **plain, **more}


def test_pairs_are_of_one_patient_and_day(tmp_path: Path) -> None:
    """A CT, a picture that is not there, and a lateral of another day make none; the first of a view is taken."""
    lines = ["patientid,offset,view,modality,filename"]
    for patient, day, view, modality, name in (
        ("1", "0", "PA", "X-ray", "a.jpg"),
        ("1", "0", "L", "X-ray", "b.jpg"),
        ("1", "0", "L", "X-ray", "c.jpg"),
        ("2", "0", "PA", "X-ray", "d.jpg"),
        ("2", "3", "L", "X-ray", "e.jpg"),
        ("3", "0", "AP", "X-ray", "f.jpg"),
        ("3", "0", "L", "CT", "g.jpg"),
        ("4", "0", "PA", "X-ray", "absent.jpg"),
        ("4", "0", "L", "X-ray", "h.jpg"),
    ):
        lines.append(f"{patient},{day},{view},{modality},{name}")
    (tmp_path / "images").mkdir()
    for name in "abcdefgh":
        (tmp_path / "images" / f"{name}.jpg").touch()
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    assert acquired.find_pairs(tmp_path) == [(tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.jpg")]


def test_a_folder_without_pairs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No list, or none with two views: exit 2."""
    with pytest.raises(UserError, match=r"it has no metadata\.csv"):
        acquired.find_pairs(tmp_path)
    (tmp_path / "metadata.csv").write_text("patientid,offset,view,modality,filename\n", encoding="utf-8")
    assert acquired.main([str(tmp_path), "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_counts_what_was_done() -> None:
    """Refused pairs are counted and no more; mismatched ones have a row of their own."""
    moved = ["the lateral X-ray was moved down by 6 mm: so the first stage explains them best"]
    rows = [_row(0), _row(1, notes=moved), _row(2) | {"refused": "colours"}, _row(3, mismatched=True)]
    header, _, right, wrong = acquired_table({"rows": rows})
    assert header.count("|") == right.count("|") == wrong.count("|")
    assert right.startswith("| right | 2 of 3 | 0 | 1 | 0 | 20.5 (20.0 to 21.0) | 0.40 (0.40 to 0.40) |")
    assert wrong.startswith("| another patient's lateral | 1 of 1 |")
