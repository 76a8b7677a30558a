# SPDX-License-Identifier: Apache-2.0
"""Line integrals as grey levels: a window, and the two ways DICOM counts them."""

from __future__ import annotations

import torch
from torch import Tensor

PHOTOMETRICS = ("MONOCHROME1", "MONOCHROME2")
"""DICOM's photometric interpretations: the least pixel value is white (1) or black (2)."""
PERCENTILES = (0.5, 99.5)
"""What is black and what is white where no window is given [percent of a view's pixels]."""


def display_window(image: Tensor, percentiles: tuple[float, float] = PERCENTILES) -> tuple[Tensor, Tensor]:
    """The line integrals shown black and white, for every view by itself.

    Args:
        image: line integrals (..., rows, cols).
        percentiles: of a view's pixels [percent].

    Returns:
        Low and high ends of the window (..., 1, 1).

    Raises:
        ValueError: if the percentiles do not ascend between 0 and 100.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles must ascend between 0 and 100, got {percentiles}")
    at = torch.tensor([low / 100, high / 100], dtype=image.dtype, device=image.device)
    ends = torch.quantile(image.detach().flatten(-2), at, dim=-1)
    return ends[0, ..., None, None], ends[1, ..., None, None]


def display_image(
    image: Tensor, window: tuple[float, float] | None = None, *, photometric: str = "MONOCHROME2"
) -> Tensor:
    """Grey levels of a radiograph as it is read, bone bright and air black; differentiable inside the window.

    Args:
        image: line integrals (..., rows, cols).
        window: line integrals that become black and white; default: :func:`display_window` of every view.
        photometric: one of :data:`PHOTOMETRICS`; MONOCHROME1 stores ``1 - MONOCHROME2`` and looks the same in a viewer.

    Returns:
        Pixel values in [0, 1], same shape.

    Raises:
        ValueError: if the window does not ascend or the photometric interpretation is unknown.
    """
    if photometric not in PHOTOMETRICS:
        raise ValueError(f"photometric must be one of {PHOTOMETRICS}, got {photometric!r}")
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"window must ascend from black to white, got {window}")
    low, high = display_window(image) if window is None else window
    span = torch.as_tensor(high - low, dtype=image.dtype, device=image.device)
    grey = ((image - low) / span.clamp(min=torch.finfo(image.dtype).tiny)).clamp(0, 1)
    return 1 - grey if photometric == "MONOCHROME1" else grey
