# SPDX-License-Identifier: Apache-2.0
"""A CT archive to a dataset folder: which inputs there are, whose they are, and what became of each.

The folder holds `ct/ID.nii.gz`, `valid/ID.nii.gz`, `datalist.json` (Decathlon format, split by patient) and
`manifest.csv` (one row per input, with the reason for each that was skipped).
"""

from __future__ import annotations

import csv
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path

from progressive_cascade.ct.datalist import DATALIST, MANIFEST, SECTIONS
from progressive_cascade.ct.placement import TRUNCATED_FRACTION, prepare_case
from progressive_cascade.ct.series import DicomSeries, ct_stem, find_dicom_series, is_ct_file
from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path, save_json, save_nifti
from progressive_cascade.paths import check_files


@dataclass(frozen=True)
class Split:
    """How patients are divided; a patient's cases never part.

    Args:
        validation_fraction: fraction of the patients drawn for validation.
        test_fraction: fraction drawn for test.
        seed: of the draw.
        training: patients named by hand; where given, no others are used.
        validation: patients named by hand instead of drawn.
        test: patients named by hand instead of drawn.

    Raises:
        UserError: for fractions outside [0, 1) or a patient named twice.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    training: tuple[str, ...] | None = None
    validation: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise UserError(f"split fractions must be at least 0 and sum to less than 1, got {fractions}")
        named = [patient for section in SECTIONS for patient in getattr(self, section) or ()]
        twice = sorted({patient for patient in named if named.count(patient) > 1})
        if twice:
            raise UserError(f"split must name each patient once, got {twice} more than once")

    def check_names(self, patients: set[str]) -> None:
        """Refuses a split that names patients who are not in the archive."""
        named = {patient for section in SECTIONS for patient in getattr(self, section) or ()}
        if named - patients:
            raise UserError(f"split must name patients of the input, got unknown {sorted(named - patients)}")

    def wants(self, patient: str) -> bool:
        """Whether the patient can be in any section."""
        return self.training is None or any(patient in (getattr(self, section) or ()) for section in SECTIONS)

    def assign(self, patients: set[str]) -> dict[str, str]:
        """Maps each patient to a section: as named, else drawn; at least one patient stays in training."""
        sections = {p: name for name in SECTIONS for p in getattr(self, name) or () if p in patients}
        free = sorted(patients - set(sections))
        random.Random(self.seed).shuffle(free)
        for name, fraction in (("test", self.test_fraction), ("validation", self.validation_fraction)):
            if getattr(self, name) is None and fraction > 0 and len(free) > 1:
                num = min(max(1, round(fraction * len(patients))), len(free) - 1)
                sections.update(dict.fromkeys(free[:num], name))
                free = free[num:]
        return {**sections, **dict.fromkeys(free, "training")}


@dataclass(frozen=True)
class ManifestRow:
    """What became of one input; a line of `manifest.csv`."""

    case: str
    patient: str
    split: str
    source: str
    status: str
    reason: str = ""
    spacing: str = ""
    shape: str = ""
    z_extent_mm: str = ""
    repeated_mm: str = ""
    truncated: str = ""
    note: str = ""
    voxels_sha256: str = ""


def prepare_dataset(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: Split | None = None,
    patient_pattern: str | None = None,
    keep_truncated: bool = True,
    center: str = "scan",
    num_workers: int = 0,
    progress: Callable[[ManifestRow], None] | None = None,
) -> list[ManifestRow]:
    """Prepares every CT of an archive into a dataset folder, see :func:`~progressive_cascade.ct.prepare.place_ct`.

    Args:
        source: a CT NIfTI, a folder tree of them, or a folder tree of DICOM series.
        output: dataset folder to write.
        split: how patients are divided.
        patient_pattern: regular expression searched in a NIfTI's path below `source`; its first group (or whole
            match) is the patient. By default the file's name is.
        keep_truncated: keep CTs whose field of view cuts the body; they are marked in the manifest either way.
        center: `scan` or `lungs`: what the cube follows in a CT longer than it.
        num_workers: processes; 0 works in this one.
        progress: called with the row of each finished input.

    Returns:
        The rows of the manifest.

    Raises:
        FileNotFoundError: where `source` does not exist.
        UserError: where nothing usable is found, or a named patient is missing.
    """
    split = split or Split()
    check_files(reads={"input": Path(source)}, writes={"output": dataset_files(output)}, overwrite=True)
    sources = find_sources(source, patient_pattern=patient_pattern)
    split.check_names({item.patient for item in sources})
    jobs = [_Job(item, str(output), keep_truncated, center, split.wants(item.patient)) for item in sources]
    # An interrupted run must not leave an older list beside newer voxels of the same names.
    for path in dataset_files(output)[:2]:
        path.unlink(missing_ok=True)
    rows = []
    for row in _run_jobs(jobs, num_workers):
        rows.append(row)
        if progress is not None:
            progress(row)
    rows = _one_patient_each(rows, sources, split)
    for row in rows:
        if row.note and row.status == "skipped":
            for name in ("ct", "valid"):
                (Path(output) / name / f"{row.case}.nii.gz").unlink(missing_ok=True)
    kept = {row.patient for row in rows if row.status != "skipped"}
    sections = split.assign(kept)
    rows = [replace(row, split=_section_of(row, sections)) for row in rows]
    _write_manifest(rows, Path(output) / MANIFEST)
    if not kept:
        raise UserError(f"{source} must hold at least one usable CT, got none: see {Path(output) / MANIFEST}")
    _write_datalist(rows, Path(output) / DATALIST)
    return rows


def dataset_files(output: str | os.PathLike[str]) -> list[Path]:
    """The files and folders a dataset folder consists of."""
    return [Path(output) / name for name in (DATALIST, MANIFEST, "ct", "valid")]


@dataclass(frozen=True)
class Source:
    """One input of an archive: a NIfTI path or a DICOM series, with the names it will go by."""

    case: str
    patient: str
    location: str
    series: DicomSeries | None = None


def find_sources(source: str | os.PathLike[str], *, patient_pattern: str | None = None) -> list[Source]:
    """Lists the CTs of an archive, with names that are safe for files and unique.

    A NIfTI goes by its file name, and so does its patient. Where file names repeat in different folders, the path
    below `source` names the case and its folder the patient.

    Args:
        source: a CT NIfTI, a folder tree of them, or a folder tree of DICOM series.
        patient_pattern: see :func:`prepare_dataset`.

    Returns:
        The inputs: NIfTI files by path, then DICOM series.

    Raises:
        FileNotFoundError: where `source` does not exist.
        UserError: where it holds neither NIfTI files nor DICOM series, or the pattern is no regular expression.
    """
    root = Path(source)
    if not root.exists():
        raise FileNotFoundError(f"input must be an existing file or folder, got {root}")
    if root.is_file():
        return [_nifti_source(root, Path(root.name), patient_pattern, by_folder=False)]
    paths = sorted(path for path in root.rglob("*") if is_ct_file(path) and not _is_hidden(path.relative_to(root)))
    repeats = len({ct_stem(path) for path in paths}) < len(paths)
    sources = [_nifti_source(path, path.relative_to(root), patient_pattern, by_folder=repeats) for path in paths]
    sources += [_dicom_source(series) for series in _dicom_series(root, required=not sources)]
    if not sources:
        raise UserError(f"{root} must hold CT files (NIfTI, MHA, NRRD) or DICOM series, got neither")
    return _with_unique_names(sources)


def _is_hidden(below: Path) -> bool:
    """Whether a file, or a folder it lies in, is hidden: what systems leave behind (`._ct.nii`) is no case."""
    return any(part.startswith(".") for part in below.parts)


def _with_unique_names(sources: Sequence[Source]) -> list[Source]:
    unique: dict[str, Source] = {}
    for item in sources:
        name, number = item.case, 1
        while name in unique:
            number += 1
            name = f"{item.case}_{number}"
        unique[name] = replace(item, case=name)
    return list(unique.values())


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "unnamed"


def _nifti_source(path: Path, below: Path, pattern: str | None, *, by_folder: bool) -> Source:
    stem = ct_stem(path)
    nested = by_folder and len(below.parts) > 1
    case = _safe_name("_".join([*below.parts[:-1], stem]) if nested else stem)
    patient = "_".join(below.parts[:-1]) if nested else stem
    if pattern is not None:
        try:
            match = re.search(pattern, below.as_posix())
        except re.error as error:
            raise UserError(f"patient pattern must be a regular expression, got {pattern!r}: {error}") from error
        patient = ((match.group(1) if match.re.groups else match.group()) if match else "") or patient
    return Source(case, _safe_name(patient), str(path))


def _dicom_series(root: Path, *, required: bool) -> list[DicomSeries]:
    """DICOM below `root`; a folder of NIfTI files can do without SimpleITK."""
    try:
        return find_dicom_series(root)
    except ImportError:
        if required:
            raise
        return []


def _dicom_source(series: DicomSeries) -> Source:
    patient = _safe_name(series.patient or series.uid)
    # The end of the UID tells a patient's series apart, and stays the same when the archive grows.
    return Source(f"{patient}_{series.uid[-8:].replace('.', '')}", patient, str(Path(series.files[0]).parent), series)


@dataclass(frozen=True)
class _Job:
    source: Source
    output: str
    keep_truncated: bool
    center: str
    wanted: bool


def _run_jobs(jobs: Sequence[_Job], num_workers: int) -> Iterator[ManifestRow]:
    if num_workers <= 0:
        yield from map(_prepare_one, jobs)
        return
    # Spawned, because a fork of a process that has run torch's threads may hang.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_prepare_one, jobs)


def _prepare_one(job: _Job) -> ManifestRow:
    """Prepares and writes one case; whatever is wrong with it becomes the row's reason."""
    item = job.source
    row = ManifestRow(item.case, item.patient, "", item.location, "skipped")
    if not job.wanted:
        return replace(row, reason="patient not named in the split")
    if item.series is not None and item.series.rejection:
        return replace(row, reason=item.series.rejection)
    try:
        case = prepare_case(item.series or item.location, center=job.center)
    except (UserError, OSError) as error:
        return replace(row, reason=str(error).removeprefix(f"{item.location}: "))
    row = replace(
        row,
        note="; ".join(item.series.notes if item.series is not None else case.notes),
        spacing=" ".join(f"{value:.4g}" for value in case.source_spacing),
        shape=" ".join(str(value) for value in case.source_shape),
        z_extent_mm=f"{case.z_extent_mm:.1f}",
        repeated_mm=f"{case.repeated_mm:.1f}",
        truncated=f"{case.truncated:.3f}",
        voxels_sha256=case.fingerprint,
    )
    cut = case.truncated > TRUNCATED_FRACTION
    reason = f"{case.truncated:.0%} of the body's contour lies on the edge of the field of view" if cut else ""
    if cut and not job.keep_truncated:
        return replace(row, reason=reason)
    save_nifti(case.hu, case.affine, Path(job.output) / "ct" / f"{item.case}.nii.gz")
    save_nifti(case.valid, case.affine, Path(job.output) / "valid" / f"{item.case}.nii.gz")
    return replace(row, status="truncated" if cut else "prepared", reason=reason)


def _one_patient_each(rows: Sequence[ManifestRow], sources: Sequence[Source], split: Split) -> list[ManifestRow]:
    """Gives one name to patients who share a series or voxels, and leaves out every copy of a CT but the first.

    Raises:
        UserError: where a split that was named by hand puts one person into two sections.
    """
    names = {row.patient: row.patient for row in rows}
    first: dict[str, ManifestRow] = {}
    done = []
    for row, source in zip(rows, sources, strict=True):
        if row.status == "skipped":
            done.append(row)
            continue
        keys = [row.voxels_sha256, *([source.series.uid] if source.series is not None else [])]
        for twin in (first[key] for key in keys if key in first):
            one, other = names[twin.patient], names[row.patient]
            names = {name: one if now == other else now for name, now in names.items()}
        copy = first.get(row.voxels_sha256)
        for key in keys:
            first.setdefault(key, row)
        if copy is not None:
            said = f"the same voxels as {copy.case}, which stands for both"
            row = replace(row, status="skipped", reason=said, note=f"one patient with {copy.patient}")
        done.append(row)
    chosen = {name: _chosen_name([other for other in names if names[other] == name], name, split) for name in names}
    return [_renamed(row, chosen[names[row.patient]]) for row in done]


def _chosen_name(members: Sequence[str], name: str, split: Split) -> str:
    """The name of one person who goes by several: one that the split names, else the first."""
    named = {other: part for part in SECTIONS for other in getattr(split, part) or () if other in members}
    if len(set(named.values())) > 1:
        places = ", ".join(f"{other} in {part}" for other, part in named.items())
        raise UserError(f"split must keep a patient together, but these share a CT: {places}")
    return next(iter(named), name)


def _renamed(row: ManifestRow, patient: str) -> ManifestRow:
    if row.patient == patient or row.status == "skipped":
        return row
    return replace(row, patient=patient, note=f"one patient with {patient}: they share a CT")


def _section_of(row: ManifestRow, sections: dict[str, str]) -> str:
    return "" if row.status == "skipped" else sections[row.patient]


def _write_manifest(rows: Sequence[ManifestRow], path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ManifestRow)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _write_datalist(rows: Sequence[ManifestRow], path: Path) -> None:
    sections: dict[str, list[dict[str, str]]] = {section: [] for section in SECTIONS}
    for row in rows:
        if row.split:
            files = {"label": f"ct/{row.case}.nii.gz", "valid": f"valid/{row.case}.nii.gz"}
            sections[row.split].append({**files, "patient": row.patient})
    header = {"name": "prepared CTs", "modality": {"0": "CT"}, "numTraining": len(sections["training"])}
    save_json({**header, **sections}, path)
