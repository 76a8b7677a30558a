# SPDX-License-Identifier: Apache-2.0
"""Pixels of a DICOM radiograph (DX, CR, secondary capture, single-frame XA and RF) and what its header says of them.

Sections are those of DICOM PS3.3. What the values mean (C.8.11.3.1): FOR PROCESSING with a linear
PixelIntensityRelationship is the detector's signal; everything else is display, dense bright: FOR PROCESSING with a
logarithm is that but for an unknown factor. Its sign (C.8.11.3.1.2), or else MONOCHROME1 or 2 after the VOI
transformation (C.11.2), tells which end is dense.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from progressive_cascade.errors import UserError
from progressive_cascade.io.dicom_layout import is_envelope
from progressive_cascade.io.pixel_streams import check_stored_pixels
from progressive_cascade.radiograph.dicom_detector import (
    read_detector_offset,
    read_field_of_view,
    read_pixel_spacing,
    read_view,
)
from progressive_cascade.radiograph.dicom_halved import decode_halved
from progressive_cascade.radiograph.dicom_shutters import shutter_mask
from progressive_cascade.radiograph.dicom_tags import DicomHeader
from progressive_cascade.radiograph.record import (
    Radiograph,
    check_pixels,
    check_size,
    grey_of_colours,
    parse_directions,
)

# Less is the play of a stand, and costs less than the distances' own errors.
_ASLANT_DEGREES = 2.0
# Against pydicom's first choice: JPEG-LS, lossless and nearly so, 5 times faster, RLE 10 times.
_FASTEST = {
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.5": "pylibjpeg",
}
_MODALITIES = ("DX", "CR", "RF", "XA", "OT", "SC", "RG", "PX", "IO")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

# Defined terms of BodyPartExamined (PS3.16 L) that are surely no chest. A part that is not among them may be one: the
# attribute is filled in any language.
_OTHER_PARTS = re.compile(
    r"(?<![A-Z])(?:"
    r"ABDOMEN|ANKLE|ARM|BREAST|CALCANEUS|COCCYX|CSPINE|ELBOW|EXTREMITY|FACE|FEMUR|FINGER|FOOT|FOREARM|HAND|"
    r"HEAD|HIP|HUMERUS|JAW|KNEE|LEG|LSPINE|MANDIBLE|MAXILLA|NASAL|NECK|ORBIT|PATELLA|PELVIS|RADIUS|SACRUM|"
    r"SHOULDER|SKULL|TEETH|THUMB|TIBIA|TOE|ULNA|WRIST|ZYGOMA"
    r")(?![A-Z])"
)
_CHEST = ("CHEST", "THORAX", "LUNG")


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's preamble, is an envelope around one, or is named like one."""
    with open(path, "rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or is_envelope(start) or path.suffix.lower() in (".dcm", ".dicom", ".ima")


def read_dicom(path: Path) -> Radiograph:
    """Reads a DICOM radiograph; a large one in JPEG 2000 without its finest details, see :mod:`.dicom_halved`.

    Args:
        path: the file.

    Returns:
        The radiograph as it is stored.

    Raises:
        UserError: if the file is damaged, encrypted, compressed in an unknown way, in colour, of several frames or no
            radiograph; file, attribute and value are named.
    """
    import pydicom

    header = DicomHeader(path)
    _check_kind(header)
    rows, cols = (header.positive(keyword, 1) for keyword in ("Rows", "Columns"))
    if rows is None or cols is None:
        raise header.error("Rows" if rows is None else "Columns", "be present")
    check_size(path, int(rows[0]), int(cols[0]))
    check_stored_pixels(path, str(path))
    try:
        dataset = pydicom.dcmread(path)
        halved = decode_halved(dataset)
        _choose_decoder(dataset)
        stored = np.asarray(dataset.pixel_array) if halved is None else halved
    except Exception as error:  # decoders raise whatever their libraries do
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:160]
        raise UserError(f"{path} must have pixels that can be decoded, got: {reason}") from error
    if stored.ndim == 3:  # pydicom has made RGB of it
        stored = grey_of_colours(list(np.moveaxis(stored, 2, 0)), path)
    pixels, meaning = _values(header, dataset, stored)
    mask = shutter_mask(header, pixels.shape) & ~_padding(header, dataset, stored)
    check_pixels(path, pixels, mask)
    known: dict[str, Any] = _facts(header, (int(rows[0]), int(cols[0])))
    known["sources"] = dict.fromkeys([*known, "meaning"], "tag")
    return Radiograph(str(path), pixels, mask, meaning, remarks=_remarks(header), **known)


def is_radiograph(header: DicomHeader) -> bool:
    """Whether it may be one, by its modality; a secondary capture need not say any."""
    modality = header.text("Modality")
    return modality in _MODALITIES or (not modality and header.text("SOPClassUID") == _SECONDARY_CAPTURE)


def other_part(header: DicomHeader) -> str:
    """What BodyPartExamined says where that is surely no chest, else nothing."""
    said = header.text("BodyPartExamined")
    found = None if any(word in said for word in _CHEST) else _OTHER_PARTS.search(said)
    return found.group() if found else ""


def _choose_decoder(dataset: Any) -> None:
    """The fastest of the decoders that are installed, where there is more than one."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = _FASTEST.get(str(syntax))
    if plugin is not None and plugin in get_decoder(syntax).available_plugins:
        dataset.pixel_array_options(decoding_plugin=plugin)


def _remarks(header: DicomHeader) -> tuple[str, ...]:
    """A detector that the beam met aslant (C.8.11.5), another part of the body, letters, pixels turned blindly."""
    found = []
    angles = [header.number(f"Detector{which}Angle") or 0.0 for which in ("Primary", "Secondary")]
    if max(map(abs, angles)) > _ASLANT_DEGREES:
        found.append(
            f"{header.name}: the beam met the detector {max(angles, key=abs):g} degrees aslant, taken for upright to it"
        )
    if part := other_part(header):
        found.append(f"{header.name}: the tag says that it shows {part}, no chest")
    if header.text("BurnedInAnnotation") == "YES":
        found.append(f"{header.name}: letters are burnt into the picture, and may name the patient on every page of it")
    if not header.text("PatientOrientation") and read_field_of_view(header) != (0, False):
        turn, flip = read_field_of_view(header)
        found.append(
            f"{header.name}: the detector's pixels were turned by {turn} degrees{' and flipped' if flip else ''}, and "
            "no PatientOrientation says how the patient is shown"
        )
    return tuple(found)


def _check_kind(header: DicomHeader) -> None:
    if not is_radiograph(header):
        raise header.error("Modality", "be that of a radiograph (DX, CR, RF, XA or a secondary capture)")
    if (header.number("NumberOfFrames") or 1) != 1:
        raise header.error("NumberOfFrames", "be 1")
    samples, photometric = header.number("SamplesPerPixel") or 1, header.text("PhotometricInterpretation")
    if samples not in (1, 3):
        raise header.error("SamplesPerPixel", "be 1, or 3 of a grey image in colours")
    if not (photometric in _COLOURS if samples == 3 else photometric.startswith("MONOCHROME")):
        raise header.error("PhotometricInterpretation", "be MONOCHROME1 or MONOCHROME2, or RGB or YBR of a grey image")


def _values(header: DicomHeader, dataset: Any, stored: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels on the scale of their meaning, and the meaning."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    intent = header.text("PresentationIntentType")
    relationship, sign = header.text("PixelIntensityRelationship"), header.number("PixelIntensityRelationshipSign")
    levels = 2 ** int(header.number("BitsStored") or 16) - 1
    raw = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    # Sign 1: less X-rays are smaller values.
    if intent == "FOR PROCESSING" and relationship in ("LIN", "LOG"):
        less_is_smaller = sign != -1
        if relationship == "LIN":
            return (raw if less_is_smaller else levels - raw), "detector_signal"
        return (-raw if less_is_smaller else raw), "display"
    shown = np.asarray(apply_voi_lut(apply_modality_lut(stored, dataset), dataset), dtype=np.float32)
    dark_is_small = header.text("PhotometricInterpretation") != "MONOCHROME1"
    # A presentation LUT says in what sense the values after the window are shown (C.11.6).
    shape = header.text("PresentationLUTShape")
    inverse = shape == "INVERSE" if shape else not dark_is_small
    return (-shown if inverse else shown), "display"


def _padding(header: DicomHeader, dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Pixels that fill up the rectangle (C.7.5.1.1.2)."""
    value = header.number("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = header.number("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _facts(header: DicomHeader, shape: tuple[int, int]) -> dict[str, Any]:
    """Whatever is there, and sound."""
    known: dict[str, Any] = {"spacing": _spacing(header, shape), "view": read_named_view(header)}
    letters = header.texts("PatientOrientation")
    if len(letters) == 2:
        known["directions"] = parse_directions(list(letters), header.name)
    distance = header.positive("DistanceSourceToDetector", 1)
    known["source_to_detector"] = distance[0] if distance else None
    known["source_to_isocenter"] = _source_to_isocenter(header, known["source_to_detector"])
    if known["spacing"] is not None and header.texts("FieldOfViewOrigin"):
        known["offset"] = read_detector_offset(header, known["spacing"], shape)
    known["patient"] = header.text("PatientID")
    known["study"] = header.text("StudyInstanceUID")
    return {name: value for name, value in known.items() if value is not None and value != ""}


def _spacing(header: DicomHeader, shape: tuple[int, int]) -> tuple[float, float] | None:
    """At the detector; a secondary capture's is that of the film it was scanned from (C.8.6.1.1)."""
    scanned = header.positive("NominalScannedPixelSpacing", 2)
    if scanned is not None:
        return scanned[0], scanned[1]
    factor, pitch = header.positive("EstimatedRadiographicMagnificationFactor", 1), header.positive("PixelSpacing", 2)
    try:
        return read_pixel_spacing(header, shape)
    except UserError:
        if factor is None or pitch is None or header.text("PixelSpacingCalibrationType") != "GEOMETRY":
            return None
        return pitch[0] * factor[0], pitch[1] * factor[0]


def read_named_view(header: DicomHeader) -> str | None:
    """The view as the tags name it, by ViewPosition, ViewCodeSequence or a C-arm's angles; None where they do not."""
    try:
        return read_view(header)
    except UserError:
        if header.text("ViewPosition") not in ("LAT", "LATERAL", "LL", "RL"):
            return None
        return {"R": "right_lateral"}.get(header.text("ImageLaterality"), "left_lateral")


def _source_to_isocenter(header: DicomHeader, source_to_detector: float | None) -> float | None:
    """DistanceSourceToPatient reaches to the isocenter in XA and RF alone (:mod:`.dicom_geometry`)."""
    distance, factor = (
        header.positive(keyword, 1)
        for keyword in ("DistanceSourceToPatient", "EstimatedRadiographicMagnificationFactor")
    )
    if distance is not None and header.text("Modality") in ("XA", "RF"):
        return distance[0]
    if source_to_detector is None or factor is None or factor[0] <= 1:
        return None
    # A factor that merely repeats the distance to the bucky says nothing of the isocenter.
    if distance is not None and abs(factor[0] * distance[0] / source_to_detector - 1) < 0.01:
        return None
    return source_to_detector / factor[0]
