# SPDX-License-Identifier: Apache-2.0
"""Evaluates the shipped weights for the published tables: every stage, beside the baselines, in every protocol.

    python benchmarks/results_evaluation.py                        # 50 unseen phantoms: 20 minutes on two cores
    python benchmarks/results_evaluation.py --dataset dataset      # and a dataset's held-out patients
    python benchmarks/results_evaluation.py --phantoms 0 --dataset dataset
    python benchmarks/results_evaluation.py --jobs 2               # two cases at once, each on one thread
    python benchmarks/results_evaluation.py --earlier FOLDER       # score again only the stages with new weights

Each stage is scored at 256³ and, as ``stage_1_at_64``, on its own grid. Writes ``evaluation_phantoms_metrics.json``
and ``evaluation_patients_metrics.json`` after every case, each with a CSV of the cases; an interrupted run goes on
where it was, and the summary follows with the last case. ``benchmarks/results_tables.py`` makes the tables of README
and model card from these files; `make results` runs both.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from progressive_cascade import ConeBeam
from progressive_cascade.cli.common import versions
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.baselines import resize, training_mean
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.evaluation.metrics import PROTOCOLS
from progressive_cascade.evaluation.results import EvaluationReport, infer_hu
from progressive_cascade.inference.reconstruct import check_beam, load_cascade
from progressive_cascade.io import read_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.paths import bundle_root
from progressive_cascade.physics.simulate import expose
from progressive_cascade.training.cases import Case, load_case

RESULTS = Path(__file__).parent / "results"
STAGES = (1, 2, 3)
Networks = Mapping[int, ProgressiveCascade]
"""Cascades by stage."""
_MEAN_PHANTOMS = 40
# A job needs about 3 GB; more of them must be asked for.
_MAX_DEFAULT_JOBS = 4
_job: tuple[Networks, EvaluationReport]


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


def reconstruct_stages(case: Case, networks: Networks, image: torch.Tensor, beam: ConeBeam) -> dict[str, np.ndarray]:
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


def still_true(report: EvaluationReport, folder: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run scored with the weights and settings of this one.

    Args:
        report: of this run.
        folder: of the earlier run's files.

    Returns:
        Records by case; without the scores of stages whose weights are others now.

    Raises:
        FileNotFoundError: where the folder lacks the report's file.
        UserError: where anything but the checkpoints differs.
    """
    path = folder / report.path.name
    records = report.read_cases(path, may_differ=("checkpoints",))
    before, now = read_json(path)["checkpoints"], report.description["checkpoints"]
    changed = {_stage_of(stage) for stage in now if before.get(stage) != now[stage]}
    return {
        record["case"]: {
            **record,
            "scores": {
                method: scores for method, scores in record["scores"].items() if _stage_of(method) not in changed
            },
        }
        for record in records
    }


def score(item: Mapping[str, Any], networks: Networks, report: EvaluationReport) -> dict[str, Any]:
    """Scores one case.

    Args:
        item: of :func:`progressive_cascade.evaluation.cases.evaluation_items`.
        networks: cascades by stage.
        report: how to score; it is left as it is.

    Returns:
        The record that the report shall keep.
    """
    case = load_case(item)
    x, y, z, _ = case.affine @ np.array([*((np.array(case.hu.shape) - 1) / 2), 1.0])
    hu = torch.from_numpy(case.hu.astype(np.float32))[None, None]
    image = expose(hu, report.beam.at((float(x), float(y), float(z))), affine=case.affine)
    own = copy.copy(report)
    own.cases = []
    own.score_case(case, reconstruct_stages(case, networks, image, report.beam), image=image)
    return own.cases[0]


def score_rest(
    item: Mapping[str, Any], networks: Networks, report: EvaluationReport, known: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Scores of a case what an earlier run has not.

    Args:
        item: of :func:`progressive_cascade.evaluation.cases.evaluation_items`.
        networks: cascades by stage.
        report: how to score; it is left as it is.
        known: the case's record of :func:`still_true`, or None: then everything is scored.

    Returns:
        The record that scoring everything would give.
    """
    if known is None:
        return score(item, networks, report)
    there = {_stage_of(method) for method in known["scores"]}
    left = {stage: network for stage, network in networks.items() if stage not in there}
    if not left:
        return dict(known)
    bare = copy.copy(report)
    bare.baselines, bare.mean = False, None
    record = score(item, left, bare)
    merged = {**known["scores"], **record["scores"]}
    return {
        **record,
        # As if all had been scored at once: the last stage first, the baselines at the end.
        "scores": {method: merged[method] for method in sorted(merged, key=_stage_of, reverse=True)},
        "agreement": (known if max(networks) in there else record)["agreement"],
    }


def evaluate(
    items: Sequence[Mapping[str, Any]],
    networks: Networks,
    report: EvaluationReport,
    *,
    jobs: int = 1,
    earlier: Path | None = None,
) -> None:
    """Scores the items that the report does not have yet, and writes it after each.

    Args:
        items: of :func:`progressive_cascade.evaluation.cases.evaluation_items`.
        networks: cascades by stage.
        report: where to keep the scores.
        jobs: cases at once, each in a process of its own on one thread; 1: in this process, on torch's threads.
        earlier: folder of an earlier run, whose scores are kept where the weights are the same.
    """
    known = {} if earlier is None else still_true(report, earlier)
    report.resume()
    done = {case["case"] for case in report.cases}
    left = [item for item in items if _name(item) not in done]
    with tqdm(total=len(items), initial=len(items) - len(left), desc=report.stem, unit=" case") as progress:
        for record in _records(left, networks, report, known, jobs=min(jobs, len(left))):
            report.cases.append(record)
            report.write(finished=False)
            progress.update()
    report.write()


def _records(
    items: Sequence[Mapping[str, Any]],
    networks: Networks,
    report: EvaluationReport,
    known: Mapping[str, Any],
    *,
    jobs: int,
) -> Iterator[dict[str, Any]]:
    """The items' records, in their order."""
    if jobs < 2:
        yield from (score_rest(item, networks, report, known.get(_name(item))) for item in items)
        return
    # Not forked from here: this process may have started threads, of which a fork has only the locks.
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    with ProcessPoolExecutor(jobs, context, initializer=_start_job, initargs=(networks, report)) as pool:
        try:
            yield from pool.map(_score_in_job, items, [known.get(_name(item)) for item in items])
        finally:
            # An interrupted run must not wait for the cases it will not keep.
            pool.shutdown(cancel_futures=True)


def _start_job(networks: Networks, report: EvaluationReport) -> None:
    """Keeps in a job what all of its cases need."""
    global _job
    torch.set_num_threads(1)
    _job = networks, report


def _score_in_job(item: Mapping[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    return score_rest(item, *_job, known)


def _stage_of(method: str) -> int:
    """The stage in a method's name, 0 for a baseline."""
    return int(method.split("_")[1]) if method.startswith("stage_") else 0


def _name(item: Mapping[str, Any]) -> str:
    return str(item.get("case", item["patient"]))


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


def _default_jobs(device: str) -> int:
    return min(os.cpu_count() or 1, _MAX_DEFAULT_JOBS) if device == "cpu" else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate phantoms, then patients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=50, help="unseen phantoms (default: 50)")
    parser.add_argument("--dataset", type=Path, help="folder written by `prepare`, whose test patients to take")
    parser.add_argument("--models", type=Path, default=bundle_root() / "models", help="folder of the stages' weights")
    parser.add_argument("--device", default="cpu", help="where to reconstruct")
    parser.add_argument("--jobs", type=int, help="cases at once (default: one for each core, at most 4; 1 on a GPU)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write")
    parser.add_argument(
        "--earlier", type=Path, help="folder of an earlier run; its scores are kept where the weights are the same"
    )
    options = parser.parse_args(arguments)
    try:
        if options.phantoms < 1 and options.dataset is None:
            raise UserError("nothing to evaluate: give --phantoms N or --dataset DATASET")
        jobs = _default_jobs(options.device) if options.jobs is None else options.jobs
        if jobs < 1:
            raise UserError(f"--jobs must be at least 1, got {jobs}")
        networks, checkpoints = load_stages(options.models, options.device)
        for network in networks.values():
            check_beam(network, ConeBeam.preset("chest_stand"))
        if options.phantoms > 0:
            report = build_report("evaluation_phantoms", options, checkpoints, dataset=None)
            items = evaluation_items(num_phantoms=options.phantoms)
            evaluate(items, networks, report, jobs=jobs, earlier=options.earlier)
        if options.dataset is not None:
            report = build_report("evaluation_patients", options, checkpoints, dataset=options.dataset)
            evaluate(evaluation_items(options.dataset), networks, report, jobs=jobs, earlier=options.earlier)
    except (UserError, FileNotFoundError) as error:
        print(f"results_evaluation: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
