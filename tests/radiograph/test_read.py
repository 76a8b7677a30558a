# SPDX-License-Identifier: Apache-2.0
"""Laws of reading: whatever the file, the same pixels; what is no radiograph is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate

from progressive_cascade.errors import UserError
from progressive_cascade.io import save_json
from progressive_cascade.radiograph.picture_data import load_whole
from progressive_cascade.radiograph.read import read_radiograph
from progressive_cascade.radiograph.record import Radiograph
from tests.support.dicom_files import code
from tests.support.packed_dicom import LOSSLESS, LOSSY, pack
from tests.support.radiographs import bad_files, grey, phantom_pair, save_dx, signal


@pytest.fixture(scope="module")
def frontal() -> np.ndarray:
    return phantom_pair()[0]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_dicom_signal_is_the_detectors(frontal: np.ndarray, tmp_path: Path):
    """FOR PROCESSING, linear, of either sign: counts that fall where the patient is dense."""
    counts = signal(frontal)
    linear = {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LIN"}
    plain = read_radiograph(save_dx(counts, tmp_path / "a.dcm", PixelIntensityRelationshipSign=1, **linear))
    inverse = read_radiograph(save_dx(65535 - counts, tmp_path / "b.dcm", PixelIntensityRelationshipSign=-1, **linear))
    assert plain.meaning == inverse.meaning == "detector_signal"
    np.testing.assert_array_equal(plain.pixels, counts)
    np.testing.assert_array_equal(inverse.pixels, counts)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_display_is_dense_bright(frontal: np.ndarray, tmp_path: Path, photometric: str):
    """Either photometric interpretation reads as grey levels that rise with the line integral."""
    levels = grey(frontal, 4095)
    stored = 4095 - levels if photometric == "MONOCHROME1" else levels
    attributes = {"PresentationIntentType": "FOR PRESENTATION", "PhotometricInterpretation": photometric}
    one = read_radiograph(save_dx(stored, tmp_path / "a.dcm", **attributes))
    assert one.meaning == "display"
    assert _correlation(one.pixels, levels) > 0.999
    assert (one.spacing, one.directions, one.view, one.source_to_detector) == ((0.14, 0.15), ("L", "F"), "pa", 1800.0)
    assert set(one.sources.values()) == {"tag"}


def test_dicom_window_is_applied(frontal: np.ndarray, tmp_path: Path):
    """What lies above the window is as bright as its upper end."""
    window = {"WindowCenter": "2000", "WindowWidth": "2000", "PresentationIntentType": "FOR PRESENTATION"}
    one = read_radiograph(save_dx(grey(frontal, 4095), tmp_path / "a.dcm", **window))
    clipped = one.pixels == one.pixels.max()
    assert clipped[grey(frontal, 4095) > 3001].all()


def test_dicom_logarithm_rises_with_the_patient(frontal: np.ndarray, tmp_path: Path):
    """A logarithm of the signal is display turned over: its scale is not known."""
    attributes = {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LOG"}
    stored = np.round(60000 - 5000 * frontal)
    one = read_radiograph(save_dx(stored, tmp_path / "a.dcm", PixelIntensityRelationshipSign=1, **attributes))
    assert one.meaning == "display"
    assert _correlation(one.pixels, frontal) > 0.999


@pytest.mark.parametrize(
    ("shape", "attributes", "inside"),
    [
        (
            "RECTANGULAR",
            {
                "ShutterLeftVerticalEdge": 11,
                "ShutterRightVerticalEdge": 100,
                "ShutterUpperHorizontalEdge": 21,
                "ShutterLowerHorizontalEdge": 120,
            },
            ((30, 30), (5, 30)),
        ),
        ("CIRCULAR", {"CenterOfCircularShutter": [64, 64], "RadiusOfCircularShutter": 50}, ((64, 64), (5, 5))),
        ("POLYGONAL", {"VerticesOfThePolygonalShutter": [10, 10, 10, 110, 110, 60]}, ((20, 60), (100, 15))),
    ],
)
def test_dicom_shutters_are_masked(frontal: np.ndarray, tmp_path: Path, shape: str, attributes: dict, inside: tuple):
    """Pixels under a shutter do not count, those inside do."""
    one = read_radiograph(save_dx(grey(frontal, 4095), tmp_path / "a.dcm", ShutterShape=shape, **attributes))
    seen, covered = inside
    assert one.mask[seen] and not one.mask[covered]


def test_dicom_view_by_code_and_padding(frontal: np.ndarray, tmp_path: Path):
    """A coded view is read; padding is masked."""
    stored = grey(frontal, 4095) + 1
    stored[:, :9] = 0
    attributes = {"ViewPosition": None, "ViewCodeSequence": code("399348003", "AP"), "PixelPaddingValue": 0}
    one = read_radiograph(save_dx(stored, tmp_path / "a.dcm", **attributes))
    assert one.view == "ap"
    assert not one.mask[:, :9].any() and one.mask[:, 9:].all()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "rgb.png", "la.png", "a.jpg", "palette.png"])
def test_pictures_give_the_grey_levels(frontal: np.ndarray, tmp_path: Path, name: str):
    """16 bits, grey in RGB, with alpha, a palette, JPEG: the same picture."""
    eight = grey(frontal, 255).astype(np.uint8)
    pictures = {
        "a.png": lambda: Image.fromarray(grey(frontal).astype(np.uint16)),
        "a.tif": lambda: Image.fromarray(grey(frontal).astype(np.uint16)),
        "rgb.png": lambda: Image.fromarray(eight).convert("RGB"),
        "la.png": lambda: Image.fromarray(eight).convert("LA"),
        "a.jpg": lambda: Image.fromarray(eight),
        "palette.png": lambda: Image.fromarray(eight).convert("P"),
    }
    pictures[name]().save(tmp_path / name)
    one = read_radiograph(tmp_path / name)
    assert one.meaning == "display" and one.spacing is None and one.directions is None
    assert _correlation(one.pixels, grey(frontal)) > 0.999


def test_exif_rotation_is_undone(frontal: np.ndarray, tmp_path: Path):
    """A JPEG that says it must be turned by 90 degrees is."""
    eight = Image.fromarray(grey(frontal, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    eight.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert _correlation(read_radiograph(tmp_path / "a.jpg").pixels, grey(frontal)) > 0.999


def test_sidecar_gives_the_scale(frontal: np.ndarray, tmp_path: Path):
    """A 16-bit PNG whose sidecar says what its levels mean holds line integrals, to a level."""
    Image.fromarray(np.round(frontal * 5000).astype(np.uint16)).save(tmp_path / "a.png")
    save_json({"meaning": "line_integral", "scale": 2e-4, "pixel_spacing": [3.36, 3.36]}, tmp_path / "a.json")
    one = read_radiograph(tmp_path / "a.png")
    assert one.meaning == "line_integral" and one.spacing == (3.36, 3.36)
    assert one.sources["meaning"] == one.sources["spacing"] == "sidecar"
    np.testing.assert_allclose(one.pixels, frontal, atol=1.1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.dcm", "must hold the 32768 bytes"),
        ("text.png", "must be a radiograph"),
        ("ct.dcm", "Modality"),
        ("colour.jpg", "grey picture"),
        ("pixel.png", "1 x 1"),
        ("huge.png", "30000 x 30000"),
        ("constant.dcm", "constant"),
        ("encrypted.dcm", "encrypted attributes"),
        ("saturated.png", "cut off"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, words: str):
    """One line that names the file and what is wrong with it."""
    path = bad_files(tmp_path)[name]
    with pytest.raises(UserError, match=words) as caught:
        read_radiograph(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_losslessly_compressed_dicom_holds_the_same_pixels(frontal: np.ndarray, tmp_path: Path, syntax: str):
    """Whatever way the pixels are packed, they are those that were packed."""
    plain = save_dx(grey(frontal, 4095), tmp_path / "plain.dcm", PresentationIntentType="FOR PRESENTATION")
    packed = read_radiograph(pack(plain, tmp_path / "packed.dcm", syntax))
    np.testing.assert_array_equal(packed.pixels, read_radiograph(plain).pixels)


@pytest.mark.parametrize("syntax", LOSSY)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_lossily_compressed_dicom_holds_nearly_the_same_pixels(
    frontal: np.ndarray, tmp_path: Path, syntax: str, photometric: str
):
    """Of 8 bits or of 12, what a lossy code loses is little, and dense stays bright."""
    levels = grey(frontal, 4095)
    stored = 4095 - levels if photometric == "MONOCHROME1" else levels
    attributes = {"PresentationIntentType": "FOR PRESENTATION", "PhotometricInterpretation": photometric}
    plain = save_dx(stored, tmp_path / "plain.dcm", **attributes)
    packed = read_radiograph(pack(plain, tmp_path / "packed.dcm", syntax))
    assert packed.meaning == "display"
    assert _correlation(packed.pixels, levels) > 0.999


@pytest.mark.parametrize("packed", [False, True])
def test_a_secondary_capture_in_grey_colours_is_read(frontal: np.ndarray, tmp_path: Path, packed: bool):
    """As `img2dcm` makes one of a JPEG, without a modality; one that shows colours, or an empty DX, is refused."""
    levels = grey(frontal, 255).astype(np.uint8)
    plain = save_dx(levels, tmp_path / "plain.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="")

    def save_colours(bands: tuple[np.ndarray, ...]) -> Radiograph:
        dataset, picture = pydicom.dcmread(plain), np.stack(bands, axis=-1)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = picture.tobytes()
        if packed:
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, "JPEG", quality=95)
            dataset.PixelData = encapsulate([stream.getvalue()])
            dataset["PixelData"].is_undefined_length = True
            dataset.PhotometricInterpretation = "YBR_FULL_422"
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        dataset.save_as(tmp_path / "colours.dcm")
        return read_radiograph(tmp_path / "colours.dcm")

    read = save_colours((levels, levels, levels))
    assert read.meaning == "display" and np.abs(read.pixels - levels).mean() < (3 if packed else 1e-4)
    with pytest.raises(UserError, match=r"colours\.dcm must be a grey picture, without annotations in colour"):
        save_colours((levels, levels, 255 - levels))
    with pytest.raises(UserError, match="Modality"):
        read_radiograph(save_dx(levels, tmp_path / "dx.dcm", Modality=""))


def test_dicom_says_what_should_be_doubted(frontal: np.ndarray, tmp_path: Path):
    """A detector aslant, burnt-in letters, pixels turned without an orientation; a plain file says nothing."""
    levels = grey(frontal, 4095)
    assert read_radiograph(save_dx(levels, tmp_path / "plain.dcm")).remarks == ()
    doubted = {
        "DetectorPrimaryAngle": "12",
        "BurnedInAnnotation": "YES",
        "PatientOrientation": "",
        "FieldOfViewRotation": "90",
        "FieldOfViewHorizontalFlip": "YES",
    }
    remarks = read_radiograph(save_dx(levels, tmp_path / "doubted.dcm", **doubted)).remarks
    for line, words in zip(
        remarks, ("12 degrees aslant", "burnt into", "turned by 90 degrees and flipped"), strict=True
    ):
        assert words in line and "doubted.dcm" in line


def test_identity_affine_says_nothing(frontal: np.ndarray, tmp_path: Path):
    """A NIfTI laid on the axial plane has neither orientation nor spacing."""
    nib.save(nib.Nifti1Image(frontal.T[..., None].astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    one = read_radiograph(tmp_path / "a.nii.gz")
    assert one.directions is None and one.spacing is None and one.meaning == "line_integral"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_png_is_the_picture_that_pillow_reads(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch):
    """With what is said beside the data, and whether these are held or read again."""
    random, path = np.random.default_rng(0), tmp_path / "a.png"
    levels = Image.fromarray(random.integers(0, 256, (99, 77, 4), dtype=np.uint8), "RGBA")
    levels.convert(mode).save(path, transparency=3 if mode == "P" else None, dpi=(120, 120))
    for most in (1 << 28, 0):
        monkeypatch.setattr("progressive_cascade.radiograph.picture_data._MOST_STORED", most)
        with Image.open(path) as image:
            found = load_whole(image, path)
        with Image.open(path) as expected:
            expected.load()
            assert (found.mode, found.info) == (expected.mode, expected.info)
            np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
