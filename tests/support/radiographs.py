# SPDX-License-Identifier: Apache-2.0
"""A pair of radiographs of a phantom, and the files a hospital or a web page would hand it out in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from progressive_cascade.attenuation import hu_to_mu
from progressive_cascade.geometry import ConeBeam, volume_affine
from progressive_cascade.phantom import generate_phantom
from progressive_cascade.projector import line_integrals
from tests.support.dicom_files import dx, save

SIZE, FOCAL = 128, 1800 / 3.36
BEAM = ConeBeam(detector_shape=(SIZE, SIZE), pixel_spacing=(3.36, 3.36))


@lru_cache(maxsize=4)
def phantom_pair(size: int = SIZE, seed: int = 3) -> np.ndarray:
    """Line integrals (2, size, size) on a detector of 430 mm."""
    made = generate_phantom(seed, shape=(64, 64, 64), spacing=5.6)
    pitch = 3.36 * SIZE / size
    beam = ConeBeam(detector_shape=(size, size), pixel_spacing=(pitch, pitch))
    mu = hu_to_mu(torch.as_tensor(made.hu, dtype=torch.float32)[None, None])
    return line_integrals(mu, beam, affine=volume_affine((64, 64, 64), 5.6))[0].numpy()


def save_dx(pixels: np.ndarray, path: Path, **attributes: Any) -> Path:
    """A DX file of whole numbers."""
    dataset = dx(Rows=pixels.shape[0], Columns=pixels.shape[1], **attributes)
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation = 0
    if "PhotometricInterpretation" not in attributes:
        dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = np.ascontiguousarray(pixels, dtype=np.uint16).tobytes()
    return save(dataset, path)


def signal(image: np.ndarray) -> np.ndarray:
    """What a detector counts, 60000 without a patient."""
    return np.round(60000 * np.exp(-image))


def grey(image: np.ndarray, white: int = 65535) -> np.ndarray:
    """Display values, bone bright."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.round(np.clip((image - low) / (high - low), 0, 1) * white)
