# SPDX-License-Identifier: Apache-2.0
"""A workflow's settings, checked before anything is built: keys that no config has, and values that cannot be meant.

``python -m monai.bundle`` takes a misspelt key without a word, and answers a wrong value with seventy lines of
traceback. :func:`check_settings` stands first in what each workflow runs, and says it in one line.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import set_determinism

from progressive_cascade.ct import load_datalist
from progressive_cascade.errors import RunError, UserError, did_you_mean
from progressive_cascade.io import read_json
from progressive_cascade.paths import bundle_root
from progressive_cascade.training.plan import check_start
from progressive_cascade.training.rules import RULES, Rule
from progressive_cascade.training.tracking import check_tracking
from progressive_cascade.training.unknown import find_unknown, unfold

# What stands under these keys is done, not looked up.
_INSTRUCTIONS = frozenset({"imports", "initialize", "run", "training", "evaluating", "finalize"})
# A preset that names a network for training and use alike says how it grows, which is nothing to inference.
_GROWTH = {"grow": False, "grow_from": None}
_TOGETHER = (
    *("grid", "simulation_grid", "window", "stage", "unet_channels"),
    *("dataset_dir", "section", "num_phantoms", "num_validation_phantoms"),
)


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
    files = [read_json(bundle_root() / "configs" / f"{name}.json") for name in (workflow, "multi_gpu")]
    known = [unfold(file) for file in files]
    if workflow == "inference":
        known.append(_GROWTH)
    unknown = find_unknown(config, known)
    if unknown is not None:
        key, names = unknown
        raise UserError(f"key {key!r} must exist in the config{did_you_mean(key.rpartition('#')[2], names)}")
    for key, rule in RULES.items():
        if key in config:
            check_value(key, _resolved(parser, key), rule)
    check_kinds(config, known)
    _check_together({key: _resolved(parser, key) for key in _TOGETHER if key in config})
    for key in own_expressions(config, known):
        _resolved(parser, key)
    check_tracking(_resolved(parser, "tracker") if "tracker" in config else None)
    if workflow == "train":
        lines = check_start(parser, processes=int(os.environ.get("WORLD_SIZE", "1")))
        if os.environ.get("RANK", "0") == "0":
            print(*lines, sep="\n", flush=True)


def set_seed() -> None:
    """Seeds what draws random numbers with the workflow's ``seed``: the first of what a workflow does.

    Raises:
        UserError: if the seed is no whole number of at least 0, or an expression that fails.
    """
    _tell_user_errors_in_one_line()
    parser = calling_parser()
    if parser is not None:
        seed = _resolved(parser, "seed")
        check_value("seed", seed, RULES["seed"])
        set_determinism(seed)


def check_value(key: str, value: Any, rule: Rule) -> None:
    """Refuses a value.

    Raises:
        UserError: naming the key, the condition and the value.
    """
    try:
        good = rule.holds(value)
    except Exception:  # torch and parsers answer what they cannot read with errors of many kinds
        good = False
    if not good:
        raise UserError(f"{key} must be {rule.condition}, got {_shown(value)}")


def check_kinds(config: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> None:
    """What is made of components stays one: a component, a list where there is a list, or an expression."""
    for key, value in config.items():
        shipped = [each[key] for each in known if key in each]
        if not shipped or key in RULES or key.startswith("_") or _is_expression(value):
            continue
        words, kind = ("a list", list) if isinstance(shipped[0], list) else ("an object with _target_", Mapping)
        if not isinstance(value, kind):
            raise UserError(f"{key} must be {words} or an expression, got {_shown(value)}")


def own_expressions(node: Mapping[str, Any], known: Sequence[Mapping[str, Any]], path: str = "") -> Iterator[str]:
    """Ids of expressions that stand where a shipped config has another value; none of those that say what is run."""
    for name, value in node.items():
        shipped = [each[name] for each in known if name in each]
        key = f"{path}#{name}" if path else name
        if isinstance(value, Mapping):
            yield from own_expressions(value, [each for each in shipped if isinstance(each, Mapping)], key)
        elif (
            shipped and key not in _INSTRUCTIONS and _is_expression(value) and _plain(value) not in map(_plain, shipped)
        ):
            yield key


def _plain(value: Any) -> str:
    """An expression as files have it: MONAI's parser writes :: for #."""
    return str(value).replace("::", "#")


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("$", "@"))


def _check_together(settings: Mapping[str, Any]) -> None:
    """What settings must be beside each other."""
    if "grid" in settings:
        grid, window, cube = settings["grid"], settings["window"], settings["simulation_grid"]
        if window is not None and window > grid:
            raise UserError(f"window must be at most the stage's grid of {grid} voxels, got {window}")
        if cube % grid:
            raise UserError(f"simulation_grid must be a multiple of the stage's grid of {grid} voxels, got {cube}")
    if "unet_channels" in settings and len(settings["unet_channels"]) < settings["stage"]:
        raise UserError(f"unet_channels must hold a list for each of {settings['stage']} stages")
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
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        reason = f"{key} must be a value or an expression, got {_shown(parser.get(key))}: {cause}"
        raise UserError(str(cause) if isinstance(cause, UserError) else reason) from error


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
