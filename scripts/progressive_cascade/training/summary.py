# SPDX-License-Identifier: Apache-2.0
"""The page that tells what a training was like: one file with curves, pictures, time, memory, versions and hashes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch import Tensor

from progressive_cascade.training.pictures import to_data_url

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420, 180, 56, 22
_NOT_TERMS = ("epoch", "step", "score", "samples_per_second", "wait_share", "memory_gb")

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body{font:15px/1.45 system-ui,sans-serif;max-width:960px;
margin:1.5rem auto;padding:0 1rem;color:#1b2733;background:#fff}
h1{font-size:1.4rem;margin:.2rem 0} h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
.row{display:flex;flex-wrap:wrap;gap:14px} figure{margin:0} figcaption{font-size:.8rem;color:#52606d}
img{height:190px;background:#000;display:block} svg text{font-size:11px;fill:#52606d}
table{border-collapse:collapse;font-variant-numeric:tabular-nums} td,th{padding:2px 12px 2px 0;text-align:left}
code{font-size:.85em}
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ headline }}</p>
<h2>Curves</h2>
<div class="row">{% for curve in curves %}<figure>{{ curve.drawing }}<figcaption>{{ curve.name }}</figcaption></figure>
{% endfor %}</div>
{% if pictures %}<h2>The validation's first case, after epoch {{ pictures_epoch }}</h2>
<div class="row">{% for name, address in pictures.items() %}<figure><img alt="{{ name }}" src="{{ address }}">
<figcaption>{{ name }}</figcaption></figure>{% endfor %}</div>{% endif %}
<h2>Run</h2>
<table>{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
</body></html>
"""


def build_summary(
    title: str,
    epochs: Sequence[Mapping[str, float]],
    *,
    pictures: Mapping[str, Tensor],
    pictures_epoch: int,
    seconds: float,
    versions: Mapping[str, str],
    hashes: Mapping[str, str],
) -> str:
    """The page's HTML, which needs no other file.

    Args:
        title: its heading.
        epochs: what :class:`~.history.History` kept, at least one.
        pictures: grey pictures (rows, cols), uint8, by name.
        pictures_epoch: after which epoch they were taken.
        seconds: spent training [s].
        versions: of the software, by name.
        hashes: of settings, data and code.

    Returns:
        HTML.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    terms = [name for name in epochs[-1] if name not in _NOT_TERMS]
    names = {
        "score": "validation PSNR, native protocol [dB]",
        "samples_per_second": "samples/s",
        **{n: n for n in terms},
    }
    curves = [{"name": label, "drawing": Markup(draw_curve(epochs, name))} for name, label in names.items()]
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        title=title,
        headline=_headline(epochs),
        curves=curves,
        pictures={name: to_data_url(picture) for name, picture in pictures.items()},
        pictures_epoch=pictures_epoch,
        facts=_facts(epochs, seconds, versions, hashes),
    )


def _facts(
    epochs: Sequence[Mapping[str, float]], seconds: float, versions: Mapping[str, str], hashes: Mapping[str, str]
) -> dict[str, str]:
    memory, wait = (max(row.get(name, math.nan) for row in epochs) for name in ("memory_gb", "wait_share"))
    return {
        "epochs, steps": f"{epochs[-1]['epoch']:.0f}, {epochs[-1]['step']:.0f}",
        "time": str(timedelta(seconds=round(seconds))),
        "peak memory": f"{memory:.2f} GB",
        "longest wait for cases": f"{wait:.0%} of an epoch",
        **{f"version of {name}": value for name, value in versions.items()},
        **{f"hash of the {name}": value for name, value in hashes.items()},
    }


def draw_curve(epochs: Sequence[Mapping[str, float]], name: str) -> str:
    """One quantity over the epochs as an SVG; epochs without it are passed over."""
    points = [(row["epoch"], row[name]) for row in epochs if math.isfinite(row.get(name, math.nan))]
    if not points:
        return '<svg width="120" height="20"><text x="0" y="14">no value yet</text></svg>'
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / max(last - first, 1) * (_WIDTH - _LEFT - 12) + _LEFT
        up = (y - low) / (high - low) if high > low else 0.5
        return across, 10 + (1 - up) * (_HEIGHT - _BOTTOM - 14)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    dots = "".join('<circle cx="{:.1f}" cy="{:.1f}" r="2"/>'.format(*place(*point)) for point in points)
    base = _HEIGHT - _BOTTOM
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{name}">'
        f'<rect x="{_LEFT}" y="4" width="{_WIDTH - _LEFT - 6}" height="{base - 2}" fill="#f4f6f8"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="1.6"/><g fill="#1f6feb">{dots}</g>'
        f'<text x="{_LEFT - 6}" y="16" text-anchor="end">{high:.4g}</text>'
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">epoch {first:.0f}</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 4}" text-anchor="end">{last:.0f}</text></svg>'
    )


def _headline(epochs: Sequence[Mapping[str, Any]]) -> str:
    scored = [row for row in epochs if "score" in row]
    if not scored:
        return "No validation yet."
    best = max(scored, key=lambda row: row["score"])
    return (
        f"Best epoch {best['epoch']:.0f} of {epochs[-1]['epoch']:.0f}: {best['score']:.2f} dB "
        "(3-D PSNR of the validation cases, native protocol); its weights are the ones beside this page."
    )
