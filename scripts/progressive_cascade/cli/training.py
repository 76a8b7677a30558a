# SPDX-License-Identifier: Apache-2.0
"""`train`: the bundle's training workflows in turn, on every GPU there is."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progressive_cascade.cli.common import add_command, add_overwrite, check_output_folder, positive
from progressive_cascade.errors import UserError, did_you_mean
from progressive_cascade.paths import check_files

STAGES = (1, 2, 3)


@dataclass(frozen=True)
class StageRun:
    """One workflow to run.

    Args:
        stage: 1, 2 or 3.
        config_files: absolute paths, later ones win.
        overrides: values by config id, which win over all files.
    """

    stage: int
    config_files: tuple[Path, ...]
    overrides: Mapping[str, Any]

    def checkpoint(self, root: Path) -> Path:
        """The file of the stage's best weights.

        Args:
            root: the bundle's folder, where checkpoints go unless an override says otherwise.
        """
        folder = Path(self.overrides.get("ckpt_dir", root / "models"))
        return (folder if folder.is_absolute() else root / folder) / f"stage{self.stage}_best.pt"

    def command(self, num_processes: int) -> list[str]:
        """The same run as a command line, through torchrun where there are several processes."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        config = repr([str(path) for path in self.config_files])
        overrides = [part for key, value in self.overrides.items() for part in (f"--{key}", str(value))]
        bundle = ["-m", "monai.bundle", "run", "training", "--config_file", config, *overrides]
        return [sys.executable, *(launcher if num_processes > 1 else []), *bundle]


def add_train(commands: Any) -> None:
    """Adds `train`."""
    text = """
    Train the three stages in turn: 64³, 128³, 256³ voxels.

    A front of `python -m monai.bundle run training --config_file configs/stageN.json`. Each stage starts from the
    earlier stage's best checkpoint and keeps it frozen. Without --dataset the patients are simulated phantoms.
    With more than one GPU each stage runs through torchrun. DIR receives models/stageN_best.pt, logs/stageN
    and a cache of prepared cases; without --output they go into the bundle's folder. Weights that exist are replaced
    with --overwrite alone; `--set resume=True` goes on with an interrupted run.

    examples:
      progressive-cascade train --dataset dataset --preset fast --output runs/first
      progressive-cascade train --stages 3 --set train#trainer#max_epochs=5 --output runs/first
    """
    parser = add_command(commands, "train", run=run_train, text=text)
    parser.add_argument(
        "--dataset", type=Path, metavar="DATASET", help="folder written by `prepare` (default: phantoms)"
    )
    parser.add_argument(
        "--stages", type=int, nargs="+", choices=STAGES, default=list(STAGES), metavar="N", help="default: 1 2 3"
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="settings on top of the defaults: fast, low_memory, max_quality"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for checkpoints and logs")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a config value"
    )
    parser.add_argument("--processes", type=positive, metavar="N", help="processes (default: one per GPU)")
    add_overwrite(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")


def run_train(options: argparse.Namespace) -> None:
    """Checks every input first, then runs stage after stage."""
    import torch

    from progressive_cascade.ct.datalist import load_datalist
    from progressive_cascade.paths import bundle_root

    if options.dataset is not None:
        for section in ("training", "validation"):
            load_datalist(options.dataset, section)
    if options.output is not None:
        check_output_folder(options.output)
    root = bundle_root()
    num_processes = options.processes or max(1, torch.cuda.device_count())
    runs = plan_runs(
        root,
        sorted(set(options.stages)),
        preset=options.preset,
        overrides=parse_overrides(options.overrides),
        dataset=options.dataset,
        output=options.output,
        multi_gpu=num_processes > 1,
    )
    if not options.dry_run:
        check_files(
            reads={"--dataset": options.dataset},
            writes={"--output": [run.checkpoint(root) for run in runs if not run.overrides.get("resume")]},
            overwrite=options.overwrite,
        )
    for run in runs:
        if options.dry_run:
            print(shlex.join(run.command(num_processes)))
            continue
        print(f"stage {run.stage}: {' + '.join(path.name for path in run.config_files)}", flush=True)
        _run_stage(run, root, num_processes)


def plan_runs(
    root: Path,
    stages: Sequence[int],
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    dataset: Path | None = None,
    output: Path | None = None,
    multi_gpu: bool = False,
) -> list[StageRun]:
    """Puts files and overrides of each stage together and refuses keys that no config has.

    Args:
        root: the bundle's folder.
        stages: numbers out of 1, 2, 3.
        preset: name of a file in `configs/presets`.
        overrides: values by config id, from the user.
        dataset: prepared dataset, or None for phantoms.
        output: folder for checkpoints and logs, or None for the configs' own.
        multi_gpu: add `multi_gpu.json`.

    Returns:
        The runs, in order.

    Raises:
        UserError: for an unknown preset, or a key that the stage's config does not have.
    """
    from progressive_cascade.io import read_json

    runs = []
    for stage in stages:
        files = [root / "configs" / f"stage{stage}.json"]
        config = read_json(files[0])
        if preset is not None:
            files.append(preset_file(root, preset))
            check_overlay(files[1], config)
        if multi_gpu:
            files.append(root / "configs" / "multi_gpu.json")
        settings = {"bundle_root": str(root)}
        if dataset is not None:
            settings["dataset_dir"] = str(dataset.resolve())
        if output is not None:
            settings["ckpt_dir"] = str(output.resolve() / "models")
            settings["log_dir"] = str(output.resolve() / "logs" / f"stage{stage}")
            settings["cache_dir"] = str(output.resolve() / "cache")
        for key in overrides or {}:
            check_key(key, config, f"--set, stage {stage}")
        runs.append(StageRun(stage, tuple(files), {**settings, **(overrides or {})}))
    return runs


def preset_file(root: Path, name: str) -> Path:
    """The file of a preset.

    Raises:
        UserError: where there is none of that name; close ones are named.
    """
    known = {path.stem: path for path in (root / "configs" / "presets").glob("*.json")}
    if name not in known:
        raise UserError(f"--preset must be one of {', '.join(sorted(known))}, got {name!r}{did_you_mean(name, known)}")
    return known[name]


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Reads `KEY=VALUE` arguments; a value that is a Python literal becomes it, any other stays text.

    Raises:
        UserError: for an argument without a key or an equals sign.
    """
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not key or not equals:
            raise UserError(f"--set must be KEY=VALUE, got {item!r}")
        try:
            overrides[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[key] = text
    return overrides


def check_overlay(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses an overlay with a key that the config below it lacks: MONAI would silently accept it.

    Raises:
        UserError: naming the file, the key and close ones.
    """
    from progressive_cascade.io import read_json

    for key in read_json(path):
        if not key.startswith("_"):
            check_key(key.removeprefix("+"), config, str(path))


def check_key(key: str, config: Mapping[str, Any], origin: str) -> None:
    """Refuses a config id (`a`, `a#b#0` or `a::b`) that does not exist.

    Raises:
        UserError: naming the origin, the key and close ones.
    """
    level: Any = config
    for depth, part in enumerate(parts := key.replace("::", "#").split("#")):
        if isinstance(level, str) and level[:1] in "%@":
            raise UserError(f"{origin}: key {key!r} cannot be reached: {'#'.join(parts[:depth])!r} refers to {level!r}")
        if isinstance(level, list) and part.isdecimal() and int(part) < len(level):
            level = level[int(part)]
        elif isinstance(level, Mapping) and part in level:
            level = level[part]
        else:
            known = level if isinstance(level, Mapping) else ()
            raise UserError(
                f"{origin}: key {key!r} must exist in the config, got unknown {part!r}{did_you_mean(part, known)}"
            )


def _run_stage(run: StageRun, root: Path, num_processes: int) -> None:
    """One process runs here, so that its errors are told as ours; several run under torchrun."""
    # Macros such as `%configs/train.json::train` are read relative to the current folder.
    if num_processes > 1:
        code = subprocess.run(run.command(num_processes), cwd=root, check=False).returncode
        if code:
            raise UserError(f"stage {run.stage} stopped with exit code {code}; the messages above say why")
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
