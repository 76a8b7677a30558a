# SPDX-License-Identifier: Apache-2.0
"""What a CT scanner leaves of a patient: a round field of view, and two end slices that stand for what lies beyond."""

from __future__ import annotations

import numpy as np
import torch

from progressive_cascade.attenuation import AIR_HU
from progressive_cascade.phantom.patient import Scan
from progressive_cascade.phantom.raster import Canvas


def crop_to_scan(canvas: Canvas, scan: Scan) -> None:
    """Air beyond the field of view; beyond the ends the last slice again, as `prepare` extends a short CT."""
    x, y, z = canvas.coordinates
    if scan.field is not None:
        center_x, center_y, radius = scan.field
        outside = torch.from_numpy(np.hypot(x[:, None] - center_x, y[None, :] - center_y) > radius)
        canvas.hu.masked_fill_(outside[:, :, None], AIR_HU)
        canvas.labels.masked_fill_(outside[:, :, None], 0)
    if scan.ends is not None:
        inside = np.flatnonzero((z >= scan.ends[0]) & (z <= scan.ends[1]))
        if len(inside) == 0:
            inside = np.array([int(np.abs(z - np.mean(scan.ends)).argmin())])
        source = torch.from_numpy(np.clip(np.arange(len(z)), inside[0], inside[-1]))
        canvas.hu, canvas.labels = canvas.hu[:, :, source], canvas.labels[:, :, source]
