# SPDX-License-Identifier: Apache-2.0
"""What DICOM holds in one object: a CT as an enhanced multi-frame image, and sigma as a parametric map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.export.dicom import build_slices, derived_uid, to_lps
from progressive_cascade.io import atomic_path

_SERIES = {"multi-frame": 9002, "sigma": 9003}
# DICOM wants a date of content; the day on which a program ran would make two of one.
_NO_DATE, _NO_TIME = "19000101", "000000"


def write_dicom_multiframe(
    hu: np.ndarray,
    affine: np.ndarray,
    path: str | os.PathLike[str],
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    keep_identity: bool = False,
    comments: Sequence[str] = (),
) -> None:
    """Writes a volume as one enhanced multi-frame CT (Legacy Converted Enhanced CT Image, PS3.3 A.70).

    Args:
        hu: int16 array (x, y, z) [HU].
        affine: 4x4, voxel index to RAS mm; its axes run along the world's.
        path: the file.
        sources: files of the radiographs; those that are DICOM are referred to.
        keep_identity: see :func:`~progressive_cascade.export.dicom.write_dicom_series`.
        comments: likewise.

    Raises:
        UserError: where highdicom is missing, the file cannot be written, or the identity is not one.
    """
    library = _highdicom()
    built = build_slices(hu, affine, sources=sources, keep_identity=keep_identity, comments=comments)
    image = library.legacy.LegacyConvertedEnhancedCTImage(
        built.slices,
        series_instance_uid=derived_uid(built.seed, "multi-frame series"),
        series_number=_SERIES["multi-frame"],
        sop_instance_uid=derived_uid(built.seed, "multi-frame"),
        instance_number=1,
    )
    image.SeriesDescription = built.slices[0].SeriesDescription
    if comments:
        image.ImageComments = built.slices[0].ImageComments
    if built.headers:
        image.SourceImageEvidenceSequence = [_evidence(one, built.seed, keep_identity) for one in built.headers]
    elif "ReferencedSeriesSequence" in image:
        # highdicom lists the slices, which are written nowhere.
        del image.ReferencedSeriesSequence
    _save(image, path)


def write_dicom_sigma(
    sigma: np.ndarray,
    hu: np.ndarray,
    affine: np.ndarray,
    path: str | os.PathLike[str],
    *,
    sources: Sequence[str | os.PathLike[str]] = (),
    keep_identity: bool = False,
) -> None:
    """Writes the standard deviation of the error as a parametric map (PS3.3 A.75) in the CT's study and frame.

    Args:
        sigma: array (x, y, z) [HU].
        hu: the CT it belongs to, of the same shape; with the affine and the sources it decides the UIDs.
        affine: 4x4, voxel index to RAS mm.
        path: the file.
        sources: files of the radiographs.
        keep_identity: see :func:`~progressive_cascade.export.dicom.write_dicom_series`.

    Raises:
        UserError: where highdicom is missing, the file cannot be written, or the identity is not one.
    """
    from progressive_cascade import __version__

    library = _highdicom()
    built = build_slices(hu, affine, sources=sources, keep_identity=keep_identity)
    top = float(max(100.0, np.quantile(sigma, 0.995)))
    values = np.ascontiguousarray(to_lps(sigma, affine)[0].transpose(2, 1, 0), dtype=np.float32)
    image = library.pm.ParametricMap(
        built.slices,
        values,
        series_instance_uid=derived_uid(built.seed, "sigma series"),
        series_number=_SERIES["sigma"],
        sop_instance_uid=derived_uid(built.seed, "sigma"),
        instance_number=1,
        manufacturer="progressive-cascade",
        manufacturer_model_name="cascade",
        software_versions=__version__,
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_in_hounsfield_units(library)],
        window_center=top / 2,
        window_width=top,
        content_label="SIGMA",
        content_description="Standard deviation of the CT's error",
    )
    image.SeriesDescription = "Standard deviation of the CT's error - RESEARCH ONLY"
    image.BodyPartExamined = "CHEST"
    _save(image, path)


def _in_hounsfield_units(library: Any) -> Any:
    return library.pm.RealWorldValueMapping(
        lut_label="SIGMA",
        lut_explanation="standard deviation of the CT's error",
        unit=library.sr.CodedConcept("[hnsf'U]", "UCUM", "Hounsfield unit"),
        value_range=(0.0, 32767.0),
        intercept=0,
        slope=1,
    )


def _highdicom() -> Any:
    """The library.

    Raises:
        UserError: where it is not installed.
    """
    try:
        import highdicom
        import highdicom.legacy
        import highdicom.pm
        import highdicom.sr
    except ImportError as error:
        raise UserError(
            "multi-frame DICOM and sigma as DICOM need highdicom: pip install progressive-cascade[dicom]"
        ) from error
    return highdicom


def _evidence(header: Any, seed: str, keep_identity: bool) -> Any:
    """Where a source image is found; its study and series by other UIDs unless they may be known."""
    from pydicom import Dataset

    image, series, study = Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    series.ReferencedSOPSequence = [image]
    for item, name in ((series, "SeriesInstanceUID"), (study, "StudyInstanceUID")):
        known = header.get(name) if keep_identity else None
        setattr(item, name, known or derived_uid(seed, f"{name} of {header.SOPInstanceUID}"))
    study.ReferencedSeriesSequence = [series]
    return study


def _save(image: Any, path: str | os.PathLike[str]) -> None:
    for name in ("InstanceCreationDate", "InstanceCreationTime"):
        if name in image:
            delattr(image, name)
    for equipment in image.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    for element in image.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = derived_uid(image.SOPInstanceUID, "dimensions")
    image.ContentDate, image.ContentTime = _NO_DATE, _NO_TIME
    try:
        with atomic_path(path) as temporary:
            image.save_as(temporary, enforce_file_format=True)
    except OSError as error:
        raise UserError(f"output file {path} must be writable, got: {error.strerror}") from error
