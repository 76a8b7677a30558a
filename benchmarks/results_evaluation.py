# SPDX-License-Identifier: Apache-2.0
"""Evaluates the shipped weights for the published tables: every stage, beside the baselines, in every protocol.

    python benchmarks/results_evaluation.py                        # 50 unseen phantoms: about two hours on two cores
    python benchmarks/results_evaluation.py --dataset dataset      # and a dataset's held-out patients
    python benchmarks/results_evaluation.py --phantoms 0 --dataset dataset

Each stage is scored at 256³ and, as ``stage_1_at_64``, on its own grid. Writes ``evaluation_phantoms_metrics.json``
and ``evaluation_patients_metrics.json`` after every case, each with a CSV of the cases; an interrupted run goes on
where it was. ``benchmarks/results_tables.py`` makes the tables of README and model card from these files; `make
results` runs both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from progressive_cascade import ConeBeam
from progressive_cascade.baselines import resize, training_mean
from progressive_cascade.cases import Case, evaluation_items, load_case
from progressive_cascade.cli.common import versions
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation import EvaluationReport, infer_hu
from progressive_cascade.metrics import PROTOCOLS
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.paths import bundle_root
from progressive_cascade.reconstruction import check_beam, file_hash, load_cascade
from progressive_cascade.simulation import expose

RESULTS = Path(__file__).parent / "results"
STAGES = (1, 2, 3)
_MEAN_PHANTOMS = 40


def load_stages(models: Path, device: str) -> tuple[dict[int, ProgressiveCascade], dict[str, dict[str, str]]]:
    """The cascades of all stages and what identifies their weights.

    Args:
        models: folder of ``stage1_best.pt`` to ``stage3_best.pt``.
        device: where to put them.

    Returns:
        Networks by stage; file and SHA-256 by the method's name.
    """
    paths = {stage: models / f"stage{stage}_best.pt" for stage in STAGES}
    networks = {stage: load_cascade(path, device) for stage, path in paths.items()}
    return networks, {f"stage_{stage}": {"file": path.name, "sha256": file_hash(path)} for stage, path in paths.items()}


def reconstruct_stages(
    case: Case, networks: Mapping[int, ProgressiveCascade], image: torch.Tensor, beam: ConeBeam
) -> dict[str, np.ndarray]:
    """What every stage makes of a patient's radiographs, on the case's grid and on its own; the last stage first.

    Args:
        case: the patient, for its grid.
        networks: cascades by stage.
        image: line integrals (1, view, rows, cols).
        beam: their geometry.

    Returns:
        Volumes (x, y, z) [HU] by method.
    """
    shape = (case.hu.shape[0], case.hu.shape[1], case.hu.shape[2])
    volumes = {}
    for stage in sorted(networks, reverse=True):
        own = infer_hu(networks[stage], image, beam)
        volumes[f"stage_{stage}"] = resize(torch.from_numpy(own)[None, None], shape)[0, 0].round().numpy()
        if own.shape != shape:
            volumes[f"stage_{stage}_at_{len(own)}"] = own
    return volumes


def evaluate(
    items: Sequence[Mapping[str, Any]], networks: Mapping[int, ProgressiveCascade], report: EvaluationReport
) -> None:
    """Scores the items that the report does not have yet, and writes it after each.

    Args:
        items: of :func:`progressive_cascade.cases.evaluation_items`.
        networks: cascades by stage.
        report: where to keep the scores.
    """
    report.resume()
    done = {case["case"] for case in report.cases}
    for item in tqdm(items, desc=report.stem, unit=" case"):
        if str(item.get("case", item["patient"])) in done:
            continue
        case = load_case(item)
        x, y, z, _ = case.affine @ np.array([*((np.array(case.hu.shape) - 1) / 2), 1.0])
        hu = torch.from_numpy(case.hu.astype(np.float32))[None, None]
        image = expose(hu, report.beam.at((float(x), float(y), float(z))), affine=case.affine)
        report.score_case(case, reconstruct_stages(case, networks, image, report.beam), image=image)
        report.write()


def build_report(
    stem: str, options: argparse.Namespace, checkpoints: Mapping[str, Any], *, dataset: Path | None
) -> EvaluationReport:
    """The report of one kind of cases, with the mean of that kind's training cases among the baselines."""
    beam = ConeBeam.preset("chest_stand")
    return EvaluationReport(
        options.output,
        geometry=beam,
        protocols=list(PROTOCOLS),
        pictures=False,
        mean=training_mean(dataset, num_phantoms=0 if dataset else _MEAN_PHANTOMS),
        description={
            "checkpoints": dict(checkpoints),
            "section": "test",
            "geometry": beam.to_dict(),
            "versions": versions(),
        },
        stem=stem,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate phantoms, then patients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=50, help="unseen phantoms (default: 50)")
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`, whose test patients to take")
    parser.add_argument("--models", type=Path, default=bundle_root() / "models", help="folder of the stages' weights")
    parser.add_argument("--device", default="cpu", help="where to reconstruct")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write")
    options = parser.parse_args(arguments)
    try:
        if options.phantoms < 1 and options.dataset is None:
            raise UserError("nothing to evaluate: give --phantoms N or --dataset DATASET")
        networks, checkpoints = load_stages(options.models, options.device)
        for network in networks.values():
            check_beam(network, ConeBeam.preset("chest_stand"))
        if options.phantoms > 0:
            report = build_report("evaluation_phantoms", options, checkpoints, dataset=None)
            evaluate(evaluation_items(num_phantoms=options.phantoms), networks, report)
        if options.dataset is not None:
            items = evaluation_items(options.dataset)
            evaluate(
                items, networks, build_report("evaluation_patients", options, checkpoints, dataset=options.dataset)
            )
    except (UserError, FileNotFoundError) as error:
        print(f"results_evaluation: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
