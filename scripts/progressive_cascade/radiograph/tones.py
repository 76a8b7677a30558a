# SPDX-License-Identifier: Apache-2.0
"""Grey levels of unknown scale brought to line integrals by their order alone: what a typical patient casts.

A picture for the eye keeps the order of the line integrals and little else: tone curves, contrast enhancement and the
part of the chest that a film shows move its black and its white. What patients cast behind their bodies differs far
less: the quantiles of seven chests lie within 0.2 to 0.7 of each other, one standard deviation, of 1.5 to 7.6.
"""

from __future__ import annotations

import numpy as np

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
# What is darker than this share of the picture's range is air beside the patient.
_AIR = 0.07
# A picture with less of a body than this has none whose quantiles mean anything.
_LEAST_BODY = 0.05


def typical_line_integrals(image: np.ndarray, seen: np.ndarray, kind: str, *, straight: bool = False) -> np.ndarray:
    """A picture's line integrals, if its patient were a typical one.

    Args:
        image: (rows, cols), dense high, any scale.
        seen: True where a pixel counts.
        kind: ``frontal`` or ``lateral``.
        straight: the values are line integrals but for a gain and an offset.

    Returns:
        Line integrals (rows, cols), float32: a monotone function of the image; 0 for its darkest, unless straight.
    """
    low, high = np.percentile(image[seen], [0.2, 99.8])
    if high <= low:
        low, high = image[seen].min(), image[seen].max()
    share = (image - low) / max(float(high - low), 1e-9)
    body = share[seen & (share > _AIR)]
    typical = np.array(TYPICAL[kind])
    if body.size < _LEAST_BODY * seen.sum():
        return (share * typical[-1]).astype(np.float32)
    knots = np.quantile(body, np.linspace(0, 1, len(typical)))
    if straight:
        gain, offset = np.polyfit(knots, typical, 1)
        return (gain * share + offset).astype(np.float32)
    # Air lies below the body; equal quantiles, of saturated pixels, would leave the curve without a value.
    knots = np.maximum.accumulate(np.concatenate(([0.0], knots)) + 1e-6 * np.arange(len(knots) + 1))
    return np.interp(share, knots, np.concatenate(([0.0], typical))).astype(np.float32)
