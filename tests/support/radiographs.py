# SPDX-License-Identifier: Apache-2.0
"""A pair of radiographs of a phantom, and the files a hospital or a web page would hand it out in."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from PIL import Image

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
    pitch = 3.36 * SIZE / size
    return project_phantom((size, size), pitch, seed)


def project_phantom(shape: tuple[int, int], pitch: float, seed: int = 3) -> np.ndarray:
    """Line integrals (2, rows, cols) on a detector with such pixels [mm]."""
    beam = ConeBeam(detector_shape=shape, pixel_spacing=(pitch, pitch))
    mu = hu_to_mu(torch.from_numpy(phantom_hu(seed).astype(np.float32))[None, None])
    return line_integrals(mu, beam, affine=volume_affine((64, 64, 64), 5.6))[0].numpy()


@lru_cache(maxsize=4)
def phantom_hu(seed: int = 3) -> np.ndarray:
    """A phantom on 64³ voxels of 5.6 mm [HU], drawn once for all tests of a process; not to be written to."""
    hu = generate_phantom(seed, shape=(64, 64, 64), spacing=5.6).hu
    hu.flags.writeable = False
    return hu


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


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that are no radiographs, each in its own way, by name."""
    frontal = phantom_pair()[0]
    rng = np.random.default_rng(0)
    save_dx(grey(frontal, 4095), folder / "whole.dcm")
    whole = (folder / "whole.dcm").read_bytes()
    (folder / "truncated.dcm").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture")
    save_dx(grey(frontal, 4095), folder / "ct.dcm", Modality="CT")
    Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    Image.new("L", (1, 1)).save(folder / "pixel.png")
    Image.fromarray(np.where(frontal > 1.5, 255, 0).astype(np.uint8)).save(folder / "saturated.jpg", quality=100)
    Image.fromarray(np.where(frontal > 1.5, 255, 0).astype(np.uint8)).save(folder / "saturated.png")
    save_dx(np.full((128, 128), 7), folder / "constant.dcm")
    # Pixels and more are in an envelope for which nobody here has the key (DICOM PS3.15, E.1).
    envelope = pydicom.Dataset()
    envelope.EncryptedContentTransferSyntaxUID, envelope.EncryptedContent = "1.2.840.10008.1.2", bytes(64)
    encrypted = dx(Rows=128, Columns=128, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    encrypted.EncryptedAttributesSequence = pydicom.Sequence([envelope])
    save(encrypted, folder / "encrypted.dcm")
    header = (folder / "pixel.png").read_bytes()
    # A PNG's header says 30000 x 30000; nothing of that size must be allocated.
    size = struct.pack(">II", 30000, 30000) + header[24:29]
    chunk = b"IHDR" + size
    (folder / "huge.png").write_bytes(header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:])
    return {path.name: path for path in folder.iterdir()}
