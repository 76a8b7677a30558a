# SPDX-License-Identifier: Apache-2.0
"""A pair of volumes and masks that every protocol is tried on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.support.scores import SHAPE


@pytest.fixture(scope="session")
def volumes() -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth in HU, beyond every protocol's window at both ends, with empty slices at one end."""
    rng = np.random.default_rng(0)
    target = 900 * gaussian_filter(rng.standard_normal(SHAPE), 1.5) / 0.05**0.5 - 200
    prediction = target + 150 * gaussian_filter(rng.standard_normal(SHAPE), 1.0) + rng.normal(0, 40, SHAPE)
    target[:3] = prediction[:3] = -1024
    assert target.min() < -1024 and target.max() > 1500
    return prediction, target


@pytest.fixture(scope="session")
def masks() -> tuple[np.ndarray, np.ndarray]:
    """Masks `valid` and `body` that overlap in part; some slices at the ends hold no voxel of them."""
    rng = np.random.default_rng(1)
    valid, body = rng.random(SHAPE) > 0.4, rng.random(SHAPE) > 0.5
    valid[:, :2] = False
    body[:5] = body[:, :, -4:] = False
    return valid, body
