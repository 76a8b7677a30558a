# SPDX-License-Identifier: Apache-2.0
"""`report`: the page of a finished case, made again from its files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import add_command, add_overwrite, check_output_file
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    import numpy as np

    from progressive_cascade.geometry import ConeBeam
    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.report import ReportCase

_HTML = (".html", ".htm")


def add_report(commands: Any) -> None:
    """Adds `report`."""
    text = """
    Make the report page of a finished case.

    RESULT is a CT that `reconstruct` or `demo` wrote, its .json, or the folder of both. The page is one HTML file that
    opens in any browser, without a network: slices, a rendering, the radiographs beside the re-projections, the
    uncertainty, and what the numbers mean. With --truth CT the true CT stands beside the reconstruction. Without
    --output the case's own page is made anew.

    example:
      progressive-cascade report ct.nii.gz --output ct.html
    """
    parser = add_command(commands, "report", run=run_report, text=text)
    parser.add_argument("result", type=Path, metavar="RESULT", help="CT, its .json, or their folder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="page to write, .html (default: beside the CT)")
    parser.add_argument("--truth", type=Path, metavar="CT", help="the true CT on the same grid")
    add_overwrite(parser)


def run_report(options: argparse.Namespace) -> None:
    """Reads the case, predicts sigma anew, writes the page."""
    import numpy as np

    from progressive_cascade.evaluation.agreement import clinical_table
    from progressive_cascade.evaluation.clinical import score_chests, segment_chest
    from progressive_cascade.evaluation.metrics import evaluate_volume
    from progressive_cascade.io import nifti_stem
    from progressive_cascade.report.finished import find_volume, read_case
    from progressive_cascade.report.page import write_page

    volume = find_volume(options.result)
    page = options.output or volume.with_name(f"{nifti_stem(volume)}.html")
    check_output_file(page, _HTML)
    check_files(
        reads={"RESULT": volume, "--truth": options.truth},
        writes={"--output": [page]},
        overwrite=options.overwrite or options.output is None,
    )
    case = read_case(volume, truth=options.truth)
    case = replace(case, sigma=_case_sigma(case))
    if case.truth is not None:
        scores = evaluate_volume(case.hu, case.truth, protocol="native")
        spacing = float(np.linalg.norm(case.affine[:3, 0]))
        found, true = (segment_chest(hu, spacing) for hu in (case.hu, case.truth))
        clinical = clinical_table(score_chests(found, true))
        case = replace(case, scores=scores, record={**case.record, "clinical": clinical})
    write_page(case, page)
    print(page)


def page_path(options: argparse.Namespace) -> Path | None:
    """Where `reconstruct` writes its page: as asked for, beside the CT, or nowhere.

    Raises:
        UserError: before any work, where the file cannot be written.
    """
    from progressive_cascade.io import nifti_stem

    if options.no_report:
        return None
    page = options.report or options.output.with_name(f"{nifti_stem(options.output)}.html")
    check_output_file(page, _HTML, "--report")
    return page


def build_case(
    result: Reconstruction,
    beam: ConeBeam,
    *,
    name: str,
    record: Mapping[str, Any],
    picture: Path,
    truth: np.ndarray | None = None,
    scores: Mapping[str, float] | None = None,
) -> ReportCase:
    """What the page of a fresh reconstruction shows.

    Args:
        result: the reconstruction.
        beam: geometry of its radiographs.
        name: what the page is called.
        record: the sidecar.
        picture: a PNG of the case that is already drawn.
        truth: the true CT [HU], where it is known.
        scores: against the truth.
    """
    from progressive_cascade.report import ReportCase

    case = ReportCase(
        name=name,
        hu=result.hu,
        affine=result.affine,
        beam=beam,
        reprojected=result.reprojected,
        radiographs=result.image,
        record=record,
        truth=truth,
        scores=scores or {},
        picture=picture,
    )
    return replace(case, sigma=_case_sigma(case))


def _case_sigma(case: ReportCase) -> np.ndarray | None:
    """Sigma of a case whose radiographs are known and whose weights are those sigma was calibrated with."""
    from progressive_cascade.inference.expect import recalibrated
    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.inference.uncertainty import default_uncertainty, load_uncertainty, predict_sigma

    if case.radiographs is None or not default_uncertainty().is_file() or len(set(case.hu.shape)) != 1:
        return None
    head = load_uncertainty()
    weights = case.record.get("checkpoint")
    used = weights.get("sha256") if isinstance(weights, Mapping) else None
    if used != bytes(head.cascade_sha256.cpu().tolist()).hex() or case.hu.shape[0] % 32:
        return None
    result = Reconstruction(
        hu=case.hu,
        affine=case.affine,
        agreement={},
        reprojected=case.reprojected,
        image=case.radiographs,
        calibrated=bool(case.record.get("calibrated", True)),
    )
    return recalibrated(predict_sigma(result, case.beam, head), case.hu, str(used))
