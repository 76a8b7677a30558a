# SPDX-License-Identifier: Apache-2.0
"""Laws of the report page: what it says without a browser, and how it is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from progressive_cascade import ConeBeam
from progressive_cascade.cli import main
from progressive_cascade.errors import UserError
from progressive_cascade.inference.refine import RefinementReport
from progressive_cascade.io import save_json, save_nifti
from progressive_cascade.report import ReportCase, index_page, read_case
from progressive_cascade.report.embedding import choose_step, embed, shrink, unpack
from progressive_cascade.report.finished import RADIOGRAPHS_SUFFIX, save_radiographs
from progressive_cascade.report.page import asset, render_page, save_text
from progressive_cascade.report.stills import side_letters
from tests.support.cases import AFFINE, RECORD, SIZE, water_volume
from tools import update_niivue


def test_embedding_is_lossless_at_one_hu() -> None:
    """A volume comes back as it was, and rounded to a step it is off by at most half of it."""
    volume = np.random.default_rng(0).integers(-1024, 3072, (9, 8, 7)).astype(np.int16)
    assert (unpack(embed(volume, np.eye(4))) == volume).all()
    assert np.abs(unpack(embed(volume, np.eye(4), 8)) - volume).max() <= 4


def test_choose_step_keeps_within_the_budget() -> None:
    """Noise, the worst to compress, is rounded until it fits; what is even is not rounded."""
    noise = np.random.default_rng(0).integers(-1024, 3072, (32, 32, 32)).astype(np.int16)
    step = choose_step({"ct": noise}, 60_000)
    assert step > 1
    assert len(embed(noise, np.eye(4), step).text) <= 60_000
    assert choose_step({"ct": np.zeros_like(noise)}, 60_000) == 1


def test_shrink_keeps_the_place_in_the_world() -> None:
    """The centre of a shrunken volume is the centre of the volume."""
    small, affine = shrink(np.zeros((16, 16, 16)), AFFINE, 4)
    assert small.shape == (4, 4, 4)
    np.testing.assert_allclose(affine @ [1.5, 1.5, 1.5, 1], AFFINE @ [7.5, 7.5, 7.5, 1])


def test_side_letters_follow_the_geometry() -> None:
    """PA and left lateral as they are read; a right lateral has the front on the right."""
    beam = ConeBeam(views=("pa", "left_lateral", "right_lateral"))
    assert [side_letters(beam, view)[:2] for view in range(3)] == [("R", "L"), ("A", "P"), ("P", "A")]


def test_page_says_everything_without_a_script(case: ReportCase) -> None:
    """Warnings, assumptions, scores, geometry and pictures are HTML, and unknown keys of the record are kept."""
    html = render_page(case)
    for text in (
        "&lt;b&gt;turned&lt;/b&gt;",
        "0.2 mm assumed",
        "41 HU",
        "1800 mm",
        "1.23%",
        "unheard_of",
        "Research only",
    ):
        assert text in html, text
    assert html.count('src="data:image/jpeg;base64,') == 7
    assert "<script>alert(1)" not in html
    assert "connect-src 'none'" in html


def test_page_explains_refinement_and_the_first_look(case: ReportCase) -> None:
    """Residuals are differences of line integrals, not shares; refining's warnings stand at the top."""
    refinement = {
        **{"steps": 8, "kept": 6, "stopped": "held_out", "calibration": [{"view": "pa", "gain": 1.02}]},
        **{"residual_before": 0.1763, "residual_after": 0.1, "held_out_before": 0.1734, "held_out_after": 0.1077},
        "spread_hu": 25.3,
        "warnings": ["the kept-back patches did not gain"],
    }
    html = render_page(replace(case, record={**RECORD, "refinement": refinement, "first_agreement": {"pa": 41.3}}))
    for text in ("0.176", "0.108", "which no longer gained", "25 HU", "gain: 1.02", "First look", "PA 41 dB"):
        assert text in html, text
    assert html.index("the kept-back patches did not gain") < html.index('id="viewer"')
    assert "17.63%" not in html


@pytest.mark.parametrize("reason", ["steps", "discrepancy", "held_out", "rising", "unexplained"])
def test_page_says_in_words_why_refining_stopped(case: ReportCase, reason: str) -> None:
    """No reason of `RefinementReport.stopped` stands there as the code calls it."""
    assert f"``{reason}``" in str(RefinementReport.__doc__)
    html = render_page(replace(case, record={**RECORD, "refinement": {"steps": 1, "stopped": reason}}))
    assert f">{reason}</td>" not in html and html.count("Stopped by") == 1


def test_page_refuses_volumes_that_differ(case: ReportCase) -> None:
    """A truth of another size is named, not drawn."""
    with pytest.raises(ValueError, match="truth must have the reconstruction's shape"):
        replace(case, truth=np.zeros((4, 4, 4), np.int16))


def test_page_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old page and no half-written one."""
    page = tmp_path / "page.html"
    page.write_text("old")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(UserError, match="No space left"):
        save_text("new", page)
    monkeypatch.undo()
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def _report_on_little_disk(page: str) -> None:
    """Runs `report` where no file may become larger than 1 MB."""
    import resource

    from tests.support.processes import command

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    command(["report", page])


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_page_on_a_full_disk_is_one_line_and_no_file(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where no more than 1 MB can be written: exit code 2, and what was there before."""
    before = sorted(path.name for path in finished.iterdir())
    from tests.support.processes import Child  # its processes are forked, which not every system can

    child = Child(tmp_path_factory.mktemp("log") / "log", _report_on_little_disk, str(finished))
    assert child.wait() == 2
    (line,) = child.text().strip().splitlines()
    assert "ct.html must be writable, got: File too large" in line
    assert sorted(path.name for path in finished.iterdir()) == before


def test_index_links_and_escapes(tmp_path: Path) -> None:
    """Pages are linked relative to the index, errors and warnings shown, names escaped."""
    rows = [
        {"name": "a<b", "page": tmp_path / "sub" / "a b.html", "sigma": 91.25, "warnings": ["turned"]},
        {"name": "c", "error": "no image"},
    ]
    index_page(rows, tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    for text in ('<a href="sub/a%20b.html">a&lt;b</a>', "91.25", "turned", "Failed: no image", "2 cases, 1 failed"):
        assert text in html, text


def test_niivue_is_the_reviewed_file() -> None:
    """The viewer in the package is the one whose hash the tool checks."""
    import hashlib

    assert hashlib.sha256(asset("niivue.umd.js").encode()).hexdigest() == update_niivue.SHA256


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The files of a finished case of 64³ voxels."""
    save_nifti(water_volume(), AFFINE, tmp_path / "ct.nii.gz")
    save_json({**RECORD, "shape": [SIZE] * 3}, tmp_path / "ct.json")
    save_radiographs(np.ones((2, 128, 128), np.float32), tmp_path / f"ct{RADIOGRAPHS_SUFFIX}")
    return tmp_path


def test_read_case_takes_folder_volume_and_sidecar(finished: Path) -> None:
    """All three ways name the same case, with its radiographs."""
    for result in (finished, finished / "ct.nii.gz", finished / "ct.json"):
        case = read_case(result)
        assert case.name == "ct"
        assert case.radiographs is not None
        assert case.radiographs.shape == case.reprojected.shape


def test_report_command_writes_the_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report RESULT` writes it beside the CT and prints its path."""
    assert main(["report", str(finished)]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "ct.html")
    assert (finished / "ct.html").stat().st_size > 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "ct.json").unlink(), "must hold one CT with its sidecar"),
        (lambda folder: save_json({**RECORD, "shape": [4, 4, 4]}, folder / "ct.json"), "as its sidecar says"),
        (lambda folder: save_json({}, folder / "ct.json"), "holds no geometry"),
    ],
)
def test_report_command_refuses_what_is_no_result(
    finished: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], Any], message: str
) -> None:
    """One line on stderr, exit code 2, and no page."""
    change(finished)
    assert main(["report", str(finished)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(finished.glob("*.html"))
