# SPDX-License-Identifier: Apache-2.0
"""Grey levels of unknown scale brought to line integrals by their order alone: what a typical patient casts.

A picture for the eye keeps the order of the line integrals and little else: tone curves, contrast enhancement and the
part of the chest that a film shows move its black and its white. What patients cast behind their bodies differs far
less: the quantiles of seven chests lie within 0.2 to 0.7 of each other, one standard deviation, of 1.5 to 7.6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.precision import upload

TYPICAL = {
    "frontal": (
        *(0.31, 1.49, 1.92, 2.14, 2.27, 2.38, 2.48, 2.58, 2.70, 2.81, 2.93),
        *(3.05, 3.19, 3.34, 3.50, 3.67, 3.87, 4.09, 4.33, 4.63, 5.19),
    ),
    "lateral": (
        *(0.30, 1.37, 2.30, 2.90, 3.31, 3.60, 3.81, 3.98, 4.14, 4.29, 4.45),
        *(4.60, 4.75, 4.93, 5.11, 5.33, 5.56, 5.80, 6.12, 6.65, 7.58),
    ),
}
"""Quantiles of the line integrals above 0.3 at 70 keV, in twentieths, of the chest stand's frontal and lateral: mean of
six training CTs' and 40 phantoms', each half."""
AIR_SHARE = 0.07
"""What is darker than this share of a picture's range is air beside the patient."""
_RANGE = (0.002, 0.998)
# A picture with less of a body than this has none whose quantiles mean anything.
_LEAST_BODY = 0.05


def typical_line_integrals(
    image: Tensor, kinds: Sequence[str], *, seen: Tensor | None = None, straight: bool = False
) -> Tensor:
    """Pictures' line integrals, if their patients were typical ones.

    Nothing waits for the device.

    Args:
        image: (..., view, rows, cols), dense high, any scale.
        kinds: of the views, each ``frontal`` or ``lateral``.
        seen: True where a pixel counts, same shape; None: all do.
        straight: the values are line integrals but for a gain and an offset.

    Returns:
        Line integrals, same shape, float32: of each view a monotone function; 0 for its darkest, unless straight.
    """
    pixels = image.float().flatten(-2)
    counted = pixels if seen is None else pixels.where(seen.flatten(-2), torch.nan)
    typical = upload(np.array([TYPICAL[kind] for kind in kinds]), image.device)
    typical = typical.expand(*pixels.shape[:-1], typical.shape[-1])
    low, high = _quantiles(counted, _RANGE).split(1, dim=-1)
    flat = high <= low
    low = low.where(~flat, counted.nan_to_num(torch.inf).amin(dim=-1, keepdim=True))
    high = high.where(~flat, counted.nan_to_num(-torch.inf).amax(dim=-1, keepdim=True))
    share = (pixels - low) / (high - low).clamp(min=1e-9)
    counted = (counted - low) / (high - low).clamp(min=1e-9)
    body = counted.where(counted > AIR_SHARE, torch.nan)
    enough = body.isfinite().sum(dim=-1, keepdim=True) >= _LEAST_BODY * counted.isfinite().sum(dim=-1, keepdim=True)
    knots = _quantiles(body, np.linspace(0, 1, len(TYPICAL["frontal"]))).nan_to_num(0.0)
    found = _line(share, knots, typical) if straight else _curve(share, knots, typical)
    return found.where(enough, share * typical[..., -1:]).reshape(image.shape)


def _quantiles(values: Tensor, shares: Sequence[float] | np.ndarray) -> Tensor:
    """Quantiles along the last axis, NaN passed over (..., n)."""
    at = upload(np.array(shares), values.device)
    return torch.nanquantile(values, at, dim=-1).movedim(0, -1)


def _line(share: Tensor, knots: Tensor, typical: Tensor) -> Tensor:
    """The straight line through the quantiles that leaves least."""
    x, y = knots - knots.mean(dim=-1, keepdim=True), typical - typical.mean(dim=-1, keepdim=True)
    gain = (x * y).sum(dim=-1, keepdim=True) / x.square().sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return gain * (share - knots.mean(dim=-1, keepdim=True)) + typical.mean(dim=-1, keepdim=True)


def _curve(share: Tensor, knots: Tensor, typical: Tensor) -> Tensor:
    """Linear between the quantiles, from 0 for the darkest to the last."""
    # Air lies below the body; equal quantiles, of saturated pixels, would leave the curve without a value.
    start = torch.zeros_like(knots[..., :1])
    rising = 1e-6 * torch.arange(knots.shape[-1] + 1, device=knots.device)
    x = torch.cummax(torch.cat([start, knots], dim=-1) + rising, dim=-1).values
    y = torch.cat([start, typical], dim=-1)
    after = torch.searchsorted(x.contiguous(), share.contiguous()).clamp(1, x.shape[-1] - 1)
    x0, x1, y0, y1 = (each.gather(-1, index) for each in (x, y) for index in (after - 1, after))
    return y0 + ((share - x0) / (x1 - x0)).clamp(0, 1) * (y1 - y0)
