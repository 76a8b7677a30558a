# SPDX-License-Identifier: Apache-2.0
"""Cases of an evaluation as jobs of a Dask cluster, whose workers see the same files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.io import atomic_path

if TYPE_CHECKING:
    from progressive_cascade.evaluation.results import EvaluationReport
    from progressive_cascade.networks import ProgressiveCascade

_MEAN = ".mean.npy"


@dataclass(frozen=True)
class CaseJob:
    """What a worker is told of a case.

    Attributes:
        item: of :func:`progressive_cascade.evaluation.cases.evaluation_items`.
        report: what scores and draws it, without cases and without the mean volume.
        mean: file of the mean volume, where there is one.
        beam: geometry of the X-rays.
        checkpoint: None for the shipped one of a chest stand.
        device: None: the worker's own choice.
        refine: steps.
    """

    item: dict[str, Any]
    report: EvaluationReport
    mean: Path | None
    beam: ConeBeam
    checkpoint: Path | None
    device: str | None
    refine: int


def score_on_cluster(
    items: list[dict[str, Any]], report: EvaluationReport, beam: ConeBeam, options: argparse.Namespace
) -> Iterator[list[dict[str, Any]]]:
    """Scores every case on a worker; its page and pictures are written there.

    Args:
        items: the cases.
        report: of the evaluation, whose folder the workers see.
        beam: geometry of the X-rays.
        options: of `evaluate`: scheduler, checkpoint, device (None: each worker's own choice), refine.

    Returns:
        What the report keeps of each case, in the order of the cases.

    Raises:
        UserError: if the scheduler does not answer, or a case is not on the cascade's grid.
    """
    from progressive_cascade.ct.workers import Workers

    alone, mean = copy(report), None
    alone.mean, alone.cases, alone.output_dir = None, [], report.output_dir.absolute()
    if report.mean is not None:
        mean = alone.output_dir / _MEAN
        with atomic_path(mean) as temporary, temporary.open("wb") as file:
            np.save(file, report.mean)
    checkpoint = options.checkpoint and options.checkpoint.absolute()
    try:
        jobs = [CaseJob(item, alone, mean, beam, checkpoint, options.device, options.refine) for item in items]
        yield from Workers(scheduler=options.scheduler).run(score_alone, jobs)
    finally:
        if mean is not None:
            mean.unlink(missing_ok=True)


def score_alone(job: CaseJob) -> list[dict[str, Any]]:
    """A worker's part: loads the network once, scores a case, gives what the report keeps of it."""
    from progressive_cascade.cli.evaluation import evaluate_case
    from progressive_cascade.training.cases import load_case

    report = copy(job.report)
    report.cases, report.mean = [], None if job.mean is None else np.load(job.mean)
    evaluate_case(load_case(job.item), _network(job.checkpoint, job.device), job.beam, report, refine=job.refine)
    return report.cases


@lru_cache(maxsize=1)
def _network(checkpoint: Path | None, device: str | None) -> ProgressiveCascade:
    """The network, kept for the next case."""
    from progressive_cascade.cli.common import select_device
    from progressive_cascade.inference.reconstruct import load_cascade

    return load_cascade(checkpoint, select_device(device))
