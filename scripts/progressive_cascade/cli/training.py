# SPDX-License-Identifier: Apache-2.0
"""`train`: the bundle's training workflows in turn, on every GPU there is."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import add_command, add_overwrite, check_output_folder
from progressive_cascade.cli.numbers import natural, positive
from progressive_cascade.cli.training_processes import run_processes
from progressive_cascade.cli.training_recipe import check_recipe_options, run_recipe
from progressive_cascade.cli.training_runs import StageRun, parse_overrides, plan_runs
from progressive_cascade.errors import UserError
from progressive_cascade.paths import check_files

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

STAGES = (1, 2, 3)
_RESUME = {"auto": "auto", "yes": True, "no": False}


def add_train(commands: Any) -> None:
    """Adds `train`."""
    text = """
    Train the three stages in turn: 64³, 128³, 256³ voxels.

    A front of `python -m monai.bundle run training --config_file configs/stageN.json`. Each stage starts from the
    earlier stage's best checkpoint and keeps it frozen. Without --dataset the patients are simulated phantoms.
    With more than one GPU each stage runs through torchrun. DIR receives models/stageN_best.pt, logs/stageN
    and a cache of prepared cases; without --output they go into the bundle's folder. Weights that exist are replaced
    with --overwrite alone.

    An interrupted run goes on where it stopped, by the same command, and ends with the weights it would have had
    without the interruption, to the bit on a CPU. Its state is kept in logs/stageN/checkpoints after every epoch, every
    ten minutes (`--set checkpoint_minutes=M`) and when a signal asks for it: SIGUSR1 writes it, SIGTERM and Ctrl-C
    write it and end (exit code 143 and 130), a second Ctrl-C ends at once.

    examples:
      progressive-cascade train --dataset dataset --preset fast --output runs/first
      progressive-cascade train --stages 3 --set train#trainer#max_epochs=5 --output runs/first
    """
    parser = add_command(commands, "train", run=run_train, text=text)
    parser.add_argument(
        "--dataset", type=Path, metavar="DATASET", help="folder written by `prepare` (default: phantoms)"
    )
    parser.add_argument("--stages", type=int, nargs="+", choices=STAGES, metavar="N", help="default: 1 2 3")
    parser.add_argument(
        "--preset", metavar="NAME", help="settings on top of the defaults: fast, low_memory, max_quality"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for checkpoints and logs")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="do the steps of a recipe instead, each once")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="with --recipe: these steps alone")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a config value"
    )
    _add_processes(parser)
    add_overwrite(parser)
    _add_resume(parser)
    parser.add_argument("--scheduler", metavar="ADDRESS", help="fill the caches of cases by a Dask scheduler's workers")
    parser.add_argument(
        "--tracking", choices=("mlflow", "wandb"), help="also log to files of MLflow, or of Weights & Biases offline"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all, try one step, print command, steps, disk, memory and time, and stop",
    )


def _add_processes(parser: argparse.ArgumentParser) -> None:
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--gpus", type=positive, metavar="N", help="how many GPUs to use (default: all)")
    count.add_argument("--processes", type=positive, metavar="N", help="processes (default: one per GPU)")
    parser.add_argument(
        "--max-restarts",
        type=natural,
        default=0,
        metavar="N",
        help="when one of several processes ends early, start all again from the last checkpoint, N times (default: 0)",
    )


def _add_resume(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("interrupted runs, and data that cannot be read")
    group.add_argument(
        "--resume",
        nargs="?",
        choices=tuple(_RESUME),
        const="yes",
        default="auto",
        help="auto: go on where a run was begun (default); yes: there must be one; no: start afresh",
    )
    group.add_argument(
        "--force-resume", action="store_true", help="go on although settings, data or code have changed since"
    )
    group.add_argument(
        "--skip-bad",
        type=natural,
        default=0,
        metavar="N",
        help="pass over up to N cases that cannot be read (default: 0)",
    )


def run_train(options: argparse.Namespace) -> None:
    """Checks every input first, then runs stage after stage, or a recipe's steps."""
    from progressive_cascade.ct.datalist import load_datalist
    from progressive_cascade.paths import bundle_root

    check_recipe_options(options)
    if options.dataset is not None:
        for section in ("training", "validation"):
            load_datalist(options.dataset, section)
    if options.output is not None:
        check_output_folder(options.output)
    root = bundle_root()
    num_processes = _num_processes(options.gpus, options.processes)
    overrides = {
        "resume": _RESUME[options.resume],
        "force_resume": options.force_resume,
        "skip_bad": options.skip_bad,
        **({"tracker": options.tracking} if options.tracking else {}),
        **parse_overrides(options.overrides),
    }
    if options.recipe is not None:
        run_recipe(options, root, overrides, lambda run: _run_or_tell(run, root, dry_run=options.dry_run))
        return
    stages = sorted(set(options.stages or STAGES))
    runs = plan_runs(
        root,
        stages,
        preset=options.preset,
        overrides=overrides,
        dataset=options.dataset,
        output=options.output,
        multi_gpu=num_processes > 1,
    )
    if not options.dry_run:
        check_files(
            reads={"--dataset": options.dataset},
            writes={"--output": [run.checkpoint(root) for run in runs if not run.goes_on(root)]},
            overwrite=options.overwrite,
        )
    for run in runs:
        if options.dry_run:
            _tell_plan(run, root, num_processes, predecessor_follows=run.stage - 1 in stages)
            continue
        print(f"stage {run.stage}: {' + '.join(path.name for path in run.config_files)}", flush=True)
        if options.scheduler is not None:
            _fill_caches(run, root, options.scheduler)
        _run_stage(run, root, num_processes, options.max_restarts)


def _tell_plan(run: StageRun, root: Path, num_processes: int, *, predecessor_follows: bool) -> None:
    """Prints the command and what it will do, after every file has been opened and a step been tried."""
    from progressive_cascade.training.plan import plan_stage

    print(shlex.join(run.command(num_processes)), flush=True)
    with _folder(root):
        for line in plan_stage(_read_config(run), processes=num_processes, predecessor_follows=predecessor_follows):
            print(line, flush=True)


def _fill_caches(run: StageRun, root: Path, scheduler: str) -> None:
    from progressive_cascade.ct.workers import Workers
    from progressive_cascade.training.caches import fill_caches

    with _folder(root):
        print(f"{fill_caches(_read_config(run), Workers(scheduler=scheduler))} cases are in the cache", flush=True)


def _read_config(run: StageRun) -> ConfigParser:
    """The stage's files and overrides, for one process, not yet parsed; read in the bundle's folder."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(path) for path in run.config_files if path.name != "multi_gpu.json"])
    parser.update(dict(run.overrides))
    return parser


def _num_processes(gpus: int | None, processes: int | None) -> int:
    """How many to run, one for each GPU unless told otherwise."""
    import torch

    available = torch.cuda.device_count()
    if gpus is not None and gpus > available:
        raise UserError(f"--gpus must be at most the {available} of this machine, got {gpus}; --processes takes CPUs")
    return processes or gpus or max(1, available)


def _run_or_tell(run: StageRun, root: Path, *, dry_run: bool) -> None:
    """A recipe's stage, in one process."""
    if dry_run:
        _tell_plan(run, root, 1, predecessor_follows=False)
    else:
        _run_stage(run, root, 1, 0)


def _run_stage(run: StageRun, root: Path, num_processes: int, max_restarts: int) -> None:
    """One process runs here, so that its errors are told as ours; several run under torch's launcher."""
    # Macros such as `%configs/train.json::train` are read relative to the current folder.
    if num_processes > 1:
        with _folder(root):
            run_processes(run.command(1)[1:], processes=num_processes, restarts=max_restarts)
        return
    from monai.bundle.scripts import run as run_bundle

    with _folder(root):
        run_bundle(run_id="training", config_file=[str(path) for path in run.config_files], **dict(run.overrides))


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Works in a folder for a while."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
