# SPDX-License-Identifier: Apache-2.0
"""Whom a benchmark reconstructs: nobody whom the networks know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.training.cases import Case, load_case


def plan_cases(
    dataset: Path | None, *, phantoms: int, mirrored: int, test: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """Items by kind: validation, mirror images of training patients and phantoms in turn, thoraxes first.

    Args:
        dataset: folder written by `prepare`; None: phantoms alone.
        phantoms: how many.
        mirrored: mirror images of how many training CTs.
        test: the test patients in their place, once everything is chosen.

    Returns:
        Kind (``validation``, ``mirrored``, ``phantom`` or ``test``) and item of every case.
    """
    made = [("phantom", item) for item in evaluation_items(num_phantoms=phantoms)] if phantoms else []
    if dataset is None:
        return made
    if test:
        return [("test", item) for item in evaluation_items(dataset, "test")]
    training = sorted(evaluation_items(dataset, "training"), key=lambda item: "thorax" not in item["patient"])
    strangers = [("mirrored", item) for item in training[:mirrored]]
    mixed = [one for pair in zip(strangers, made, strict=False) for one in pair]
    rest = strangers[len(made) :] + made[len(strangers) :]
    return [("validation", item) for item in evaluation_items(dataset, "validation")] + mixed + rest


def open_case(kind: str, item: dict[str, Any]) -> Case:
    """Loads a case; a mirrored one as its mirror image, left for right."""
    case = load_case(item)
    if kind != "mirrored":
        return case
    valid = None if case.valid is None else case.valid[::-1].copy()
    return Case(f"mirrored_{case.name}", case.patient, case.hu[::-1].copy(), case.affine, valid)
