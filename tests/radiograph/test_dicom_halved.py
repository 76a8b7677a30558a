# SPDX-License-Identifier: Apache-2.0
"""Laws of large JPEG 2000 radiographs: half of the detail is not decoded, and nobody sees the difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from progressive_cascade.errors import UserError
from progressive_cascade.radiograph.dicom_halved import decode_halved
from progressive_cascade.radiograph.read import read_radiograph
from tests.support.packed_dicom import pack
from tests.support.radiographs import grey, phantom_pair, save_dx

SHAPE = (402, 401)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred rows count as many."""
    monkeypatch.setattr("progressive_cascade.radiograph.dicom_halved._LARGE", 200)


def _stored() -> np.ndarray:
    """Noisy grey levels of 12 bits, an even number of rows and an odd one of columns."""
    frontal = phantom_pair()[0]
    large = ndimage.zoom(frontal, (SHAPE[0] / frontal.shape[0], SHAPE[1] / frontal.shape[1]), order=1)
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    return np.clip(grey(large, 4095) + noise, 0, 4095).astype(np.uint16)


def _pack(folder: Path, syntax: str, stored: np.ndarray, **attributes: object) -> Path:
    return pack(save_dx(stored, folder / "plain.dcm", **attributes), folder / "packed.dcm", syntax)


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEG2000"])
def test_halved_picture_is_the_whole_one_averaged(tmp_path: Path, syntax: str):
    """Where a pixel of the model is six of the picture wide, the two differ by less than a thousandth."""
    dataset = pydicom.dcmread(_pack(tmp_path, syntax, _stored()))
    halved, whole = decode_halved(dataset), dataset.pixel_array
    assert halved is not None and halved.shape == SHAPE and halved.dtype == whole.dtype

    def averaged(pixels: np.ndarray) -> np.ndarray:
        return pixels[:396, :396].astype(float).reshape(66, 6, 66, 6).mean(axis=(1, 3))

    difference = averaged(halved) - averaged(whole)
    assert not np.array_equal(halved, whole)
    assert difference.std() < 4.095
    assert abs(difference.mean()) < 1.0


def test_halved_picture_lies_where_the_whole_one_does(tmp_path: Path):
    """A ramp stays where it was to a twentieth of a pixel: nothing is shifted by half a pixel."""
    rows, cols = np.indices(SHAPE)
    ramp = (5 * rows + 3 * cols).astype(np.uint16)
    halved = decode_halved(pydicom.dcmread(_pack(tmp_path, "JPEG2000Lossless", ramp)))
    assert halved is not None
    inner = (slice(8, -8), slice(8, -8))
    shift = np.mean(halved[inner].astype(float) - ramp[inner]) / 5
    assert abs(shift) < 0.2
    assert np.abs(halved[inner].astype(float) - ramp[inner]).max() <= 2


@pytest.mark.parametrize("attributes", [{"PixelPaddingValue": 0}, {}], ids=["padding", "not large"])
def test_every_pixel_is_decoded_where_it_matters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict):
    """Values that mark padding are kept whole, and so are pictures that are not large."""
    if not attributes:
        monkeypatch.setattr("progressive_cascade.radiograph.dicom_halved._LARGE", SHAPE[1] + 1)
    stored = _stored()
    stored[:, :40] = 0
    path = _pack(tmp_path, "JPEG2000Lossless", stored, PresentationIntentType="FOR PRESENTATION", **attributes)
    assert decode_halved(pydicom.dcmread(path)) is None
    np.testing.assert_array_equal(read_radiograph(path).pixels, stored)


def test_cut_off_file_is_refused_as_ever(tmp_path: Path):
    """A code stream that ends early is told in one line, by the decoder of whole pictures."""
    path = _pack(tmp_path, "JPEG2000Lossless", _stored())
    dataset = pydicom.dcmread(path)
    (code,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([code[: len(code) // 2]])
    dataset.save_as(path)
    with pytest.raises(UserError, match="pixels that can be decoded") as caught:
        read_radiograph(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
