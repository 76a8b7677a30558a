# SPDX-License-Identifier: Apache-2.0
"""A radiograph turned to how its view is read: as its tags say, as the picture shows, or as this project stores it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.geometry.views import view_axes
from progressive_cascade.radiograph.assumptions import COST_OF_ORIENTATION
from progressive_cascade.radiograph.onto import fill, find_border, turn
from progressive_cascade.radiograph.orientation import Seen, look_at
from progressive_cascade.radiograph.record import Radiograph, nearest_letters

# Below the first a picture is not turned, below the second it contradicts no tag, below the third it decides no kind.
_TURN, _CONTRADICT, _KIND = 0.8, 0.97, 0.97
# Between these it is open whether a frontal is mirrored.
_NOT_MIRROR, _MIRROR = 0.05, 0.995


@dataclass(frozen=True)
class Upright:
    """A radiograph as it is read.

    Attributes:
        radiograph: with pixels, mask, spacing and offset turned.
        view: of the geometry.
        transposed: whether rows and columns changed places.
        facts: what was known of it as it was stored.
        notes: what was done.
        warnings: where tags and picture contradict each other.
        assumptions: where neither tells.
        mirror: of a frontal, the probability that it is mirrored, by its picture; None where it was not looked at.
    """

    radiograph: Radiograph
    view: str
    transposed: bool
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    mirror: float | None = None


def kind_of(radiograph: Radiograph) -> str | None:
    """Frontal or lateral: by its view, else the plane its directions span, else the picture; None where unsure."""
    said = kind_by_tags(radiograph.view, radiograph.directions)
    if said is not None:
        return said
    seen = _look(radiograph)
    return seen.kind if seen is not None and seen.probability > _KIND else None


def kind_by_tags(view: str | None, directions: tuple[str, str] | None) -> str | None:
    """Frontal or lateral: by the view, else the plane the directions span; None where neither is known."""
    found = _as_read(view) or directions
    return None if found is None else _kind(found)


def make_upright(radiograph: Radiograph, kind: str, trust: str | None = None, *, mirror: bool = False) -> Upright:
    """Turns a radiograph to how its view is read.

    A frontal and its mirror image are one answer here; see :func:`~progressive_cascade.inference.examine.examine`.

    Args:
        radiograph: as it is stored.
        kind: what it is to be, frontal or lateral.
        trust: "tags" or "picture" decides where they contradict each other; None: the tags, with a warning.
        mirror: flip it left to right at last.

    Raises:
        UserError: if its directions do not lie in the plane of its view.
    """
    usual = "pa" if kind == "frontal" else "left_lateral"
    view = usual if radiograph.view is None or _as_read(radiograph.view) is None else radiograph.view
    by = _by_picture if radiograph.directions is None else _by_tags
    upright = by(radiograph, view, kind, trust)
    if not mirror:
        return upright
    flipped, _ = _apply(upright.radiograph, Seen(kind, 0, True, False, 1.0))
    return replace(upright, radiograph=flipped, mirror=None if upright.mirror is None else 1 - upright.mirror)


def _by_tags(radiograph: Radiograph, view: str, kind: str, trust: str | None) -> Upright:
    target = _as_read(view) or ("L", "F")
    directions = radiograph.directions or target
    if _kind(target) != _kind(directions):
        shown = "\\".join(directions)
        raise UserError(f"{radiograph.path} must have an orientation that fits the view {view}, got {shown}")
    turned, transposed = _turned(radiograph, target)
    upright = Upright(turned, view, transposed, radiograph.facts())
    seen = _look(turned, mirrored=target[0] in "RA")
    if seen is None or seen.probability < _CONTRADICT or seen.kind != kind:
        return upright
    upright = replace(upright, mirror=_mirror_of(seen))
    if seen.as_read:
        return upright
    source = radiograph.sources.get("directions", "tag")
    said = f"{radiograph.path}: the {source} says {chr(92).join(directions)}, the picture looks {_describe(seen)}"
    if trust != "picture":
        warnings = [] if trust == "tags" else [f"{said}; give --trust-picture or --trust-tags"]
        return replace(upright, warnings=warnings)
    again, more = _apply(turned, seen)
    notes = [f"{said}; the picture was trusted"]
    return replace(upright, radiograph=again, transposed=transposed != more, notes=notes)


def _by_picture(radiograph: Radiograph, view: str, kind: str, trust: str | None) -> Upright:
    del trust  # no tag contradicts
    seen = _look(radiograph, mirrored=(_as_read(view) or "L")[0] in "RA")
    upright = Upright(radiograph, view, False, radiograph.facts())
    if seen is None or seen.probability < _TURN or seen.kind != kind:
        assumption = f"{radiograph.path} lies as a {view.replace('_', ' ')} is read: else {COST_OF_ORIENTATION}"
        return replace(upright, assumptions=[assumption])
    if not seen.as_read:
        turned, transposed = _apply(radiograph, seen)
        notes = [f"{radiograph.path} looks {_describe(seen)} and was put right"]
        upright = replace(upright, radiograph=turned, transposed=transposed, notes=notes)
    if _NOT_MIRROR < seen.mirror < _MIRROR:
        upright = replace(upright, assumptions=[f"{radiograph.path} is no mirror image: else {COST_OF_ORIENTATION}"])
    return replace(upright, mirror=_mirror_of(seen))


def _as_read(view: str | None) -> tuple[str, str] | None:
    """The letters nearest to where columns and rows of a view run, by name or angles; None where there is no such."""
    try:
        return None if view is None else nearest_letters(np.stack(view_axes(view)[1:]))
    except ValueError:
        return None


def _kind(directions: tuple[str, str]) -> str:
    return "lateral" if set(directions) & set("AP") else "frontal"


def _mirror_of(seen: Seen) -> float | None:
    return seen.mirror if seen.kind == "frontal" else None


def _look(radiograph: Radiograph, *, mirrored: bool = False) -> Seen | None:
    """What the picture shows, without its collimation; a right lateral is looked at in a mirror."""
    dense = -radiograph.pixels if radiograph.meaning == "detector_signal" else radiograph.pixels
    step = max(1, max(dense.shape) // 512)
    small, mask = dense[::step, ::step], radiograph.mask[::step, ::step]
    if radiograph.meaning == "detector_signal":
        small = -np.log(np.maximum(-small, max(float(-small.min()) * 1e-4, 1e-9)))
    if radiograph.meaning != "line_integral":
        mask = mask & find_border(small)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    picture = fill(small[box], mask[box])
    return look_at(picture[:, ::-1] if mirrored else picture)


def _turned(radiograph: Radiograph, target: tuple[str, str]) -> tuple[Radiograph, bool]:
    directions = radiograph.directions or target
    pixels, transposed, signs = turn(radiograph.pixels, directions, target)
    mask, _, _ = turn(radiograph.mask, directions, target)
    offset = radiograph.offset[::-1] if transposed else radiograph.offset
    changed = replace(
        radiograph,
        pixels=pixels,
        mask=mask,
        spacing=_swapped(radiograph.spacing, transposed),
        offset=(offset[0] * signs[0], offset[1] * signs[1]),
    )
    return changed, transposed


def _apply(radiograph: Radiograph, seen: Seen) -> tuple[Radiograph, bool]:
    """The copy that looked as it is read; inverted line integrals have lost their scale."""
    transposed = bool(seen.quarter_turns % 2)
    pixels, mask = (np.rot90(array, seen.quarter_turns) for array in (radiograph.pixels, radiograph.mask))
    if seen.mirrored:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    meaning = "display" if seen.inverted else radiograph.meaning
    changed = replace(
        radiograph,
        pixels=-pixels if seen.inverted and radiograph.meaning != "detector_signal" else pixels,
        mask=mask,
        meaning=meaning,
        spacing=_swapped(radiograph.spacing, transposed),
    )
    return changed, transposed


def _swapped(spacing: tuple[float, float] | None, transposed: bool) -> tuple[float, float] | None:
    return (spacing[1], spacing[0]) if spacing is not None and transposed else spacing


def _describe(seen: Seen) -> str:
    words = [f"turned by {90 * seen.quarter_turns} degrees"] if seen.quarter_turns else []
    words += ["mirrored"] if seen.mirrored else []
    words += ["inverted"] if seen.inverted else []
    return ", ".join(words)
