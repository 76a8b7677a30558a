# SPDX-License-Identifier: Apache-2.0
"""`evaluate`: scores and pictures of the cases of a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import (
    DEVICE_HELP,
    add_assume_spacing,
    add_checkpoint,
    add_command,
    add_overwrite,
    add_preset,
    add_protocols,
    add_refine,
    check_checkpoint,
    check_output_folder,
    select_device,
    versions,
)
from progressive_cascade.cli.evaluation_jobs import score_on_cluster
from progressive_cascade.cli.numbers import natural, positive
from progressive_cascade.cli.report import build_case
from progressive_cascade.cli.simulation import simulate_radiographs
from progressive_cascade.cli.weights import Weights
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam
from progressive_cascade.io import staged_folder
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    from progressive_cascade.evaluation.results import EvaluationReport
    from progressive_cascade.networks import ProgressiveCascade
    from progressive_cascade.training.cases import Case

_CLINICAL = ("clinical_body_dice", "clinical_lungs_dice", "clinical_bone_dice", "clinical_lungs_surface_mm")
_MEAN_PHANTOMS = 40
_LISTS = ("evaluation_metrics.json", "evaluation_cases.csv", "evaluation_bland_altman.png")
_HELP = """
Score reconstructions of a dataset's test patients.

Simulates their X-rays, reconstructs, and compares with their CTs. With --cts, CTs that were not prepared are: table
removed, placed on the cube, copies used once; what cannot be used is named and skipped. DIR is replaced when all is
done and not before: an interrupted evaluation leaves the old one.

DIR receives

  evaluation_metrics.json    per case and summary with 95 % intervals over patients; each score is named after its
                             protocol (PSNR in dB, MAE in HU), also inside the body and by tissue; beside the
                             cascade, refined and not: mean training CT, back-projection, least squares
                             and what is measured on a chest: lung volumes, widths, cardiothoracic ratio, how masks of
                             body, lungs and bone agree, limits of agreement over patients
  evaluation_cases.csv       the same scores, a row for each case and method
  evaluation_bland_altman.png  those measures against the CTs', of three patients or more
  CASE.html                  reconstruction and truth side by side, to scroll through in a browser
  comparison_CASE.png        truth, reconstruction, error; X-rays against re-projected X-rays
  CASE.nii.gz                with --save-nifti: the reconstruction [HU]

--preset names the geometry in which the X-rays are taken; they are brought to the model's detector along the same rays.
What the checkpoint was not trained for is refused, with how far outside it lies. --scheduler has Dask's workers do it.

Protocols: native (3-D PSNR and SSIM on [-1024, 1024] HU, MAE); x2ct, perx2ct, xmed (the published papers'
formulas). Scores of different protocols do not compare.

examples:
  progressive-cascade evaluate --dataset dataset --output evaluation
  progressive-cascade evaluate --cts archive --output evaluation
  progressive-cascade evaluate --phantoms 10 --protocol native x2ct --output evaluation
"""


def add_evaluate(commands: Any) -> None:
    """Adds `evaluate`."""
    parser = add_command(commands, "evaluate", run=run_evaluate, text=_HELP)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dataset", type=Path, metavar="DATASET", help="folder written by `prepare`")
    which.add_argument("--cts", type=Path, metavar="INPUT", help="CTs as they come, what `prepare` takes")
    add_assume_spacing(parser)
    parser.add_argument("--phantoms", type=natural, default=0, metavar="N", help="also evaluate N unseen phantoms")
    sections = ("training", "validation", "test")
    parser.add_argument("--section", choices=sections, default="test", help="which patients (default: test)")
    add_checkpoint(parser)
    add_preset(parser, "geometry of the X-rays")
    parser.add_argument("--num-samples", type=positive, metavar="N", help="at most N cases")
    parser.add_argument("--sample-idx", type=natural, metavar="I", help="case I alone, counted from 0")
    add_protocols(parser)
    parser.add_argument("--no-baselines", action="store_false", dest="baselines", help="score the cascade alone")
    add_refine(parser)
    parser.add_argument("--save-nifti", action="store_true", help="also write the reconstructions")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--device", metavar="D", help=DEVICE_HELP)
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, whose workers see the same files")
    add_overwrite(parser)


def run_evaluate(options: argparse.Namespace) -> None:
    """Evaluates case after case, then writes the table."""
    from progressive_cascade.inference.acceptance import take_beam

    check_output_folder(options.output)
    check_checkpoint(options)
    if options.scheduler is not None and options.cts is not None:
        raise UserError("--scheduler must come with --dataset or --phantoms; `prepare --scheduler` makes one of --cts")
    items = select_items(options)
    check_files(
        reads={"--dataset": options.dataset, "--cts": options.cts, "--checkpoint": options.checkpoint},
        writes={"--output": _result_files(options.output, items, save_nifti=options.save_nifti)},
        overwrite=options.overwrite,
    )
    beam = ConeBeam.preset(options.preset)

    def fit(own: argparse.Namespace, network: ProgressiveCascade) -> tuple[Any, ...]:
        return own, network, *take_beam(network, beam, f"--preset {options.preset}")

    weights = Weights(options.checkpoint, select_device(options.device))
    options, network, target, warnings = weights.run(options, fit)
    for line in warnings:
        print(f"warning: {line}")
    with staged_folder(options.output, last=_LISTS) as folder:
        report = _report(options, folder, target, warnings)
        _evaluate_cases(items, network, beam, report, options)
        report.write()
    for line in describe_summary(report.summary(), report.protocols):
        print(line)
    print(f"{len(report.cases)} cases: {options.output / report.path.name}")


def _report(options: argparse.Namespace, folder: Path, beam: ConeBeam, warnings: list[str]) -> EvaluationReport:
    from progressive_cascade.evaluation.baselines import training_mean
    from progressive_cascade.evaluation.results import EvaluationReport
    from progressive_cascade.inference.reconstruct import default_checkpoint
    from progressive_cascade.io.released import file_hash

    weights = options.checkpoint or default_checkpoint()
    mean = None
    if options.baselines:
        num_phantoms = _MEAN_PHANTOMS if options.phantoms or options.cts else 0
        mean = training_mean(options.dataset, section=options.section, num_phantoms=num_phantoms)
    return EvaluationReport(
        folder,
        geometry=beam,
        protocols=options.protocol,
        save_nifti=options.save_nifti,
        baselines=options.baselines,
        mean=mean,
        description={
            "checkpoint": {"file": weights.name, "sha256": file_hash(weights)},
            "section": options.section if options.cts is None else "CTs as they come",
            "geometry": beam.to_dict(),
            "warnings": warnings,
            "refine_steps": options.refine,
            "versions": versions(),
        },
    )


def _evaluate_cases(
    items: list[dict[str, Any]],
    network: ProgressiveCascade,
    beam: ConeBeam,
    report: EvaluationReport,
    options: argparse.Namespace,
) -> None:
    """Scores what can be used, and names what was mended or is skipped.

    Raises:
        UserError: where nothing can be used, or a prepared CT is none.
    """
    from tqdm import tqdm

    from progressive_cascade.evaluation.cases import RawCases

    if options.scheduler is not None:
        for kept in tqdm(score_on_cluster(items, report, beam, options), total=len(items), unit=" case", delay=0.5):
            report.cases += kept
        return
    cases = RawCases(options.assume_spacing)
    reason = ""
    for item in tqdm(items, desc="evaluate", unit=" case", delay=0.5):
        try:
            case, notes = cases.load(item)
        except (UserError, OSError) as error:
            if "source" not in item:
                raise
            reason = str(error)
            tqdm.write(f"skipped: {item['case']}: {reason}")
            continue
        for note in notes:
            tqdm.write(f"note: {case.name}: {note}")
        evaluate_case(case, network, beam, report, refine=options.refine)
    if not report.cases:
        raise UserError(f"--cts {options.cts} must hold at least one usable CT, got none: {reason}")


def _result_files(folder: Path, items: list[dict[str, Any]], *, save_nifti: bool) -> list[Path]:
    names = [f"phantom_{item['seed']}" if "seed" in item else item["case"] for item in items]
    files = [folder / name for name in _LISTS]
    files += [folder / name.format(case) for case in names for name in ("comparison_{}.png", "{}.html")]
    return files + ([folder / f"{name}.nii.gz" for name in names] if save_nifti else [])


def describe_summary(summary: Mapping[str, Mapping[str, Mapping[str, Any]]], protocols: list[str]) -> list[str]:
    """The headline scores of every method as lines: mean, standard deviation, interval.

    Args:
        summary: of :meth:`progressive_cascade.evaluation.results.EvaluationReport.summary`.
        protocols: whose scores.

    Returns:
        The lines; scores without a finite value are left out.
    """
    from progressive_cascade.evaluation.metrics import HEADLINES

    names = [f"{protocol}_{score}" for protocol in protocols for score in HEADLINES[protocol]]
    lines = []
    for method, scores in summary.items():
        lines.append(method)
        for name in (*names, "reprojection_psnr_db", *_CLINICAL):
            if name in scores:
                mean, std, interval = (scores[name][key] for key in ("mean", "std", "ci95"))
                ends = f"   95 % [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
                lines.append(f"  {name:32s}{mean:10.4f} ± {std:.4f}{ends}")
    return lines


def select_items(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases to evaluate: CTs of the dataset's section, or those of --cts, then phantoms.

    Raises:
        UserError: where nothing is asked for, or the index is out of range.
    """
    from progressive_cascade.evaluation.cases import evaluation_items, raw_items

    if options.dataset is None and options.cts is None and options.phantoms == 0:
        raise UserError("evaluate needs --dataset DATASET, --cts INPUT or --phantoms N")
    items = [] if options.cts is None else raw_items(options.cts)
    if options.dataset is not None or options.phantoms:
        items += evaluation_items(options.dataset, options.section, num_phantoms=options.phantoms)
    if options.sample_idx is not None:
        if options.sample_idx >= len(items):
            raise UserError(f"--sample-idx must be below the number of cases, {len(items)}, got {options.sample_idx}")
        return [items[options.sample_idx]]
    return items[: options.num_samples]


def evaluate_case(
    case: Case, network: ProgressiveCascade, beam: ConeBeam, report: EvaluationReport, *, refine: int = 0
) -> None:
    """Simulates, reconstructs, scores and draws one case: as `refined`, where it is, and as `cascade` without.

    The X-rays are taken on the detector of `beam` and brought to that of the report's geometry.

    Raises:
        UserError: where the CT is not on the cascade's grid.
    """
    import numpy as np
    import torch

    from progressive_cascade.evaluation.agreement import clinical_table
    from progressive_cascade.inference.reconstruct import reconstruct
    from progressive_cascade.radiograph.onto import resample_views
    from progressive_cascade.report import write_page

    center = case.affine @ np.array([*((np.array(case.hu.shape) - 1) / 2), 1.0])
    isocenter = (float(center[0]), float(center[1]), float(center[2]))
    beam, target = beam.at(isocenter), report.beam.at(isocenter)
    image, weights = resample_views(simulate_radiographs(case.hu, case.affine, beam), beam, target)
    plain = reconstruct(image, target, network=network, weights=weights, refine=0)
    result = reconstruct(image, target, network=network, weights=weights, refine=refine) if refine else plain
    if result.hu.shape != case.hu.shape or not np.allclose(result.affine, case.affine, atol=1e-3):
        raise UserError(
            f"case {case.name} must lie on the cascade's grid {result.hu.shape}, got {case.hu.shape}: prepare it"
        )
    given = torch.from_numpy(image)[None]
    methods = {**({"refined": result.hu} if refine else {}), "cascade": plain.hu}
    scores = report.score_case(case, methods, image=given)["refined" if refine else "cascade"]
    picture = report.output_dir / f"comparison_{case.name}.png"
    record = {
        **report.description,
        "agreement": result.agreement,
        "calibrated": True,
        "clinical": clinical_table(scores),
    }
    if result.refinement is not None:
        record["refinement"] = result.refinement.to_dict()
    page = build_case(result, target, name=case.name, record=record, picture=picture, truth=case.hu, scores=scores)
    write_page(page, report.output_dir / f"{case.name}.html")
