# SPDX-License-Identifier: Apache-2.0
"""What is damaged: a small good file of every kind, and the command that reads it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from progressive_cascade import ConeBeam, ProgressiveCascade, save_geometry, volume_affine
from progressive_cascade.training.checkpoints import HalfPrecisionState
from tools.fuzzing.mutate import mutate_bytes, mutate_json, mutate_packed, mutate_setting, mutate_table

Mutate = Callable[[bytes, random.Random], bytes]
COMMANDS = ("simulate", "reconstruct", "folder", "train", "settings", "post")
BOUNDARY = "fuzz"
"""Between the parts of ``request.bin``."""
_SIZE, _PITCH = 512, 0.84
# A detector that is projected onto in no time.
_COARSE = ConeBeam(detector_shape=(32, 32), pixel_spacing=(13.44, 13.44))
SETTINGS = {
    **{"epochs": 1, "batch_size": 1, "learning_rate": 1e-3, "window": 64, "seed": 0, "geometry": "chest_stand"},
    **{"dataset_dir": "", "photons": 1e5, "loss_weights": {"l1": 1}, "unet_channels": [[4, 8]], "amp": False},
}
"""Good overrides of a training config."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        file: which of the good files is damaged, below the folder of all.
        mutate: how.
        command: what reads it, one of :data:`COMMANDS`.
        option: which of the command's inputs it is.
    """

    file: str
    mutate: Mutate
    command: str
    option: str

    def undamaged(self) -> Kind:
        """The same, left as it is."""
        return replace(self, mutate=lambda content, _: content)


KINDS: dict[str, Kind] = {
    "nifti ct": Kind("ct.nii", mutate_bytes, "simulate", "ct"),
    "packed ct": Kind("ct.nii.gz", mutate_packed, "simulate", "ct"),
    "nrrd ct": Kind("ct.nrrd", mutate_bytes, "simulate", "ct"),
    "mha ct": Kind("ct.mha", mutate_bytes, "simulate", "ct"),
    "dicom ct": Kind("series/3.dcm", mutate_bytes, "simulate", "series"),
    "geometry": Kind("coarse.json", mutate_json, "simulate", "geometry"),
    "nifti": Kind("pa.nii.gz", mutate_packed, "reconstruct", "pa"),
    "nrrd": Kind("pa.nrrd", mutate_bytes, "reconstruct", "pa"),
    "png": Kind("pa.png", mutate_bytes, "reconstruct", "pa"),
    "jpeg": Kind("pa.jpg", mutate_bytes, "reconstruct", "pa"),
    "tiff": Kind("pa.tif", mutate_bytes, "reconstruct", "pa"),
    "dicom": Kind("pa.dcm", mutate_bytes, "reconstruct", "pa"),
    "dicom jpeg 2000": Kind("JPEG2000Lossless/pa.dcm", mutate_bytes, "reconstruct", "packed"),
    "dicom jpeg-ls": Kind("JPEGLSLossless/pa.dcm", mutate_bytes, "reconstruct", "packed"),
    "dicom rle": Kind("RLELossless/pa.dcm", mutate_bytes, "reconstruct", "packed"),
    "sidecar": Kind("sidecar.json", mutate_json, "reconstruct", "sidecar"),
    "exposure": Kind("exposure.json", mutate_json, "reconstruct", "exposure"),
    "checkpoint": Kind("tiny.pt", mutate_bytes, "reconstruct", "checkpoint"),
    "pairs": Kind("pairs.csv", mutate_table, "folder", "pairs"),
    "datalist": Kind("dataset/datalist.json", mutate_json, "train", "datalist"),
    "settings": Kind("settings.json", mutate_setting, "settings", "settings"),
    "request": Kind("request.bin", mutate_bytes, "post", "request"),
    "request options": Kind("options.json", mutate_json, "post", "options"),
    "request zip": Kind("study.zip", mutate_bytes, "post", "study"),
}
"""Every kind of input, by name."""


def write_inputs(folder: Path) -> None:
    """Writes a good file of every kind.

    Args:
        folder: where to; made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_cts(folder)
    _write_radiographs(folder)
    save_geometry(_COARSE, folder / "coarse.json")
    _write_json(folder / "sidecar.json", {"pixel_spacing": [_PITCH, _PITCH], "view": "pa", "source_to_detector": 1800})
    _write_json(folder / "exposure.json", {"spectrum": "120kV", "photons": 1e5, "scatter": 0.1})
    _write_json(folder / "settings.json", SETTINGS)
    _write_requests(folder)
    (folder / "pairs.csv").write_text("case,pa,lateral\none,pa.png,lateral.png\ntwo,pa.tif,lateral.png\n")
    network = ProgressiveCascade(stage=1, unet_channels=((4, 8),), normalize=(False,), consistency_iterations=(0,))
    torch.save(HalfPrecisionState(network).state_dict(), folder / "tiny.pt")


def _write_requests(folder: Path) -> None:
    """A form with two radiographs, its options, and a zip with both."""
    import zipfile

    _write_json(folder / "options.json", {"refine": 8, "field_of_view": 430.0, "intensities": "display", "dicom": True})
    files = {view: (folder / f"{view}.png").read_bytes() for view in ("pa", "lateral")}
    with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for view, content in files.items():
            archive.writestr(f"{view}.png", content)
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{view}"; filename="f"\r\n\r\n'.encode() + content
        for view, content in files.items()
    ]
    (folder / "request.bin").write_bytes(b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()]))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _write_cts(folder: Path) -> None:
    import SimpleITK as sitk

    side, spacing = 24, 14.0
    points = np.indices((side,) * 3).transpose(1, 2, 3, 0) - (side - 1) / 2
    hu = np.where(((points / [10, 7, 30]) ** 2).sum(-1) < 1, 20, -1000).astype(np.int16)
    image = nib.Nifti1Image(hu, volume_affine((side, side, side), spacing))
    nib.save(image, folder / "ct.nii")
    nib.save(image, folder / "ct.nii.gz")
    scan = sitk.GetImageFromArray(hu.transpose(2, 1, 0))
    scan.SetSpacing((spacing,) * 3)
    for name in ("ct.nrrd", "ct.mha"):
        sitk.WriteImage(scan, str(folder / name))
    for index in range(8):
        _write_slice(folder / "series" / f"{index}.dcm", hu[:, :, 3 * index], index, spacing)
    prepared = nib.Nifti1Image(np.zeros((256, 256, 256), np.uint8), volume_affine((256, 256, 256), 1.4))
    for name in ("ct", "valid"):
        for case in "abc":
            path = folder / "dataset" / name / f"{case}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(prepared, path)
    cases = [{"label": f"ct/{case}.nii.gz", "valid": f"valid/{case}.nii.gz", "patient": case} for case in "abc"]
    sections = {"training": cases[:1], "validation": cases[1:2], "test": cases[2:]}
    _write_json(folder / "dataset" / "datalist.json", sections)


def _write_slice(path: Path, hu: np.ndarray, index: int, spacing: float) -> None:
    from pydicom.uid import CTImageStorage

    dataset = _dataset("CT", hu.T.astype(np.int16), str(CTImageStorage))
    dataset.PixelRepresentation = 1
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3.1", "1.2.3.2"
    dataset.FrameOfReferenceUID, dataset.SOPInstanceUID = "1.2.3.3", f"1.2.3.4.{index}"
    dataset.PatientID, dataset.InstanceNumber = "one", index
    dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
    dataset.PixelSpacing, dataset.SliceThickness = [spacing, spacing], 3 * spacing
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, 3 * index * spacing]
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _dataset(modality: str, pixels: np.ndarray, storage: str) -> Any:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = storage, "1.2.3.5", modality
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


def _write_radiographs(folder: Path) -> None:
    import SimpleITK as sitk
    from PIL import Image
    from pydicom import uid

    y, x = (np.indices((_SIZE, _SIZE)) - (_SIZE - 1) / 2) / _SIZE
    thickness = np.sqrt(np.clip(1 - (x / 0.4) ** 2 - (y / 0.9) ** 2, 0, None)) * 4
    lungs = np.exp(-(((abs(x) - 0.16) / 0.08) ** 2) - (y / 0.2) ** 2) * 2
    integrals = np.clip(thickness - lungs, 0, None).astype(np.float32)
    side = (np.sqrt(np.clip(1 - (x / 0.3) ** 2 - (y / 0.9) ** 2, 0, None)) * 5).astype(np.float32)
    beam = ConeBeam()
    for view, (name, pixels) in enumerate({"pa": integrals, "lateral": side}.items()):
        image = nib.Nifti1Image(pixels.T[..., None], beam.detector_affine(view))
        nib.save(image, folder / f"{name}.nii.gz")
    save_geometry(beam, folder / "geometry.json")
    grey = (integrals / integrals.max() * 65535).astype(np.uint16)
    Image.fromarray(grey).save(folder / "pa.png")
    Image.fromarray((side / side.max() * 65535).astype(np.uint16)).save(folder / "lateral.png")
    Image.fromarray((grey >> 8).astype(np.uint8)).save(folder / "pa.jpg")
    Image.fromarray(grey).save(folder / "pa.tif")
    sitk.WriteImage(sitk.GetImageFromArray(integrals), str(folder / "pa.nrrd"))
    dataset = _dataset("DX", grey, str(uid.DigitalXRayImageStorageForPresentation))
    dataset.ViewPosition, dataset.PatientOrientation = "PA", ["L", "F"]
    dataset.ImagerPixelSpacing = [_PITCH, _PITCH]
    dataset.DistanceSourceToDetector = 1800
    dataset.save_as(folder / "pa.dcm", enforce_file_format=True)
    for syntax in ("JPEG2000Lossless", "JPEGLSLossless", "RLELossless"):
        (folder / syntax).mkdir()
        packed = deepcopy(dataset)
        packed.compress(getattr(uid, syntax))
        packed.save_as(folder / syntax / "pa.dcm", enforce_file_format=True)
