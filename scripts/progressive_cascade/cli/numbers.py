# SPDX-License-Identifier: Apache-2.0
"""Numbers as arguments: each says what it must be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def natural(text: str) -> int:
    """An argument that is a whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of 0 or more, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """An argument that is a whole number of 1 or more."""
    if natural(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def fraction(text: str) -> float:
    """An argument that is a number in [0, 1)."""
    return _number(text, "a number of at least 0 and below 1", lambda value: 0 <= value < 1)


def amount(text: str) -> float:
    """An argument that is a finite number of at least 0."""
    return _number(text, "a number of at least 0", lambda value: 0 <= value < math.inf)


def positive_amount(text: str) -> float:
    """An argument that is a finite number above 0."""
    return _number(text, "a number above 0", lambda value: 0 < value < math.inf)


def _number(text: str, condition: str, holds: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise argparse.ArgumentTypeError(f"must be {condition}, got {text!r}")
    return value
