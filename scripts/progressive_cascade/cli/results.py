# SPDX-License-Identifier: Apache-2.0
"""The files of a reconstruction: volume, sidecar, picture, radiographs, sigma, page and DICOM series."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progressive_cascade.cli.common import versions
from progressive_cascade.geometry import ConeBeam

if TYPE_CHECKING:
    from progressive_cascade.inference.reconstruct import Reconstruction
    from progressive_cascade.networks.uncertainty import UncertaintyHead


MULTIFRAME = "CT.dcm"
"""The file of a DICOM series of one enhanced multi-frame image."""


@dataclass(frozen=True)
class CaseFiles:
    """The files of one reconstruction, which take their names together.

    Args:
        output: the CT, ``CT.nii.gz``; CT.json, CT.png and CT.radiographs.nii.gz stand beside it. Where no NIfTI is
            wanted, the folder of the DICOM series.
        page: the report page, where there is one.
        sigma: the standard deviation, where it is asked for: NIfTI, or ``.dcm``.
        dicom: the folder of the DICOM series, where it is asked for.
        multiframe: whether that series is one file.
        nifti: whether CT and radiographs are written as NIfTI.
    """

    output: Path
    page: Path | None = None
    sigma: Path | None = None
    dicom: Path | None = None
    multiframe: bool = False
    nifti: bool = True

    @property
    def stem(self) -> str:
        """What the case is called."""
        from progressive_cascade.io import nifti_stem

        return nifti_stem(self.output)

    def fixed(self) -> dict[str, Path]:
        """Every file but the slices of the DICOM series, by what it is; the sidecar last: with it a case is whole."""
        from progressive_cascade.report.finished import RADIOGRAPHS_SUFFIX

        beside = {"picture": ".png", **({"radiographs": RADIOGRAPHS_SUFFIX} if self.nifti else {})}
        found = {"volume": self.output} if self.nifti else {}
        found.update({name: self.output.with_name(f"{self.stem}{ending}") for name, ending in beside.items()})
        found.update({name: path for name in ("sigma", "page") if (path := getattr(self, name)) is not None})
        return {**found, "sidecar": self.output.with_name(f"{self.stem}.json")}

    def slices(self, number: int) -> list[Path]:
        """The files of the DICOM series."""
        from progressive_cascade.export.dicom import slice_name

        if self.dicom is None:
            return []
        return [self.dicom / name for name in ([MULTIFRAME] if self.multiframe else map(slice_name, range(number)))]

    def obsolete(self, new: Collection[Path]) -> list[Path]:
        """What an earlier run left here and would stand beside another CT: its page, more slices."""
        patterns = [] if self.dicom is None else ["IM[0-9][0-9][0-9][0-9].dcm", MULTIFRAME]
        old = [path for pattern in patterns for path in (self.dicom or self.output).glob(pattern)]
        page = self.output.with_name(f"{self.stem}.html")
        return [path for path in ([page] if self.output.exists() else []) + [*old] if path not in new]


def case_files(options: argparse.Namespace) -> CaseFiles:
    """The files that the options of `reconstruct` ask for."""
    from progressive_cascade.cli.dicom import dicom_folder
    from progressive_cascade.cli.report import page_path

    return CaseFiles(
        output=options.output,
        page=page_path(options),
        sigma=options.uncertainty,
        dicom=dicom_folder(options),
        multiframe=options.multiframe,
        nifti=options.format == "nifti",
    )


def describe_case(
    result: Reconstruction, beam: ConeBeam, *, checkpoint: Path | None = None, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The sidecar of a reconstruction.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        checkpoint: the weights' file, None for the shipped one.
        more: what else there is to say: facts of the radiographs, assumptions, warnings.
    """
    from progressive_cascade.inference.reconstruct import default_checkpoint
    from progressive_cascade.io import finite
    from progressive_cascade.io.released import file_hash

    weights = checkpoint or default_checkpoint()
    record = {
        "geometry": beam.to_dict(),
        "shape": list(result.hu.shape),
        "checkpoint": {"file": weights.name, "sha256": file_hash(weights)},
        "versions": versions(),
        "calibrated": result.calibrated,
        "agreement": result.agreement,
        "refinement": None if result.refinement is None else result.refinement.to_dict(),
        "geometry_range": None if result.geometry_range is None else asdict(result.geometry_range),
        **(more or {}),
    }
    # The geometry was looked at when the radiographs were read, and again when they were reconstructed.
    record["warnings"] = list(dict.fromkeys([*record.get("warnings", ()), *result.warnings]))
    return finite(record)


def write_case(
    result: Reconstruction,
    beam: ConeBeam,
    files: CaseFiles,
    *,
    record: Mapping[str, Any],
    head: UncertaintyHead | None = None,
    sources: Sequence[Path] = (),
    keep_identity: bool = False,
) -> list[Path]:
    """Writes all files of a reconstruction; a kill leaves all old ones, or what the next run makes all new ones.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        files: where to.
        record: the sidecar, of :func:`describe_case`.
        head: predicts sigma, where that is asked for.
        sources: the radiographs' files, which the DICOM series refers to.
        keep_identity: whether the DICOM series names the patient of the radiographs.

    Returns:
        What was written: the files, and the folder of the DICOM series.
    """
    from progressive_cascade.cli.report import build_case
    from progressive_cascade.io import atomic_paths
    from progressive_cascade.report import write_page

    identity = {"sources": sources, "keep_identity": keep_identity}
    fixed, slices = files.fixed(), files.slices(result.hu.shape[2])
    *others, sidecar = fixed.values()
    targets = [*others, *slices, sidecar]
    with atomic_paths(*targets, obsolete=files.obsolete(targets)) as temporaries:
        places = dict(zip(fixed, [*temporaries[: len(others)], temporaries[-1]], strict=True))
        fill_case(result, beam, places, record)
        if head is not None:
            weights = record["checkpoint"]["sha256"]
            write_uncertainty(result, beam, head=head, output=places["sigma"], weights=weights, **identity)
        if slices:
            comments = dicom_comments(record)
            _write_dicom(result, temporaries[len(others)], multiframe=files.multiframe, comments=comments, **identity)
        if files.page is not None:
            case = build_case(result, beam, name=files.stem, record=record, picture=places["picture"])
            write_page(case, places["page"])
    return [*([] if files.dicom is None else [files.dicom]), *fixed.values()]


def fill_case(result: Reconstruction, beam: ConeBeam, places: Mapping[str, Path], record: Mapping[str, Any]) -> None:
    """Writes picture and sidecar, and CT and radiographs as NIfTI where they have a place.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        places: of ``picture`` and ``sidecar``, and of ``volume`` and ``radiographs``, see :meth:`CaseFiles.fixed`.
        record: the sidecar.
    """
    from progressive_cascade.geometry import VOXEL_SIZE
    from progressive_cascade.io import save_json, save_nifti
    from progressive_cascade.report import volume_figure
    from progressive_cascade.report.finished import save_radiographs

    if "volume" in places:
        save_nifti(result.hu, result.affine, places["volume"])
        save_radiographs(result.image, places["radiographs"])
    volume_figure(result.hu, VOXEL_SIZE, places["picture"], radiographs=result.image, views=beam.views)
    save_json(dict(record), places["sidecar"])


def dicom_comments(record: Mapping[str, Any]) -> list[str]:
    """What the page says first, for who has the series alone: warnings, and what error is expected."""
    from progressive_cascade.report import wording

    expected = (record.get("expected_error") or {}).get("text")
    return [*(f"Warning: {line}" for line in wording.warnings(record)), *([f"{expected}"] if expected else [])]


def _write_dicom(
    result: Reconstruction,
    first: Path,
    *,
    multiframe: bool,
    comments: Sequence[str],
    sources: Sequence[Path],
    keep_identity: bool,
) -> None:
    from progressive_cascade.export.dicom import write_dicom_series
    from progressive_cascade.export.dicom_objects import write_dicom_multiframe

    write, place = (write_dicom_multiframe, first) if multiframe else (write_dicom_series, first.parent)
    write(result.hu, result.affine, place, sources=sources, keep_identity=keep_identity, comments=comments)


def write_uncertainty(
    result: Reconstruction,
    beam: ConeBeam,
    *,
    head: UncertaintyHead,
    output: Path,
    weights: str = "",
    sources: Sequence[Path] = (),
    keep_identity: bool = False,
) -> None:
    """Writes the standard deviation of the error of every voxel of a CT: whole HU, at least 1, with the CT's affine.

    Args:
        result: the reconstruction.
        beam: the geometry of its radiographs.
        head: network of :func:`progressive_cascade.inference.uncertainty.load_uncertainty`.
        output: a NIfTI file, or ``.dcm`` for a parametric map.
        weights: SHA-256 of the cascade's; sigma is recalibrated by tissue for those it was done for.
        sources: the radiographs' files, for the latter.
        keep_identity: whether the latter names their patient.
    """
    from progressive_cascade.export.dicom_objects import write_dicom_sigma
    from progressive_cascade.inference.expect import recalibrated
    from progressive_cascade.inference.uncertainty import predict_sigma
    from progressive_cascade.io import save_nifti

    sigma = recalibrated(predict_sigma(result, beam, head), result.hu, weights).round().clip(1, 32767)
    if output.suffix == ".dcm":
        identity = {"sources": sources, "keep_identity": keep_identity}
        write_dicom_sigma(sigma, result.hu, result.affine, output, **identity)
    else:
        save_nifti(sigma.astype("int16"), result.affine, output)


def describe_scores(scores: Mapping[str, float], protocol: str) -> str:
    """A protocol's headline scores in one line of plain words."""
    from progressive_cascade.evaluation.metrics import HEADLINES
    from progressive_cascade.report.wording import score_rows

    headlines = {f"{protocol}_{name}": scores[f"{protocol}_{name}"] for name in HEADLINES[protocol]}
    return "   ".join(f"{row.label.removesuffix(f' ({protocol})')} {row.value}" for row in score_rows(headlines))
