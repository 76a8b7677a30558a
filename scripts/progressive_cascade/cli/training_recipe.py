# SPDX-License-Identifier: Apache-2.0
"""`train --recipe`: the steps of a recipe one after the other, each done once."""

from __future__ import annotations

import argparse
import importlib
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from progressive_cascade.cli.training_runs import StageRun, plan_runs
from progressive_cascade.errors import RunError, UserError

_STAGES_ALONE = ("stages", "preset", "gpus", "processes", "max_restarts", "scheduler")
"""Options of `train` that a recipe has no use for: it names stages and presets, and trains in one process."""


def check_recipe_options(options: argparse.Namespace) -> None:
    """Refuses what would be passed over.

    Args:
        options: of `train`.

    Raises:
        UserError: for ``--only`` without a recipe, for a recipe without a folder, and for options of stages alone.
    """
    if options.recipe is None:
        if options.only is not None:
            raise UserError("--only names steps of a recipe: it must come with --recipe")
        return
    if options.output is None:
        raise UserError("--recipe must come with --output, the folder where its weights and logs go")
    given = [name for name in _STAGES_ALONE if getattr(options, name)]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} must not come with --recipe, whose steps are as it says")
    if options.resume == "yes":
        raise UserError("--resume yes must not come with --recipe, whose steps go on where they were begun; no: afresh")


def run_recipe(
    options: argparse.Namespace,
    root: Path,
    overrides: Mapping[str, Any],
    run_stage: Callable[[StageRun], None],
) -> None:
    """Does what is left to do of a recipe, or tells it.

    Args:
        options: ``recipe``, ``only``, ``dataset``, ``output``, ``overwrite`` and ``dry_run`` as `train` has them.
        root: the bundle's folder.
        overrides: values by config id, for every stage.
        run_stage: runs a stage's workflow, or tells it.

    Raises:
        UserError: if the recipe is none, a file is missing that a step needs, or one is in the way.
        RunError: if a step ends without its file.
    """
    from progressive_cascade.training.recipe import Record, choose, dataset_hash, read_recipe

    steps = choose(read_recipe(options.recipe), options.only)
    output = options.output.resolve()
    models = output / "models"
    dataset = None if options.dataset is None else options.dataset.resolve()
    record = Record(models, dataset_hash(dataset))
    follow: set[str] = set()  # files that a dry run's steps would make
    for number, step in enumerate(steps, 1):
        title = f"step {number} of {len(steps)}, {step.name}"
        if record.is_done(step) and follow.isdisjoint(step.needs):
            print(f"{title}: done before", flush=True)
            continue
        missing = [name for name in step.needs if not (models / name).is_file()]
        if missing and not follow.issuperset(missing):
            raise UserError(f"step {step.name} needs {models / missing[0]}, which an earlier step makes")
        run = None if step.stage is None else _stage_run(step, root, dataset, output, overrides)
        is_own = step.name in record.steps or (run is not None and run.goes_on(root))
        if (models / step.output).exists() and not is_own and not options.overwrite:
            raise UserError(f"step {step.name}: {models / step.output} exists and was not made by it; see --overwrite")
        print(title + (f", begins when {missing[0]} is there" if missing else ""), flush=True)
        start = time.monotonic()
        if run is not None and not missing:
            run_stage(run)
        if run is None:
            _run_module(str(step.module), step.arguments(dataset, models), dry_run=options.dry_run)
        if options.dry_run:
            follow.add(step.output)
            continue
        if not (models / step.output).is_file():
            raise RunError(f"step {step.name} ended without its file {models / step.output}")
        record.add(step, time.monotonic() - start)


def _stage_run(step: Any, root: Path, dataset: Path | None, output: Path, overrides: Mapping[str, Any]) -> StageRun:
    own = {"log_dir": str(output / "logs" / step.name)}
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


def _run_module(name: str, arguments: list[str], *, dry_run: bool) -> None:
    module = f"progressive_cascade.training.{name}"
    if dry_run:
        front = ["progressive-cascade", name] if name == "calibrate" else ["python", "-m", module]
        print(shlex.join([*front, *arguments]), flush=True)
        return
    if name == "calibrate":
        from progressive_cascade.cli import main

        code = main([name, "--overwrite", *arguments])
    else:
        code = importlib.import_module(module).main(arguments)
    if code:
        raise RunError(f"{name} ended with exit code {code}")
