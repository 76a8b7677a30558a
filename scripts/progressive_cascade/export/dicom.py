# SPDX-License-Identifier: Apache-2.0
"""A reconstruction as a DICOM CT series, which viewers and archives of a hospital open.

The series says that it is derived and for research; it names nobody unless that is asked for. The same inputs give the
same UIDs, so that an archive that gets a series twice keeps it once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.io import staged_folder
from progressive_cascade.io.dicom_layout import read_layout

DESCRIPTION = "CT estimated from 2 radiographs - RESEARCH ONLY"
"""SeriesDescription."""
_IDENTITY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
# Characters of a long text (PS3.5 6.2).
_MOST_COMMENTS = 10_240
_DERIVATION = "Estimated by a neural network from two radiographs; not measured, not for diagnosis"


def write_dicom_series(
    hu: np.ndarray,
    affine: np.ndarray,
    folder: str | os.PathLike[str],
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    keep_identity: bool = False,
    comments: Sequence[str] = (),
) -> list[Path]:
    """Writes a volume as axial slices, one file each, all or none.

    Args:
        hu: int16 array (x, y, z) [HU].
        affine: 4x4, voxel index to RAS mm; its axes run along the world's.
        folder: receives ``IM0001.dcm`` and so on, from the feet up.
        sources: files of the radiographs; those that are DICOM are referred to.
        keep_identity: copy patient, study and accession of the first DICOM source; otherwise the patient is a hash
            of the images.
        comments: lines for ImageComments, which viewers show: whoever finds the series in an archive sees nothing else
            of the case.

    Returns:
        The files.

    Raises:
        UserError: where the folder cannot be written, there is no identity to keep, or the radiographs are of two
            patients.
    """
    built = build_slices(hu, affine, sources=sources, keep_identity=keep_identity, comments=comments)
    names = [slice_name(number) for number in range(len(built.slices))]
    with staged_folder(folder) as stage:
        for name, one in zip(names, built.slices, strict=True):
            one.save_as(stage / name, enforce_file_format=True)
    return [Path(folder) / name for name in names]


class Slices(NamedTuple):
    """A volume as DICOM.

    Attributes:
        slices: a dataset each, from the feet up.
        headers: of the radiographs that are DICOM.
        seed: what UIDs are made of.
    """

    slices: list[Any]
    headers: list[Any]
    seed: str


def build_slices(
    hu: np.ndarray,
    affine: np.ndarray,
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    keep_identity: bool = False,
    comments: Sequence[str] = (),
) -> Slices:
    """The slices of a volume, see :func:`write_dicom_series`."""
    headers = [header for path in sources if (header := _read_header(Path(path))) is not None]
    digest = hashlib.sha256(np.ascontiguousarray(hu).tobytes() + np.asarray(affine, dtype=np.float64).tobytes())
    for header in headers:
        digest.update(str(header.SOPInstanceUID).encode())
    seed = digest.hexdigest()
    common = _common(headers, seed, keep_identity=keep_identity)
    if comments:
        common.ImageComments = "\r\n".join(comments)[:_MOST_COMMENTS]
    voxels, axes = to_lps(hu, affine)
    return Slices([_slice(common, voxels, axes, number, seed) for number in range(voxels.shape[2])], headers, seed)


def slice_name(number: int) -> str:
    """File name of a slice, counted from 0 at the feet."""
    return f"IM{number + 1:04d}.dcm"


def _read_header(path: Path) -> Any:
    """The header of a DICOM file, None for any other."""
    from pydicom import dcmread

    read_layout(path, str(path))
    try:
        header = dcmread(path, stop_before_pixels=True)
    except Exception:  # pydicom raises whatever a damaged header leads it to
        return None
    return header if "SOPInstanceUID" in header else None


def to_lps(hu: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes turned to run to the patient's left, back and head, as axial slices are stored; the affine in LPS."""
    target = nib.orientations.axcodes2ornt(("L", "P", "S"))
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target)
    turned = nib.orientations.apply_orientation(hu, turn)
    ras = affine @ nib.orientations.inv_ornt_aff(turn, hu.shape)
    return turned, np.diag([-1.0, -1.0, 1.0, 1.0]) @ ras


def derived_uid(seed: str, what: str) -> str:
    """A UID of the root for UUIDs (PS3.5 B.2), the same for the same seed."""
    return f"2.25.{int(hashlib.sha256(f'{seed} {what}'.encode()).hexdigest()[:31], 16)}"


def _common(headers: Sequence[Any], seed: str, *, keep_identity: bool) -> Any:
    """What all slices say: patient, study, series, equipment, derivation."""
    from pydicom import Dataset

    from progressive_cascade import __version__

    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    anonymous = f"ANON-{seed[:12].upper()}"
    values: dict[str, Any] = dict.fromkeys(_IDENTITY, "")
    values.update(PatientName=anonymous, PatientID=anonymous, StudyInstanceUID=derived_uid(seed, "study"), StudyID="1")
    if keep_identity:
        values.update(_identity(headers))
    for name, value in values.items():
        setattr(ds, name, value)
    if not keep_identity:
        ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "written without identity"
    ds.Modality, ds.SeriesInstanceUID, ds.SeriesNumber = "CT", derived_uid(seed, "series"), 9001
    ds.BodyPartExamined = "CHEST"
    ds.SeriesDescription, ds.PatientPosition = DESCRIPTION, ""
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derived_uid(seed, "frame of reference"), ""
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "progressive-cascade", "cascade", __version__
    ds.SOPClassUID, ds.ImageType = "1.2.840.10008.5.1.4.1.1.2", ["DERIVED", "SECONDARY", "AXIAL"]
    ds.DerivationDescription = _DERIVATION
    ds.DerivationCodeSequence = [_code("TWOVIEW", "99PCASCADE", "CT estimated from two radiographs")]
    if headers:
        ds.SourceImageSequence = [_reference(header) for header in headers]
    ds.BurnedInAnnotation, ds.KVP, ds.AcquisitionNumber = "NO", None, None
    return ds


def _identity(headers: Sequence[Any]) -> dict[str, Any]:
    if not headers:
        raise UserError("--keep-identity must come with DICOM radiographs, none of these is")
    patients = {str(header.get("PatientID", "")) for header in headers}
    if len(patients) > 1:
        raise UserError(f"--keep-identity must come with radiographs of one patient, got {len(patients)} PatientIDs")
    return {name: headers[0].get(name, "") for name in _IDENTITY if headers[0].get(name)}


def _reference(header: Any) -> Any:
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    return item


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _slice(common: Any, voxels: np.ndarray, axes: np.ndarray, number: int, seed: str) -> Any:
    """One axial slice as a file."""
    from pydicom import FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.update(common)
    uid = UID(derived_uid(seed, f"slice {number}"))
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid
    meta.MediaStorageSOPClassUID = UID(ds.SOPClassUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    spacing = np.linalg.norm(axes[:3, :3], axis=0)
    place = axes @ [0, 0, number, 1]
    ds.InstanceNumber = number + 1
    ds.ImagePositionPatient = [_number(value) for value in place[:3]]
    ds.ImageOrientationPatient = [_number(value) for value in (axes[:3, :2] / spacing[:2]).T.ravel()]
    ds.PixelSpacing = [_number(spacing[1]), _number(spacing[0])]
    ds.SliceThickness = ds.SpacingBetweenSlices = _number(spacing[2])
    ds.SliceLocation = _number(place[2])
    ds.Rows, ds.Columns = voxels.shape[1], voxels.shape[0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = [-600, 40], [1500, 400]
    ds.PixelData = np.ascontiguousarray(voxels[:, :, number].T, dtype="<i2").tobytes()
    return ds


def _number(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return f"{value + 0.0:.10g}"[:16]
