# SPDX-License-Identifier: Apache-2.0
"""A recipe: every file of weights from the data alone, step by step, each with its settings and its record.

``configs/recipe.json`` declares the steps in their order. A step trains a stage by its config, or runs one of the
modules that train what stands beside the cascade. What has been made is recorded after each step, with the settings,
the time, the card, the code's revision and the file's hash; a step whose record still fits is not done again, and one
that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from progressive_cascade.errors import UserError, did_you_mean
from progressive_cascade.io import read_json, save_json
from progressive_cascade.io.released import file_hash
from progressive_cascade.training.identity import code_hashes

RECORD = "recipe_record.json"
"""Where the outputs' folder keeps what was made."""
_MODULES: dict[str, tuple[str, ...]] = {
    "perceptual": ("dataset",),
    "uncertainty": ("dataset",),
    "orientation": ("dataset",),
    "assemble": (),
    "calibrate": ("dataset",),
}
"""What else a step can run, and what of the recipe's own arguments it takes beside ``output``."""
_PATHS = frozenset({"checkpoint", "first_stage", "average_with", "cache", "models", "report"})
"""Arguments of modules that name places in the folder of models."""


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        name: of the step.
        output: the file it makes, relative to the folder of models.
        stage: which stage's workflow it runs, or None.
        module: which module of :mod:`progressive_cascade.training` it runs, or the command ``calibrate``, or None.
        preset: of the stage's config, or None.
        settings: overrides of the stage's config, or the module's arguments by name.
        needs: files of the folder of models that earlier steps make.
    """

    name: str
    output: str
    stage: int | None = None
    module: str | None = None
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.stage is None) == (self.module is None):
            raise UserError(f"recipe: step {self.name!r} must have either stage or module")
        if self.stage is not None and self.stage not in (1, 2, 3):
            raise UserError(f"recipe: stage of step {self.name!r} must be 1, 2 or 3, got {self.stage!r}")
        if self.module is not None and self.module not in _MODULES:
            raise UserError(
                f"recipe: module of step {self.name!r} must be one of {', '.join(_MODULES)}, got {self.module!r}"
            )

    def arguments(self, dataset: Path | None, models: Path) -> list[str]:
        """The command line of a module's step."""
        data = {} if dataset is None or "dataset" not in _MODULES[str(self.module)] else {"dataset": dataset}
        given = {"output": models / self.output, **data, **self.settings}
        return [
            part
            for name, value in given.items()
            for part in (f"--{name}", str(models / value if name in _PATHS else value))
        ]


def read_recipe(path: Path) -> list[Step]:
    """The steps of a recipe.

    Args:
        path: JSON with ``settings`` of all stages and ``steps``.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    content = read_json(path, "recipe")
    if not isinstance(content, dict) or not isinstance(content.get("steps"), list) or not content["steps"]:
        raise UserError(f"recipe {path} must be an object with a list of steps")
    shared, steps = content.get("settings", {}), []
    for values in content["steps"]:
        names = [each.name for each in fields(Step)]
        if not isinstance(values, dict) or not {"name", "output"} <= set(values):
            raise UserError(f"recipe {path}: a step must be an object with name and output, got {str(values)[:80]}")
        if unknown := sorted(set(values) - set(names)):
            raise UserError(f"recipe {path}: step {values['name']!r} has unknown key {unknown[0]!r}; keys are {names}")
        own = values.get("settings", {})
        plain = {**values, "needs": tuple(values.get("needs", ()))}
        plain["settings"] = {**shared, **own} if "stage" in values else own
        steps.append(Step(**plain))
    return steps


def choose(steps: Sequence[Step], names: Sequence[str] | None) -> list[Step]:
    """The steps of these names, in the recipe's order; all without names.

    Raises:
        UserError: if there is no such step.
    """
    known = [step.name for step in steps]
    for name in names or ():
        if name not in known:
            raise UserError(
                f"--only must name steps of the recipe ({', '.join(known)}), got {name!r}{did_you_mean(name, known)}"
            )
    return [step for step in steps if not names or step.name in names]


class Record:
    """What has been made, in the folder of models.

    Args:
        models: the folder.
        data: the dataset's hash, or None without one.
    """

    def __init__(self, models: Path, data: str | None) -> None:
        self.path = models / RECORD
        self.data = data
        self.steps: dict[str, Any] = read_json(self.path, "record")["steps"] if self.path.is_file() else {}

    def is_done(self, step: Step) -> bool:
        """Whether a step's file is there, as this recipe, these data and what it needs would make it."""
        made = self.steps.get(step.name)
        output = self.path.parent / step.output
        if not made or not output.is_file() or made["wanted"] != self._wanted(step):
            return False
        return bool(made["sha256"] == file_hash(output))

    def add(self, step: Step, seconds: float) -> None:
        """Records a step that has just ended."""
        self.steps[step.name] = {
            "wanted": self._wanted(step),
            "settings": dict(step.settings),
            "output": step.output,
            "sha256": file_hash(self.path.parent / step.output),
            "seconds": round(seconds, 1),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "torch": torch.__version__,
            "code": _digest(code_hashes()),
            "data": self.data,
        }
        save_json({"steps": self.steps}, self.path)

    def _wanted(self, step: Step) -> str:
        needs = {name: file_hash(path) for name in step.needs if (path := self.path.parent / name).is_file()}
        return _digest([asdict(step), self.data, needs])


def dataset_hash(dataset: Path | None) -> str | None:
    """Of a prepared dataset's list and files; None without one."""
    if dataset is None:
        return None
    files = [path for path in sorted(dataset.rglob("*")) if path.is_file() and path.suffix in (".json", ".gz", ".nii")]
    return _digest({path.relative_to(dataset).as_posix(): file_hash(path) for path in files})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
