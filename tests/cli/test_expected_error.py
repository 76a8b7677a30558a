# SPDX-License-Identifier: Apache-2.0
"""The expected error is everywhere a user looks: screen, sidecar, page, a folder's table."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from progressive_cascade.cli import main
from progressive_cascade.inference.trust import in_words

ERRORS: dict[str, Any] = {
    "body_mae_hu": {"value": 91.4, "interval": [70.2, 120.0], "unit": "HU"},
    "psnr_3d_db": {"value": 23.75, "interval": [22.0, 25.0], "unit": "dB"},
    "lungs_surface_mm": {"value": 4.2, "interval": [2.0, 9.0], "unit": "mm"},
}


def test_expected_error_stands_wherever_a_user_looks(
    cascade: None, xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For weights that are not calibrated the reason, in a pair; for others the numbers, in a folder's files."""
    views = ["--pa", str(xrays / "pa.nii.gz"), "--lateral", str(xrays / "lateral.nii.gz"), "--no-report"]
    assert main(["reconstruct", *views, "--output", str(tmp_path / "ct.nii.gz")]) == 0
    line = "expected error: not known, it is calibrated for the released model.pt and any_geometry.pt alone"
    assert line in capsys.readouterr().out
    assert set(json.loads((tmp_path / "ct.json").read_text())["expected_error"]) == {"text", "reason"}
    known = {"text": in_words(ERRORS), **ERRORS, "confidence": 0.9, "calibrated_on": "two patients", "signs": {}}
    monkeypatch.setattr("progressive_cascade.inference.expect.expect_error", lambda *_: known)
    shutil.copytree(xrays, tmp_path / "in" / "one")
    assert main(["reconstruct", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "one.json").read_text())["expected_error"] == known
    page = (tmp_path / "out" / "one.html").read_text(encoding="utf-8")
    for words in ("about 91 HU (70 to 120)", "about 23.8 dB (22.0 to 25.0)", "Borders of the lungs", "two patients"):
        assert words in page
    with open(tmp_path / "out" / "summary.csv", newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    found = [row[f"expected_{name}"] for name in ("body_mae_hu", "low_hu", "high_hu", "psnr_db")]
    assert found == ["91", "70", "120", "23.8"]
    assert "expected body mae hu" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
