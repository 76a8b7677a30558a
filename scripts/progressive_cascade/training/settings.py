# SPDX-License-Identifier: Apache-2.0
"""A workflow's settings, checked before anything is built: keys that no config has, and values that cannot be meant.

``python -m monai.bundle`` takes a misspelt key without a word, and answers a wrong value with seventy lines of
traceback. :func:`check_settings` stands first in what each workflow runs, and says it in one line.
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import torch
from monai.bundle import ConfigParser

from progressive_cascade.ct import SECTIONS, load_datalist
from progressive_cascade.errors import RunError, UserError, did_you_mean
from progressive_cascade.geometry import parse_beam
from progressive_cascade.inference.refine import MAX_STEPS
from progressive_cascade.io import read_json
from progressive_cascade.paths import bundle_root
from progressive_cascade.training.plan import check_start
from progressive_cascade.training.tracking import check_tracking
from progressive_cascade.training.unknown import find_unknown


@dataclass(frozen=True)
class Rule:
    """What a setting must be.

    Args:
        condition: in words, to follow "must".
        holds: whether a value is that.
    """

    condition: str
    holds: Callable[[Any], bool]


def check_settings(workflow: str) -> None:
    """Refuses settings of the workflow that is about to run, in one line each time.

    MONAI hands a component its arguments alone, so the workflow's config is looked for among the callers; where there
    is none, nothing is checked.

    Args:
        workflow: name of the config whose keys are known: ``train``, ``evaluate`` or ``inference``.

    Raises:
        UserError: naming the key, what was expected and the value.
    """
    _tell_user_errors_in_one_line()
    parser = calling_parser()
    if parser is None:
        return
    config = parser.get()
    if "MLFlowHandler" in json.dumps(config, default=str) and find_spec("mlflow") is None:
        raise UserError("tracking must name a tool that is installed, got mlflow: pip install mlflow")
    check_tracking(config.get("tracker"))
    known = [read_json(bundle_root() / "configs" / f"{name}.json") for name in (workflow, "multi_gpu")]
    unknown = find_unknown(config, known)
    if unknown is not None:
        key, names = unknown
        raise UserError(f"key {key!r} must exist in the config{did_you_mean(key.rpartition('#')[2], names)}")
    for key, rule in RULES.items():
        if key in config:
            check_value(key, _resolved(parser, key), rule)
    _check_together({key: _resolved(parser, key) for key in _TOGETHER if key in config})
    if workflow == "train":
        lines = check_start(parser, processes=int(os.environ.get("WORLD_SIZE", "1")))
        if os.environ.get("RANK", "0") == "0":
            print(*lines, sep="\n", flush=True)


def check_value(key: str, value: Any, rule: Rule) -> None:
    """Refuses a value.

    Raises:
        UserError: naming the key, the condition and the value.
    """
    try:
        good = rule.holds(value)
    except (TypeError, ValueError, KeyError):
        good = False
    if not good:
        raise UserError(f"{key} must be {rule.condition}, got {_shown(value)}")


def _whole(low: int, *, none: bool = False) -> Rule:
    words = f"a whole number of at least {low}" + (" or null" if none else "")

    def holds(value: Any) -> bool:
        if value is None:
            return none
        return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= low

    return Rule(words, holds)


def _number(words: str, holds: Callable[[float], bool], *, none: bool = False) -> Rule:
    def number_holds(value: Any) -> bool:
        if value is None:
            return none
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and math.isfinite(value) and holds(float(value))

    return Rule(words + (" or null" if none else ""), number_holds)


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(not isinstance(w, (bool, str)) and w >= 0 for w in value.values())


def _is_steps(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= int(value) <= MAX_STEPS


def _is_window(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value > 0 and value % 8 == 0)


def _is_channels(value: Any) -> bool:
    return all(len(stage) >= 2 and all(isinstance(c, int) and c > 0 for c in stage) for stage in value)


_POSITIVE = _number("a number above 0", lambda value: value > 0)
_AT_LEAST_0 = _number("a number of at least 0", lambda value: value >= 0)
_SHARE = _number("a number in [0, 1]", lambda value: 0 <= value <= 1)
_FLAG = Rule("true or false", lambda value: isinstance(value, bool))
_WINDOW = Rule("a multiple of 8 voxels or null", _is_window)

RULES: dict[str, Rule] = {
    "stage": Rule("1, 2 or 3", lambda value: value in (1, 2, 3)),
    "geometry": Rule("a geometry (a preset's name or ConeBeam's fields)", lambda value: bool(parse_beam(value))),
    "seed": _whole(0),
    "dataset_dir": Rule(
        "a folder's name or empty", lambda value: value is None or isinstance(value, (str, os.PathLike))
    ),
    "device": Rule("a device of this machine", lambda value: bool(torch.device(value).type)),
    "amp": _FLAG,
    "resume": Rule('true, false or "auto"', lambda value: isinstance(value, bool) or value == "auto"),
    "force_resume": _FLAG,
    "checkpoint_minutes": _POSITIVE,
    "keep_checkpoints": _whole(1),
    "skip_bad": _whole(0),
    "unet_channels": Rule("a list of channels per stage, two levels or more", _is_channels),
    "lift_channels": _whole(0),
    "cross_attention": _FLAG,
    "vit_depth": _whole(0),
    "gradient_checkpointing": _FLAG,
    "freeze_earlier": _FLAG,
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "learning_rate": _POSITIVE,
    "weight_decay": _AT_LEAST_0,
    "warmup_share": _SHARE,
    "max_gradient_norm": _POSITIVE,
    "max_bad_steps": _whole(1),
    "ema_momentum": _number("a number in [0, 1)", lambda value: 0 <= value < 1, none=True),
    "val_interval": _whole(1),
    "patience": _whole(1, none=True),
    "num_workers": _whole(0),
    "num_phantoms": _whole(0),
    "num_validation_phantoms": _whole(0),
    "num_mean_phantoms": _whole(0),
    "ct_share": _SHARE,
    "mirror_cts": _FLAG,
    "epoch_size": _whole(1, none=True),
    "simulation_grid": Rule("a divisor of 256", lambda value: value > 0 and 256 % value == 0),
    "window": _WINDOW,
    "roi_size": _WINDOW,
    "distance_jitter": _number("a number in [0, 0.1)", lambda value: 0 <= value < 0.1),
    "shift_jitter": _AT_LEAST_0,
    "photons": _number("a number above 0", lambda value: value > 0, none=True),
    "uncalibrated": _SHARE,
    "loss_weights": Rule("an object of numbers of at least 0", _is_weights),
    "perceptual_slices": _whole(1),
    "section": Rule(f"one of {', '.join(SECTIONS)}", lambda value: value in SECTIONS),
    "num_samples": _whole(1, none=True),
    "sample_idx": _whole(0, none=True),
    "overlap": _number("a number in [0, 1)", lambda value: 0 <= value < 1),
    "consistency_rounds": _whole(0),
    "refine_steps": Rule(f"a whole number from 0 to {MAX_STEPS}", _is_steps),
    "save_nifti": _FLAG,
    "pictures": _FLAG,
    "baselines": _FLAG,
}
"""What each setting must be, by its key at the top of a config."""
_TOGETHER = (
    *("grid", "simulation_grid", "window", "stage", "epochs"),
    *("dataset_dir", "section", "num_phantoms", "num_validation_phantoms"),
)


def _check_together(settings: Mapping[str, Any]) -> None:
    """What settings must be beside each other."""
    if "grid" in settings:
        grid, window, cube = settings["grid"], settings["window"], settings["simulation_grid"]
        if window is not None and window > grid:
            raise UserError(f"window must be at most the stage's grid of {grid} voxels, got {window}")
        if cube % grid:
            raise UserError(f"simulation_grid must be a multiple of the stage's grid of {grid} voxels, got {cube}")
    if "num_phantoms" not in settings:
        return  # inference: the folder holds radiographs, and its own check follows
    folder = settings.get("dataset_dir")
    if folder:
        for section in [settings["section"]] if "section" in settings else ("training", "validation"):
            try:
                load_datalist(folder, section)
            except (OSError, UserError) as error:
                raise UserError(f"dataset_dir must be a folder written by `prepare`, got {folder}: {error}") from error
    elif settings["num_phantoms"] == 0:
        raise UserError("num_phantoms must be at least 1 where there is no dataset_dir, got 0")
    if "num_validation_phantoms" in settings:
        phantoms = settings["num_validation_phantoms"]
        cases = phantoms + (len(load_datalist(folder, "validation")) if folder else 0)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if cases < processes:
            least = phantoms + processes - cases
            raise UserError(
                f"num_validation_phantoms must be at least {least} for {processes} processes, got {phantoms}"
            )


def calling_parser() -> ConfigParser | None:
    """The config of the workflow that a component is built for, or None for one that is built by itself."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        # A workflow has its config as `parser`; a parser that somebody uses by itself is one.
        parser = getattr(owner, "parser", owner) if not isinstance(owner, ConfigParser) else owner
        if isinstance(parser, ConfigParser):
            return parser
        frame = frame.f_back
    return None


def _resolved(parser: ConfigParser, key: str) -> Any:
    try:
        return parser.get_parsed_content(key)
    except Exception as error:  # whatever an expression of the user's raises
        raise UserError(f"{key} must be a value or an expression, got {_shown(parser.get(key))}") from error


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)


def _tell_user_errors_in_one_line() -> None:
    """Under ``python -m monai.bundle``, from here on: one line for what the user can mend, and exit code 1."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__" or getattr(sys.excepthook, "tells_user_errors", False):
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (UserError, RunError)):
            cause = cause.__cause__
        if cause is None:
            before(kind, error, trace)
        else:
            print(f"error: {' '.join(str(cause).split())}", file=sys.stderr)

    hook.tells_user_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
