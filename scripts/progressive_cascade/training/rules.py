# SPDX-License-Identifier: Apache-2.0
"""What each setting at the top of a workflow's config must be: the condition in words, and whether a value meets it."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from progressive_cascade.ct import SECTIONS
from progressive_cascade.geometry import parse_beam, parse_errors, parse_range
from progressive_cascade.inference.refine import MAX_STEPS
from progressive_cascade.phantom import parse_population
from progressive_cascade.physics import AcquisitionRange
from progressive_cascade.training.tracking import TOOLS


@dataclass(frozen=True)
class Rule:
    """What a setting must be.

    Args:
        condition: in words, to follow "must".
        holds: whether a value is that.
    """

    condition: str
    holds: Callable[[Any], bool]


def _whole(low: int, *, none: bool = False) -> Rule:
    words = f"a whole number of at least {low}" + (" or null" if none else "")

    def holds(value: Any) -> bool:
        if value is None:
            return none
        return _is_whole(value) and int(value) >= low

    return Rule(words, holds)


def _number(words: str, holds: Callable[[float], bool], *, none: bool = False) -> Rule:
    def number_holds(value: Any) -> bool:
        if value is None:
            return none
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and math.isfinite(value) and holds(float(value))

    return Rule(words + (" or null" if none else ""), number_holds)


def _path(words: str, *, none: bool = False) -> Rule:
    words += " or null" if none else ""
    return Rule(words, lambda value: none if value is None else isinstance(value, (str, os.PathLike)) and value != "")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_AT_LEAST_0.holds(weight) for weight in value.values())


def _is_acquisition(value: Any) -> bool:
    return value is None or bool(AcquisitionRange.from_dict(dict(value)))


def _is_populations(value: Any) -> bool:
    return len(value) > 0 and all(bool(parse_population(name)) and _POSITIVE.holds(value[name]) for name in value)


def _is_steps(value: Any) -> bool:
    return _is_whole(value) and 0 <= int(value) <= MAX_STEPS


def _is_window(value: Any) -> bool:
    return value is None or (_is_whole(value) and value > 0 and value % 8 == 0)


def _is_channels(value: Any) -> bool:
    return len(value) > 0 and all(len(stage) >= 2 and all(_is_whole(c) and c > 0 for c in stage) for stage in value)


def _is_levels(value: Any) -> bool:
    return not isinstance(value, str) and len(value) == 5 and all(_is_whole(c) and c > 0 for c in value)


def _is_device(value: Any) -> bool:
    device = torch.device(value)
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or torch.backends.mps.is_available()


def _is_names(value: Any) -> bool:
    names = [value] if isinstance(value, str) else list(value)
    return not isinstance(value, Mapping) and len(names) > 0 and all(isinstance(name, str) and name for name in names)


_POSITIVE = _number("a number above 0", lambda value: value > 0)
_AT_LEAST_0 = _number("a number of at least 0", lambda value: value >= 0)
_SHARE = _number("a number in [0, 1]", lambda value: 0 <= value <= 1)
# Fire, which reads MONAI's command line, takes `true` for a word.
_FLAG = Rule("true or false (True or False on MONAI's command line)", lambda value: isinstance(value, bool))
_GRID = Rule("a divisor of 256", lambda value: _is_whole(value) and value > 0 and 256 % value == 0)
_WINDOW = Rule("a multiple of 8 voxels or null", _is_window)

RULES: dict[str, Rule] = {
    "bundle_root": _path("the bundle's folder"),
    "ckpt_dir": _path("a folder's name"),
    "log_dir": _path("a folder's name"),
    "cache_dir": _path("a folder's name"),
    "output_dir": _path("a folder's name"),
    "predecessor": _path("a checkpoint's name", none=True),
    "grow": _FLAG,
    "grow_from": _path("a checkpoint's name", none=True),
    "checkpoint": _path("a checkpoint's name"),
    "stage": Rule("1, 2 or 3", lambda value: _is_whole(value) and value in (1, 2, 3)),
    "grid": _GRID,
    "geometry": Rule("a geometry (a preset's name or ConeBeam's fields)", lambda value: bool(parse_beam(value))),
    "seed": _whole(0),
    "dataset_dir": Rule(
        "a folder's name or empty", lambda value: value is None or isinstance(value, (str, os.PathLike))
    ),
    "device": Rule("a device of this machine", _is_device),
    "amp": _FLAG,
    "resume": Rule('true, false or "auto"', lambda value: isinstance(value, bool) or value == "auto"),
    "force_resume": _FLAG,
    "checkpoint_minutes": _POSITIVE,
    "keep_checkpoints": _whole(1),
    "skip_bad": _whole(0),
    "unet_channels": Rule("a list of channels per stage, two levels or more", _is_channels),
    "lift_channels": _whole(0),
    "cross_attention": _FLAG,
    "encoder_channels": Rule("five numbers of channels, one per level", _is_levels),
    "token_dim": Rule("a multiple of 4", lambda value: _is_whole(value) and value > 0 and value % 4 == 0),
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
    "tracker": Rule(f"one of {', '.join(TOOLS)} or null", lambda value: value in (None, *TOOLS)),
    "num_workers": _whole(0),
    "num_phantoms": _whole(0),
    "num_validation_phantoms": _whole(0),
    "num_mean_phantoms": _whole(0),
    "ct_share": _SHARE,
    "mirror_cts": _FLAG,
    "epoch_size": _whole(1, none=True),
    "simulation_grid": _GRID,
    "window": _WINDOW,
    "roi_size": _WINDOW,
    "distance_jitter": _number("a number in [0, 0.1)", lambda value: 0 <= value < 0.1),
    "shift_jitter": _AT_LEAST_0,
    "photons": _number("a number above 0", lambda value: value > 0, none=True),
    "uncalibrated": _SHARE,
    "geometry_range": Rule("GeometryRange's fields or null", lambda value: value is None or bool(parse_range(value))),
    "range_share": _SHARE,
    "acquisition": Rule("AcquisitionRange's fields or null", _is_acquisition),
    "display_errors": Rule("GeometryErrors's fields or null", lambda value: value is None or bool(parse_errors(value))),
    "surroundings_mm": _number("a number in [0, 150]", lambda value: 0 <= value <= 150),
    "populations": Rule("an object of populations' names and weights above 0", _is_populations),
    "loss_weights": Rule("an object of numbers of at least 0", _is_weights),
    "perceptual_weights": _path('"ct", "imagenet" or a file\'s name'),
    "perceptual_slices": _whole(1),
    "section": Rule(f"one of {', '.join(SECTIONS)}", lambda value: value in SECTIONS),
    "num_samples": _whole(1, none=True),
    "sample_idx": _whole(0, none=True),
    "overlap": _number("a number in [0, 1)", lambda value: 0 <= value < 1),
    "consistency_rounds": _whole(0),
    "refine_steps": Rule(f"a whole number from 0 to {MAX_STEPS}", _is_steps),
    "refine_cache": _path("a folder's name", none=True),
    "repeat_passes": _whole(1, none=True),
    "portable": _FLAG,
    "protocols": Rule("a protocol's name or a list of them", _is_names),
    "save_nifti": _FLAG,
    "pictures": _FLAG,
    "baselines": _FLAG,
}
"""What each setting must be, by its key at the top of a config."""
