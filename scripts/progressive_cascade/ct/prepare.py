# SPDX-License-Identifier: Apache-2.0
"""A CT archive to a dataset folder: which inputs there are, whose they are, and what became of each.

The folder holds `ct/ID.nii.gz`, `valid/ID.nii.gz`, `datalist.json` (Decathlon format, split by patient) and
`manifest.csv` (one row per input, with the reason for each that was skipped).
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from progressive_cascade import __version__
from progressive_cascade.ct.datalist import DATALIST, MANIFEST, SECTIONS
from progressive_cascade.ct.placement import TRUNCATED_FRACTION, prepare_case
from progressive_cascade.ct.pseudonyms import hide_patients
from progressive_cascade.ct.sources import Source, find_sources
from progressive_cascade.ct.split import Split
from progressive_cascade.ct.workers import Workers, kept_work
from progressive_cascade.errors import UserError
from progressive_cascade.io import atomic_path, read_json, save_json, save_nifti, staged_folder
from progressive_cascade.paths import check_files

_NOTES = "done"


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
    assume_spacing: Sequence[float] | None = None,
    keep_names: bool = False,
    key_file: str | os.PathLike[str] | None = None,
    workers: Workers | None = None,
    progress: Callable[[ManifestRow], None] | None = None,
) -> list[ManifestRow]:
    """Prepares every CT of an archive into a dataset folder, see :func:`~progressive_cascade.ct.placement.place_ct`.

    What the folder held before stays whole until the new dataset is; an interrupted call is gone on with.

    Args:
        source: a CT file, a folder tree of them, or a folder tree of DICOM series.
        output: dataset folder to write.
        split: how patients are divided.
        patient_pattern: regular expression searched in a file's path below `source`; its first group (or whole
            match) is the patient, by default the file's name.
        keep_truncated: keep CTs whose field of view cuts the body; they are marked in the manifest either way.
        center: `scan` or `lungs`: what the cube follows in a CT longer than it.
        assume_spacing: see :func:`~progressive_cascade.ct.files.read_scan`.
        keep_names: call DICOM patients by PatientID and list paths; else nothing names them (:mod:`.pseudonyms`).
        key_file: keep here what leads back to PatientIDs, mode 0600.
        workers: who prepares; default: this process.
        progress: called with the row of each finished input.

    Returns:
        The rows of the manifest.

    Raises:
        FileNotFoundError: where `source` does not exist.
        UserError: where nothing usable is found, or a named patient is missing.
    """
    check_files(reads={"input": Path(source)}, writes={"output": dataset_files(output)}, overwrite=True)
    sources, split = find_sources(source, patient_pattern=patient_pattern), split or Split()
    if not keep_names:
        sources, split = hide_patients(sources, split, Path(source), Path(key_file) if key_file else None)
    split.check_names({item.patient for item in sources})
    with kept_work(Path(output)) as work, staged_folder(output, last=(DATALIST,)) as folder:
        options = (keep_truncated, center, assume_spacing)
        jobs = [_Job(item, work, split.wants(item.patient), *options) for item in sources]
        rows = _finish(list(_run_jobs(jobs, workers or Workers(0), progress)), sources, split, work, folder)
        _check_rows(rows, folder, Path(output), source)
    return rows


def _check_rows(rows: Sequence[ManifestRow], folder: Path, output: Path, source: str | os.PathLike[str]) -> None:
    """Refuses an archive of nothing usable, whose manifest says why where there is no earlier dataset's."""
    if any(row.split for row in rows):
        return
    if not (output / DATALIST).exists():
        (folder / MANIFEST).replace(output / MANIFEST)
    raise UserError(f"{source} must hold at least one usable CT, got none: {rows[0].case}: {rows[0].reason}")


def dataset_files(output: str | os.PathLike[str]) -> list[Path]:
    """The files and folders a dataset folder consists of."""
    return [Path(output) / name for name in (DATALIST, MANIFEST, "ct", "valid")]


@dataclass(frozen=True)
class _Job:
    source: Source
    folder: Path
    wanted: bool
    keep_truncated: bool
    center: str
    assume_spacing: Sequence[float] | None


def _run_jobs(
    jobs: list[_Job], workers: Workers, progress: Callable[[ManifestRow], None] | None
) -> Iterator[ManifestRow]:
    for row in workers.run(_prepare_once, jobs):
        if progress is not None:
            progress(row)
        yield row


def _prepare_once(job: _Job) -> ManifestRow:
    """Prepares one case, unless an interrupted call has; a note says so, written when its files are on the disk."""
    note = job.folder / _NOTES / f"{job.source.case}.json"
    key = _job_key(job)
    files = [job.folder / name / f"{job.source.case}.nii.gz" for name in ("ct", "valid")]
    if note.is_file():
        known = read_json(note)
        row = ManifestRow(**known["row"])
        if known["key"] == key and (row.status == "skipped" or all(file.is_file() for file in files)):
            return row
    row = _prepare_one(job)
    save_json({"key": key, "row": asdict(row)}, note)
    return row


def _job_key(job: _Job) -> str:
    """Changes with the input's files, the options and the program."""
    item = job.source
    files = [plane.file for plane in item.series.planes] if item.series is not None else [item.location]
    stats = [(str(file), stat.st_size, stat.st_mtime_ns) for file in sorted(set(files)) for stat in [os.stat(file)]]
    options = (job.wanted, job.keep_truncated, job.center, job.assume_spacing)
    parts = (__version__, item.case, item.patient, item.listed, item.series is None, options, stats)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _prepare_one(job: _Job) -> ManifestRow:
    """Prepares and writes one case; whatever is wrong with it becomes the row's reason."""
    item = job.source
    row = ManifestRow(item.case, item.patient, "", item.listed or item.location, "skipped")
    if not job.wanted:
        return replace(row, reason="patient not named in the split")
    if item.series is not None and item.series.rejection:
        return replace(row, reason=item.said(item.series.rejection))
    try:
        case = prepare_case(item.series or item.location, center=job.center, assume_spacing=job.assume_spacing)
    except (UserError, OSError) as error:
        return replace(row, reason=item.said(str(error).removeprefix(f"{item.location}: ")))
    row = replace(
        row,
        note=item.said(_joined(*case.notes)),
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
    save_nifti(case.hu, case.affine, job.folder / "ct" / f"{item.case}.nii.gz")
    save_nifti(case.valid, case.affine, job.folder / "valid" / f"{item.case}.nii.gz")
    return replace(row, status="truncated" if cut else "prepared", reason=reason)


def _finish(
    rows: Sequence[ManifestRow], sources: Sequence[Source], split: Split, work: Path, folder: Path
) -> list[ManifestRow]:
    """Divides the patients, leaves out copies and writes the two lists; no list of cases where there is none."""
    rows = _one_patient_each(rows, sources, split)
    _link(rows, work, folder)
    sections = split.assign({row.patient for row in rows if row.status != "skipped"})
    rows = [replace(row, split=_section_of(row, sections)) for row in rows]
    _write_manifest(rows, folder / MANIFEST)
    if sections:
        _write_datalist(rows, folder / DATALIST)
    return rows


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
            row = replace(
                row, status="skipped", reason=said, note=_joined(f"one patient with {copy.patient}", row.note)
            )
        done.append(row)
    chosen = {name: split.name_together([other for other in names if names[other] == name]) for name in names.values()}
    return [_renamed(row, chosen[names[row.patient]]) for row in done]


def _renamed(row: ManifestRow, patient: str) -> ManifestRow:
    if row.patient == patient or row.status == "skipped":
        return row
    return replace(row, patient=patient, note=_joined(f"one patient with {patient}: they share a CT", row.note))


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _link(rows: Sequence[ManifestRow], work: Path, folder: Path) -> None:
    """Gives the cases' voxels their place in the dataset; copies, and series of an older attempt, stay behind."""
    for name in ("ct", "valid"):
        (folder / name).mkdir(exist_ok=True)
        for row in rows:
            if row.status != "skipped":
                file = f"{row.case}.nii.gz"
                try:
                    os.link(work / name / file, folder / name / file)
                except OSError:  # a disk without hard links
                    shutil.copyfile(work / name / file, folder / name / file)


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
