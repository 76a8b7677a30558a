# SPDX-License-Identifier: Apache-2.0
"""Two ways of measuring one thing, patient by patient: the plot of Bland and Altman."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from progressive_cascade.report.diagrams import blank_figure, dress
from progressive_cascade.report.drawing import FAINT, TEXT, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
_POINT = "#9be1ff"


def bland_altman_figure(panels: Mapping[str, Sequence[tuple[float, float]]], path: str | PathLike[str]) -> None:
    """Draws differences against means, with their mean and the limits of agreement (1.96 standard deviations).

    Source: Bland and Altman 1986, doi 10.1016/S0140-6736(86)90837-8.

    Args:
        panels: pairs (reconstruction, CT) by what is measured; a panel of fewer than two is left empty.
        path: PNG file; written whole or not at all.

    Raises:
        ValueError: without a panel.
    """
    if not panels:
        raise ValueError("panels must hold at least one measure, got none")
    rows = -(-len(panels) // _COLUMNS)
    figure, grid = blank_figure(rows, _COLUMNS, shared=False)
    places = [axes for row in grid for axes in row]
    for axes, (label, pairs) in zip(places, panels.items(), strict=False):
        dress(axes, title=label, x_label="mean of both", y_label="reconstruction − CT")
        _draw(axes, np.asarray(pairs, dtype=np.float64).reshape(-1, 2))
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def agreement_limits(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of at least two differences, and 1.96 standard deviations below and above it."""
    bias, spread = float(np.mean(differences)), 1.96 * float(np.std(differences, ddof=1))
    return bias, bias - spread, bias + spread


def _draw(axes: Axes, pairs: np.ndarray) -> None:
    if len(pairs) < 2:
        return
    difference = pairs[:, 0] - pairs[:, 1]
    bias, low, high = agreement_limits(difference.tolist())
    axes.scatter(pairs.mean(axis=1), difference, s=14, color=_POINT)
    axes.axhline(0.0, color=FAINT, linewidth=0.5)
    axes.axhline(bias, color=TEXT, linewidth=1.0)
    for limit in (low, high):
        axes.axhline(limit, color=TEXT, linewidth=0.8, linestyle="--")
