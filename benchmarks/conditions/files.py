# SPDX-License-Identifier: Apache-2.0
"""One pair of radiographs in every kind of file that a hospital, a web page or a colleague hands out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.geometry import ConeBeam
from progressive_cascade.io import save_json, save_nifti

Project = Callable[[tuple[int, int], float], np.ndarray]
"""Line integrals (2, rows, cols) on a detector of that shape and pitch [mm], about the same central ray."""
OPEN_FIELD = 60000.0
"""Counts without a patient."""
_VIEWS = ({"ViewPosition": "PA", "directions": ("L", "F")}, {"ViewPosition": "LL", "directions": ("P", "F")})
_PROCESSING = {"PresentationIntentType": "FOR PROCESSING", "PixelIntensityRelationship": "LIN"}
_OPPOSITE = dict(zip("LPF", "RAH", strict=True))


@dataclass(frozen=True)
class Form:
    """A pair of files.

    Attributes:
        name: what the files are.
        known: what their values are: calibrated, signal or display.
        frontal: path.
        lateral: path.
    """

    name: str
    known: str
    frontal: Path
    lateral: Path


def write_forms(project: Project, beam: ConeBeam, folder: Path, *, finer: int = 2) -> Iterator[Form]:
    """Writes the forms one after the other.

    Args:
        project: takes the radiographs.
        beam: their geometry, with the detector of the plain pair.
        folder: an empty folder.
        finer: how many times finer the detectors of the large pictures are; 2 and 5 for 1024² and 2500 x 3056 at 512².
    """
    size, pitch = beam.detector_shape[0], beam.pixel_spacing[0]
    plain = project((size, size), pitch)
    wide = ((size * 2500) // 512 * finer // 2, (size * 3056) // 512 * finer // 2)
    fine = project((size * finer, size * finer), pitch / finer)
    wide_pitch = pitch * size / wide[0]
    wide_image = project(wide, wide_pitch)
    for way in range(8):
        yield _nifti(plain, beam, folder / f"nifti{way}", way)
    yield _mha(plain, beam, folder / "mha")
    yield _scaled_png(plain, pitch, folder / "scaled")
    sign = {"PixelIntensityRelationshipSign": 1}
    counts, inverse = np.round(OPEN_FIELD * np.exp(-fine)), {"PixelIntensityRelationshipSign": -1}
    yield _dicom("DX LIN, MONOCHROME2", "signal", counts, pitch / finer, folder / "lin", {**_PROCESSING, **sign})
    inverted = {**_PROCESSING, **inverse, "PhotometricInterpretation": "MONOCHROME1"}
    yield _dicom("DX LIN, MONOCHROME1", "signal", 65535 - counts, pitch / finer, folder / "lin1", inverted)
    wide_counts = np.round(OPEN_FIELD * np.exp(-wide_image))
    name = "DX LIN, 2500 x 3056"
    yield _dicom(name, "signal", wide_counts, wide_pitch, folder / "wide", {**_PROCESSING, **sign})
    name = "DX LIN, PatientOrientation flipped"
    yield _dicom(name, "signal", counts, pitch / finer, folder / "flip", {**_PROCESSING, **sign}, flipped=True)
    logarithm = {**_PROCESSING, "PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1}
    levels = np.round(fine * 4000)
    yield _dicom("DX LOG", "display", levels, pitch / finer, folder / "log", logarithm)
    grey = np.stack([np.round(_display(view) * 4095) for view in fine])
    shown = {"PresentationIntentType": "FOR PRESENTATION"}
    yield _dicom("DX FOR PRESENTATION, MONOCHROME2", "display", grey, pitch / finer, folder / "p2", shown)
    dark = {**shown, "PhotometricInterpretation": "MONOCHROME1"}
    yield _dicom("DX FOR PRESENTATION, MONOCHROME1", "display", 4095 - grey, pitch / finer, folder / "p1", dark)
    yield _dicom("CR", "display", grey, pitch / finer, folder / "cr", {}, modality="CR")
    yield from _pictures(fine, folder)


def _display(view: np.ndarray) -> np.ndarray:
    low, high = np.percentile(view, [0.5, 99.5])
    return np.clip((view - low) / (high - low), 0, 1)


def _nifti(image: np.ndarray, beam: ConeBeam, folder: Path, way: int) -> Form:
    """Stored in one of eight ways, and the affine says so."""
    folder.mkdir()
    paths = []
    for view, name in enumerate(("pa", "lateral")):
        array, affine = image[view].T, beam.detector_affine(view)
        for axis in range(2):
            if way >> axis & 1:
                array, affine = np.flip(array, axis), affine.copy()
                affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
                affine[:3, axis] *= -1
        if way & 4:
            array, affine = array.T, affine[:, [1, 0, 2, 3]]
        paths.append(folder / f"{name}.nii.gz")
        save_nifti(np.ascontiguousarray(array[..., None], dtype=np.float32), affine, paths[-1])
    return Form(f"NIfTI, way {way + 1} of 8", "calibrated", *paths)


def _mha(image: np.ndarray, beam: ConeBeam, folder: Path) -> Form:
    import SimpleITK as sitk

    folder.mkdir()
    paths = []
    for view, name in enumerate(("pa", "lateral")):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ beam.detector_affine(view)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        picture = sitk.GetImageFromArray(image[view][None].astype(np.float32))
        picture.SetSpacing(spacing.tolist())
        picture.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        picture.SetOrigin(affine[:3, 3].tolist())
        paths.append(folder / f"{name}.mha")
        sitk.WriteImage(picture, str(paths[-1]))
    return Form("MHA", "calibrated", *paths)


def _scaled_png(image: np.ndarray, pitch: float, folder: Path) -> Form:
    """16 bits, with a sidecar that gives their scale."""
    from PIL import Image

    folder.mkdir()
    paths = [folder / "pa.png", folder / "lateral.png"]
    scale = float(image.max()) / 65535
    for path, view, tags in zip(paths, image, _VIEWS, strict=True):
        Image.fromarray(np.round(view / scale).astype(np.uint16)).save(path)
        facts = {"meaning": "line_integral", "scale": scale, "pixel_spacing": [pitch, pitch]}
        save_json({**facts, "orientation": list(tags["directions"])}, path.with_suffix(".json"))
    return Form("PNG of 16 bits, scale in a sidecar", "calibrated", *paths)


def _dicom(
    name: str,
    known: str,
    pixels: np.ndarray,
    pitch: float,
    folder: Path,
    attributes: Mapping[str, Any],
    *,
    modality: str = "DX",
    flipped: bool = False,
) -> Form:
    """Both views; flipped ones are stored upside down and mirrored, and PatientOrientation says so."""
    folder.mkdir()
    paths = [folder / "pa.dcm", folder / "lateral.dcm"]
    for path, view, tags in zip(paths, pixels, _VIEWS, strict=True):
        letters = [_OPPOSITE[letter] if flipped else letter for letter in tags["directions"]]
        own = {"ViewPosition": tags["ViewPosition"], "PatientOrientation": letters, **attributes}
        spacing = {("ImagerPixelSpacing" if modality == "DX" else "PixelSpacing"): [f"{pitch:.8g}"] * 2}
        save_dicom(view[::-1, ::-1] if flipped else view, path, modality=modality, **own, **spacing)
    return Form(name, known, *paths)


def save_dicom(pixels: np.ndarray, path: Path, *, modality: str = "DX", **attributes: Any) -> None:
    """A radiograph of 16 bits, uncompressed, at 1800 mm."""
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    dataset = Dataset()
    classes = {"DX": uid.DigitalXRayImageStorageForProcessing, "CR": uid.ComputedRadiographyImageStorage}
    dataset.SOPClassUID, dataset.SOPInstanceUID = classes[modality], uid.generate_uid()
    dataset.Modality, dataset.PatientID, dataset.DistanceSourceToDetector = modality, "one", "1800"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    if "FOR PRESENTATION" in attributes.values() or modality == "CR":
        dataset.BitsStored, dataset.HighBit = 12, 11
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = np.ascontiguousarray(pixels, dtype=np.uint16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


def _pictures(image: np.ndarray, folder: Path) -> Iterator[Form]:
    """What a web page has: a PNG of 16 bits, and a JPEG that lies on its side and says so in EXIF."""
    from PIL import Image

    for name in ("png", "jpeg"):
        (folder / name).mkdir()
    pngs = [folder / "png" / f"{name}.png" for name in ("pa", "lateral")]
    jpegs = [folder / "jpeg" / f"{name}.jpg" for name in ("pa", "lateral")]
    for png, jpeg, view in zip(pngs, jpegs, image, strict=True):
        grey = _display(view)
        Image.fromarray(np.round(grey * 65535).astype(np.uint16)).save(png)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        Image.fromarray(np.rot90(np.round(grey * 255).astype(np.uint8))).save(jpeg, quality=92, exif=exif)
    yield Form("PNG of 16 bits", "display", *pngs)
    yield Form("JPEG of 8 bits, turned by EXIF", "display", *jpegs)
