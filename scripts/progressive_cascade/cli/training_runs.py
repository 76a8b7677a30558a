# SPDX-License-Identifier: Apache-2.0
"""Which workflows `train` runs: files and overrides of each stage, checked key by key."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progressive_cascade.errors import UserError, did_you_mean


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

    def goes_on(self, root: Path) -> bool:
        """Whether the stage was begun before and is taken up again, so that its weights are its own.

        Args:
            root: the bundle's folder.
        """
        folder = Path(self.overrides.get("log_dir", root / "logs" / f"stage{self.stage}"))
        begun = any(((folder if folder.is_absolute() else root / folder) / "checkpoints").glob("step_*.pt"))
        return self.overrides.get("resume") is True or (self.overrides.get("resume") == "auto" and begun)

    def command(self, num_processes: int) -> list[str]:
        """The same run as a command line, through torchrun where there are several processes."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
        config = repr([str(path) for path in self.config_files])
        overrides = [part for key, value in self.overrides.items() for part in (f"--{key}", str(value))]
        bundle = ["-m", "monai.bundle", "run", "training", "--config_file", config, *overrides]
        return [sys.executable, *(launcher if num_processes > 1 else []), *bundle]


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
