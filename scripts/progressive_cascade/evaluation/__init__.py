# SPDX-License-Identifier: Apache-2.0
"""How good a reconstruction is: named protocols, baselines, scores with intervals.

Each name is looked up in its module when it is first used: two volumes are compared without MONAI, which loads for
seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from progressive_cascade.doors import door

if TYPE_CHECKING:
    from progressive_cascade.evaluation.alignment import Similarity, align
    from progressive_cascade.evaluation.baselines import training_mean, unlearned
    from progressive_cascade.evaluation.cases import evaluation_items
    from progressive_cascade.evaluation.metrics import (
        body_mask,
        evaluate_volume,
        parse_truth,
        reprojection_psnr,
        score_volume,
    )
    from progressive_cascade.evaluation.protocols import HEADLINES, PROTOCOLS, Truth
    from progressive_cascade.evaluation.results import EvaluationReport
    from progressive_cascade.evaluation.scores import confidence_interval, paired_gain, summarize

__all__ = [
    "HEADLINES",
    "PROTOCOLS",
    "EvaluationReport",
    "Similarity",
    "Truth",
    "align",
    "body_mask",
    "confidence_interval",
    "evaluate_volume",
    "evaluation_items",
    "paired_gain",
    "parse_truth",
    "reprojection_psnr",
    "score_volume",
    "summarize",
    "training_mean",
    "unlearned",
]

__getattr__ = door(
    __name__,
    {
        "alignment": ("Similarity", "align"),
        "baselines": ("training_mean", "unlearned"),
        "cases": ("evaluation_items",),
        "metrics": ("body_mask", "evaluate_volume", "parse_truth", "reprojection_psnr", "score_volume"),
        "protocols": ("HEADLINES", "PROTOCOLS", "Truth"),
        "results": ("EvaluationReport",),
        "scores": ("confidence_interval", "paired_gain", "summarize"),
    },
)
