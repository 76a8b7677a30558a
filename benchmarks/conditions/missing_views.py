# SPDX-License-Identifier: Apache-2.0
"""What the command line makes of a pair that lacks a view: it must refuse, or say so beside the result."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from progressive_cascade import ConeBeam
from progressive_cascade.cli import main
from progressive_cascade.geometry import save_geometry
from progressive_cascade.io import save_nifti

# An exposure without a patient: every pixel catches its photons, but for the noise of 1e5.
_NOISE = 1e5**-0.5

LATERALS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "not given": lambda pa: None,
    "blank": lambda pa: np.zeros_like(pa),
    "exposed without a patient": lambda pa: np.random.default_rng(0).normal(0, _NOISE, pa.shape).astype(np.float32),
    "the PA again": lambda pa: pa,
}
"""What is handed over in place of the lateral, made from the PA."""


def try_missing_views(pa: np.ndarray, beam: ConeBeam, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Reconstruct pairs without a lateral.

    Args:
        pa: line integrals (rows, cols).
        beam: their geometry.
        checkpoint: the weights.

    Returns:
        By what stood in for the lateral: `refused`, with the `message`, or the `agreement` of the result.
    """
    found = {}
    for name, make in LATERALS.items():
        with TemporaryDirectory() as folder:
            found[name] = _try_pair(Path(folder), pa, make(pa), beam=beam, checkpoint=checkpoint)
    return found


def _try_pair(
    folder: Path, pa: np.ndarray, lateral: np.ndarray | None, *, beam: ConeBeam, checkpoint: Path
) -> dict[str, Any]:
    arguments = [
        "reconstruct",
        "--geometry",
        str(folder / "geometry.json"),
        "--checkpoint",
        str(checkpoint),
        "--allow-unverified",
    ]
    arguments += ["--output", str(folder / "ct.nii.gz"), "--device", "cpu"]
    save_geometry(beam, folder / "geometry.json")
    for view, (name, image) in enumerate((("pa", pa), ("lateral", lateral))):
        if image is not None:
            pixels = np.ascontiguousarray(image.T[:, :, None], dtype=np.float32)
            save_nifti(pixels, beam.detector_affine(view), folder / f"{name}.nii.gz")
            arguments += [f"--{name}", str(folder / f"{name}.nii.gz")]
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        code = main(arguments)
    if code:
        return {"refused": True, "message": said.getvalue().strip().replace(f"{folder}/", "")}
    return {"refused": False, "agreement": json.loads((folder / "ct.json").read_text(encoding="utf-8"))["agreement"]}
