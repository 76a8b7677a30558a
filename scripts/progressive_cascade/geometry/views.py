# SPDX-License-Identifier: Apache-2.0
"""Names of views and the directions they stand for: the four of chest radiography, and any C-arm angle.

A C-arm is named by the angles of its positioner as DICOM measures them (PS3.3 C.8.7.5.1.2): the primary angle is the
longitude of the detector about the patient, positive towards the patient's left (LAO); the secondary angle is its
latitude, positive towards the head (cranial). At 0, 0 the detector faces the chest: that view is a PA.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

# Unit vectors (RAS) from source to detector, along detector columns (left to right) and rows (top to bottom).
# Displayed as they are read: cranial up; PA and AP with the patient's right on the image's left; a left lateral with
# the patient's front on the image's left, a right lateral with it on the right. An AP is no C-arm angle: 180 degrees
# show the patient from behind, with the right on the image's right.
_NAMED_AXES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]] = {
    "pa": ((0, 1, 0), (-1, 0, 0), (0, 0, -1)),
    "ap": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "left_lateral": ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "right_lateral": ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
}
_OPPOSITE = {"pa": "ap", "ap": "pa", "left_lateral": "right_lateral", "right_lateral": "left_lateral"}
VIEWS = tuple(_NAMED_AXES)
"""The views that have a name of their own."""

ACCEPTED_VIEWS = (
    f"names out of {VIEWS}, or angles such as 'lao30', 'rao45.5', 'cranial20' or 'lao30_caudal15' "
    "(lao and rao up to 180 degrees, cranial and caudal up to 90)"
)
"""What a view may be called, for error messages."""

_ANGLES = re.compile(
    r"(?:(?P<primary_side>lao|rao)(?P<primary>\d+(?:\.\d+)?))?"
    r"(?:(?:(?<=\d)_|^)(?P<secondary_side>cranial|caudal)(?P<secondary>\d+(?:\.\d+)?))?"
)
_LARGEST_PRIMARY = 180.0
_LARGEST_SECONDARY = 90.0


def view_axes(view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Directions of a view's central ray and of its detector.

    For a primary angle ``a`` and a secondary angle ``b`` these are ``(-sin a cos b, cos a cos b, sin b)``,
    ``(-cos a, -sin a, 0)`` and ``(-sin a sin b, cos a sin b, -cos b)``.

    Args:
        view: one of :data:`VIEWS`, or angles: ``lao30``, ``rao45.5``, ``cranial20``, ``lao30_caudal15`` (degrees).

    Returns:
        Unit vectors (3,) in RAS: from source to detector, along increasing columns, along increasing rows.

    Raises:
        ValueError: if there is no such view, or an angle is out of range.

    Example:
        >>> along, column, row = view_axes("lao90")
        >>> along.tolist()
        [-1.0, 0.0, 0.0]
    """
    if view in _NAMED_AXES:
        along, column, row = (np.array(axis, dtype=np.float64) for axis in _NAMED_AXES[view])
        return along, column, row
    primary, secondary = view_angles(view)
    cos_a, sin_a = cos_sin_degrees(primary)
    cos_b, sin_b = cos_sin_degrees(secondary)
    # Adding zero turns -0 into 0.
    return (
        np.array([-sin_a * cos_b, cos_a * cos_b, sin_b]) + 0.0,
        np.array([-cos_a, -sin_a, 0.0]) + 0.0,
        np.array([-sin_a * sin_b, cos_a * sin_b, -cos_b]) + 0.0,
    )


def opposite_view(view: str) -> str:
    """The named view that looks along the same axis from its other end.

    Raises:
        ValueError: if the view has angles for a name.

    Example:
        >>> opposite_view("pa")
        'ap'
    """
    if view not in _OPPOSITE:
        raise ValueError(f"view must be one of {VIEWS} to have an opposite one, got {view!r}")
    return _OPPOSITE[view]


def view_angles(view: str) -> tuple[float, float]:
    """The positioner angles in a view's name.

    Args:
        view: angles such as ``rao30_caudal25``; the names in :data:`VIEWS` have none.

    Returns:
        Primary angle (positive LAO) and secondary angle (positive cranial) [degrees].

    Raises:
        ValueError: if the name holds no angles, or one is out of range.
    """
    found = _ANGLES.fullmatch(view)
    primary = secondary = math.inf
    if view and found is not None:
        primary = float(found["primary"] or 0) * (-1 if found["primary_side"] == "rao" else 1)
        secondary = float(found["secondary"] or 0) * (-1 if found["secondary_side"] == "caudal" else 1)
    if abs(primary) > _LARGEST_PRIMARY or abs(secondary) > _LARGEST_SECONDARY:
        raise ValueError(f"view must be one of {ACCEPTED_VIEWS}, got {view!r}")
    return primary, secondary


def view_name(primary: float, secondary: float = 0.0) -> str:
    """The name of the view at these positioner angles.

    Args:
        primary: primary angle, positive LAO [degrees], -180 to 180.
        secondary: secondary angle, positive cranial [degrees], -90 to 90.

    Returns:
        ``pa``, ``left_lateral`` and ``right_lateral`` at 0, 90 and -90 degrees, else such as ``lao30_cranial15``.

    Raises:
        ValueError: if an angle is out of range.

    Example:
        >>> view_name(-30.0, 25.0)
        'rao30_cranial25'
    """
    if not (abs(primary) <= _LARGEST_PRIMARY and abs(secondary) <= _LARGEST_SECONDARY):
        raise ValueError(
            f"view angles must lie within {_LARGEST_PRIMARY:g} and {_LARGEST_SECONDARY:g} degrees of zero, "
            f"got {primary:g} and {secondary:g}"
        )
    sides = (_side(primary, "lao", "rao"), _side(secondary, "cranial", "caudal"))
    name = "_".join(side for side in sides if side) or "pa"
    return {"lao90": "left_lateral", "rao90": "right_lateral"}.get(name, name)


def parse_views(views: Any) -> tuple[str, ...]:
    """``views`` as a tuple of names that :func:`view_axes` knows.

    Raises:
        TypeError: if they are no sequence, or an empty one.
        ValueError: if some are no views; the message names them and what is accepted.
    """
    if isinstance(views, str) or not views:
        raise TypeError(f"views must be a non-empty sequence of {ACCEPTED_VIEWS}, got {views!r}")
    unknown = [view for view in views if not (isinstance(view, str) and _is_view(view))]
    if unknown:
        raise ValueError(f"views must be {ACCEPTED_VIEWS}, got {unknown}")
    return tuple(views)


def cos_sin_degrees(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle in degrees, exact at multiples of 90 so that an aligned view stays aligned."""
    quarters, rest = divmod(angle, 90.0)
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarters) % 4):
        cos, sin = -sin, cos
    return cos, sin


def _is_view(view: str) -> bool:
    try:
        view_axes(view)
    except ValueError:
        return False
    return True


def _side(angle: float, positive: str, negative: str) -> str:
    """Such as ``lao30``; nothing at zero. Six decimals are far finer than any positioner."""
    size = f"{abs(angle):.6f}".rstrip("0").rstrip(".")
    return "" if size == "0" else f"{positive if angle > 0 else negative}{size}"
