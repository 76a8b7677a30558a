# SPDX-License-Identifier: Apache-2.0
"""How a training's cases are best kept: bytes and processor time of reading one, and of augmenting it.

    python benchmarks/storage.py [--grids 128 256] [--cases 2]

Phantoms as int16 HU, with a mask of what was scanned, as the cache keeps them. Times are of the processor, files are
in the system's cache: what a loader's worker spends, not what a disk does. Formats that are not installed are left out
(`pip install zarr safetensors`). Writes benchmarks/results/storage.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from progressive_cascade.ct import RandAnatomyd
from progressive_cascade.training import LoadCased

RESULTS = Path(__file__).resolve().parent / "results" / "storage.json"
Arrays = dict[str, np.ndarray]
Format = tuple[Callable[[Path, Arrays], None], Callable[[Path], Any]]


def _write_nifti(path: Path, arrays: Arrays, suffix: str) -> None:
    for name, array in arrays.items():
        nib.save(nib.Nifti1Image(array[0], np.eye(4)), f"{path}_{name}{suffix}")


def _read_nifti(path: Path, suffix: str) -> list[np.ndarray]:
    return [np.asarray(nib.load(f"{path}_{name}{suffix}").dataobj) for name in ("label", "valid")]  # type: ignore


def _write_npy(path: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        np.save(f"{path}_{name}.npy", array)


def formats() -> dict[str, Format]:
    """Writers and readers by name, of what is installed."""
    found: dict[str, Format] = {
        "NIfTI, gzip": (
            lambda path, arrays: _write_nifti(path, arrays, ".nii.gz"),
            lambda path: _read_nifti(path, ".nii.gz"),
        ),
        "NIfTI, plain": (
            lambda path, arrays: _write_nifti(path, arrays, ".nii"),
            lambda path: _read_nifti(path, ".nii"),
        ),
        "torch.save (the cache)": (
            lambda path, arrays: torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, f"{path}.pt"),
            lambda path: torch.load(f"{path}.pt", weights_only=True),
        ),
        "memmap": (
            _write_npy,
            lambda path: [np.array(np.load(f"{path}_{name}.npy", mmap_mode="r")) for name in ("label", "valid")],
        ),
    }
    if find_spec("safetensors"):
        tensors = import_module("safetensors.numpy")
        found["safetensors"] = (
            lambda path, arrays: tensors.save_file(arrays, f"{path}.safetensors"),
            lambda path: tensors.load_file(f"{path}.safetensors"),
        )
    if find_spec("zarr"):
        zarr, codecs = import_module("zarr"), import_module("zarr.codecs")

        def write(path: Path, arrays: Arrays) -> None:
            for name, array in arrays.items():
                codec = codecs.BloscCodec(cname="zstd", clevel=3)
                kept = zarr.create_array(
                    f"{path}_{name}.zarr", shape=array.shape, dtype=array.dtype, chunks=array.shape, compressors=codec
                )
                kept[:] = array

        found["zarr, blosc/zstd"] = (
            write,
            lambda path: [zarr.open_array(f"{path}_{name}.zarr", mode="r")[:] for name in ("label", "valid")],
        )
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, nargs="+", default=[128, 256], help="voxels per axis")
    parser.add_argument("--cases", type=int, default=2, help="phantoms")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for grid in arguments.grids:
        cases = [LoadCased(grid)({"seed": seed}) for seed in range(arguments.cases)]
        arrays = [{key: np.ascontiguousarray(case[key].numpy()) for key in ("label", "valid")} for case in cases]
        augment = RandAnatomyd(keys=["label", "valid"])
        begun = time.process_time()
        for case in cases:
            augment({key: case[key] for key in ("label", "valid")})
        augmented = (time.process_time() - begun) / len(cases)
        for name, (write, read) in formats().items():
            with tempfile.TemporaryDirectory() as folder:
                for number, each in enumerate(arrays):
                    write(Path(folder) / str(number), each)
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / len(arrays)
                times = []
                for _ in range(3):
                    begun = time.process_time()
                    for number in range(len(arrays)):
                        read(Path(folder) / str(number))
                    times.append((time.process_time() - begun) / len(arrays))
            rows.append(
                {"grid": grid, "format": name, "megabytes": size / 1e6, "read_s": min(times), "augment_s": augmented}
            )
            print(
                f"{grid}^3  {name:24} {size / 1e6:7.2f} MB  read {min(times) * 1e3:8.1f} ms  augment "
                f"{augmented * 1e3:8.1f} ms  {1 / (min(times) + augmented):6.2f} samples/s of a core",
                flush=True,
            )
    RESULTS.write_text(json.dumps(rows, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
