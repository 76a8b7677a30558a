# SPDX-License-Identifier: Apache-2.0
"""How many series a minute `prepare` takes, and whether its memory stays flat over a thousand.

    python benchmarks/archives.py [--series 1000] [--grid 64] [--folder archives]

Writes an archive of synthetic DICOM series (64 x 64 x 32 voxels, each a trunk with noise of its own, each a patient)
and prepares it in this process. `--grid` is the voxels along the cube that cases are placed on, 256 as `prepare` does
it or fewer. Archive, cases and measurements stay in the folder: an interrupted run goes on with what is missing, and
the clock counts what was done, not what was found. Times are of the processor. Writes
benchmarks/results/archives.json, one entry a grid.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import time
from functools import cache, partial
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from progressive_cascade.ct import placement
from progressive_cascade.ct.placement import place_ct
from progressive_cascade.ct.prepare import ManifestRow, prepare_dataset
from progressive_cascade.ct.workers import Workers
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE
from progressive_cascade.io import read_json, save_json

RESULTS = Path(__file__).resolve().parent / "results" / "archives.json"
SHAPE = (64, 64, 32)
"""Columns, rows, slices."""
_PIXEL, _SLICE = 6.0, 8.0
_QUARTERS = 4
_FIRST = 10000


def trunk(seed: int) -> np.ndarray:
    """A trunk with two lungs (column, row, slice) [HU], with noise of its own."""
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * _PIXEL for n in SHAPE[:2]), indexing="ij")
    hu = np.where((x / 150) ** 2 + (y / 100) ** 2 < 1, 40.0, -1000.0)
    for side in (-1, 1):
        hu[((x + side * 70) / 50) ** 2 + (y / 60) ** 2 < 1] = -850
    return hu[:, :, None] + np.random.default_rng(seed).normal(scale=10, size=SHAPE)


@cache
def _template(index: int) -> bytes:
    """A slice of the series :data:`_FIRST`, which ends with its pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"1.2.3.{_FIRST}.{index + 1}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = f"1.2.4.{_FIRST}", f"1.2.5.{_FIRST}"
    dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", f"P{_FIRST}", index
    dataset.Columns, dataset.Rows, dataset.PixelSpacing, dataset.SliceThickness = *SHAPE[:2], [_PIXEL] * 2, _SLICE
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, index * _SLICE]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = bytes(2 * SHAPE[0] * SHAPE[1])
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def write_series(folder: Path, number: int) -> None:
    """Writes a series, whole or not at all."""
    if folder.exists():
        return
    unfinished = folder.with_name(f".{folder.name}")
    unfinished.mkdir(parents=True, exist_ok=True)
    pixels = trunk(number).round().astype("<i2")
    for index in range(SHAPE[2]):
        head = _template(index)[: -2 * SHAPE[0] * SHAPE[1]].replace(b"%d" % _FIRST, b"%d" % (_FIRST + number))
        (unfinished / f"{index:03}.dcm").write_bytes(head + pixels[:, :, index].T.tobytes())
    unfinished.rename(folder)


class Log:
    """A line for each series that was prepared: processor seconds since the one before, memory [MiB].

    Args:
        path: appended to; what stands there is not measured again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._known = {row["case"] for row in self.rows}
        self._before = time.process_time()

    def __call__(self, row: ManifestRow) -> None:
        """Takes note of a finished series."""
        now = time.process_time()
        if row.case not in self._known:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * resource.getpagesize() / (1 << 20)
            entry = {"case": row.case, "seconds": now - self._before, "memory": memory, "status": row.status}
            self.rows.append(entry)
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
        self._before = now


def measure(folder: Path, count: int, grid: int) -> dict[str, object]:
    """Prepares the first `count` series of the folder's archive; what came of it."""
    archive = folder / "archive"
    for number in range(count):
        write_series(archive / f"{number:05}", number)
    log = Log(folder / f"log_{grid}.jsonl")
    spacing = VOLUME_SHAPE[0] * VOXEL_SIZE / grid
    with mock.patch.object(placement, "place_ct", partial(place_ct, shape=(grid, grid, grid), spacing=spacing)):
        begun = time.process_time()
        prepare_dataset(archive, folder / f"dataset_{grid}", workers=Workers(0), progress=log)
        whole = time.process_time() - begun
    seconds = [row["seconds"] for row in log.rows[1:]]  # the first one waits for the archive to be listed
    parts = np.array_split([row["memory"] for row in log.rows], _QUARTERS)
    return {
        "grid": grid,
        "series": len(log.rows),
        "prepared": sum(row["status"] == "prepared" for row in log.rows),
        "series_per_minute": round(60 / float(np.mean(seconds)), 1),
        "seconds_median": round(median(seconds), 3),
        "listing_and_ending_seconds": round(whole - sum(seconds), 1),
        "memory_mib": [round(float(np.median(part))) for part in parts],
    }


def main() -> None:
    """Measures one grid, prints the table of all, writes the results."""
    parser = argparse.ArgumentParser(description="Series a minute of `prepare`, and its memory.")
    parser.add_argument("--series", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--grid", type=int, default=64, help="voxels along the cube (default: 64)")
    parser.add_argument("--folder", type=Path, default=Path("archives"), help="kept between runs (default: archives)")
    options = parser.parse_args()
    known = read_json(RESULTS) if RESULTS.exists() else {"machine": "", "grids": {}}
    known["machine"] = f"one core of {os.cpu_count()}, processor time"
    known["grids"][str(options.grid)] = measure(options.folder, options.series, options.grid)
    save_json(known, RESULTS)
    print("| cube | series | series a minute | median | memory, by quarters of the run |\n|---|---|---|---|---|")
    for grid, row in sorted(known["grids"].items(), key=lambda one: int(one[0])):
        memory = ", ".join(map(str, row["memory_mib"]))
        told = f"{row['series']} | {row['series_per_minute']} | {row['seconds_median']} s | {memory} MiB"
        print(f"| {grid}³ | {told} |")


if __name__ == "__main__":
    main()
