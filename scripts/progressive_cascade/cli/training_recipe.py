# SPDX-License-Identifier: Apache-2.0
"""`train --recipe`: the steps of a recipe one after the other, each done once."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from progressive_cascade.cli.training_runs import StageRun, plan_runs
from progressive_cascade.errors import RunError, UserError


def run_recipe(options: argparse.Namespace, root: Path, run_stage: Callable[[StageRun], None]) -> None:
    """Does what is left to do of a recipe.

    Args:
        options: ``recipe``, ``only``, ``dataset``, ``output`` and ``overrides`` as `train` has them.
        root: the bundle's folder.
        run_stage: runs a stage's workflow.

    Raises:
        UserError: if the recipe is none, or no folder is named.
        RunError: if a step ends without its file.
    """
    from progressive_cascade.training.recipe import Record, choose, dataset_hash, read_recipe

    if options.output is None:
        raise UserError("--recipe must come with --output, the folder where its weights and logs go")
    steps = choose(read_recipe(options.recipe), options.only)
    output = options.output.resolve()
    models = output / "models"
    dataset = None if options.dataset is None else options.dataset.resolve()
    record = Record(models, dataset_hash(dataset))
    for number, step in enumerate(steps, 1):
        if record.is_done(step):
            print(f"step {number} of {len(steps)}, {step.name}: done before", flush=True)
            continue
        missing = [name for name in step.needs if not (models / name).is_file()]
        if missing:
            raise UserError(f"step {step.name} needs {models / missing[0]}, which an earlier step makes")
        print(f"step {number} of {len(steps)}, {step.name}", flush=True)
        start = time.monotonic()
        if step.stage is not None:
            run_stage(_stage_run(step, root, dataset, output, options.overrides))
        else:
            _run_module(str(step.module), step.arguments(dataset, models))
        if not (models / step.output).is_file():
            raise RunError(f"step {step.name} ended without its file {models / step.output}")
        record.add(step, time.monotonic() - start)


def _stage_run(step: Any, root: Path, dataset: Path | None, output: Path, overrides: dict[str, Any]) -> StageRun:
    own = {"log_dir": str(output / "logs" / step.name), "resume": "auto"}
    folder = {"models": str(output / "models")}
    settings = {
        key: value.format(**folder) if isinstance(value, str) and "{models}" in value else value
        for key, value in step.settings.items()
    }
    (run,) = plan_runs(
        root,
        [step.stage],
        preset=step.preset,
        overrides={**settings, **own, **overrides},
        dataset=dataset,
        output=output,
    )
    return run


def _run_module(name: str, arguments: list[str]) -> None:
    if name == "calibrate":
        from progressive_cascade.cli import main

        code = main([name, "--overwrite", *arguments])
    else:
        code = importlib.import_module(f"progressive_cascade.training.{name}").main(arguments)
    if code:
        raise RunError(f"{name} ended with exit code {code}")
