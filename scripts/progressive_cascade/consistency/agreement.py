# SPDX-License-Identifier: Apache-2.0
"""What radiographs say without a network: how noisy they are, and how well a reconstruction explains them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def estimate_noise(image: Tensor) -> Tensor:
    """Standard deviation of the noise in line integrals, from their second differences.

    Immerkaer, Fast noise variance estimation, 1996, doi 10.1006/cviu.1996.0060, with the median in place of the mean:
    the patient's edges count little.

    Args:
        image: line integrals (b, view, rows, cols), at least 3 x 3 pixels.

    Returns:
        (b,), of the view with more noise, no unit.
    """
    mask = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], device=image.device)
    second = F.conv2d(image.flatten(0, 1)[:, None].float(), mask[None, None]).abs().flatten(1)
    # The mask multiplies the standard deviation by 6; the median of |N(0, 1)| is 0.6745.
    sigma = second.median(dim=1).values / (6.0 * 0.6745)
    return sigma.reshape(image.shape[0], -1).amax(dim=1)


def agreement(
    predicted: np.ndarray, measured: np.ndarray, views: Sequence[str], weights: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """How well re-projected radiographs explain the measured ones.

    Args:
        predicted: line integrals of the reconstruction (view, rows, cols).
        measured: the radiographs' line integrals (view, rows, cols).
        views: name of each view.
        weights: of the pixels (view, rows, cols); those of weight 0 do not count. Default: 1 everywhere.

    Returns:
        Per view ``relative_residual`` = |A x - y| / |y| and ``psnr_db`` = 20 log10(max y / rmse).

    Raises:
        ValueError: if the shapes differ.
    """
    if predicted.shape != measured.shape or len(views) != len(measured):
        raise ValueError(f"predicted must have the shape of measured {measured.shape}, got {predicted.shape}")
    scores = {}
    shows = np.ones(measured.shape, dtype=bool) if weights is None else weights > 0
    for name, all_ours, all_truth, seen in zip(views, predicted, measured, shows, strict=True):
        ours, truth = all_ours[seen].astype(np.float64), all_truth[seen].astype(np.float64)
        if truth.size == 0:
            scores[name] = {"relative_residual": math.nan, "psnr_db": math.nan}
            continue
        rmse = float(np.sqrt(np.mean((ours - truth) ** 2)))
        norm = float(np.linalg.norm(truth))
        scores[name] = {
            "relative_residual": float(np.linalg.norm(ours - truth)) / norm if norm > 0 else math.inf,
            "psnr_db": 20.0 * math.log10(float(truth.max()) / rmse) if rmse > 0 and truth.max() > 0 else math.inf,
        }
    return scores
