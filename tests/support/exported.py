# SPDX-License-Identifier: Apache-2.0
"""A miniature of the bundle: the same files, networks of 8, 16 and 32 voxels, so that exporting takes a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from progressive_cascade import ConeBeam, save_geometry
from progressive_cascade.export import BUNDLE_NAME, Export, export_bundle
from progressive_cascade.export import bundle as bundle_module
from progressive_cascade.export.configs import to_text
from progressive_cascade.export.weights import build_network
from progressive_cascade.training.checkpoints import HalfPrecisionState
from tests.support import tiny

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
BEAM = ConeBeam(detector_shape=(64, 64), pixel_spacing=(6.72, 6.72))
TINY: dict[str, Any] = {
    **tiny.TINY,
    "grid": "$8 * 2 ** (@stage - 1)",
    "window": "${1: None, 2: None, 3: 16}[@stage]",
    "roi_size": 16,
    # SSIM needs 11 voxels a side, the VGG trunk more.
    "loss_weights": {"l1": 1.0, "reprojection": 0.05},
}
"""What stands in the miniature's configs instead, where a config has the key."""
# Packages that a machine which only trains may lack; None in sys.modules makes their import fail.
_ABSENT = ("itk", "SimpleITK", "matplotlib", "scipy", "numba", "tensorboard", "tensorboardX", "tqdm")


def make_source(folder: Path) -> Path:
    """Writes the miniature's source: configs, docs, and seeded weights of all stages."""
    source = folder / "bundle"
    for path in [*sorted((BUNDLE / "configs").rglob("*.json")), BUNDLE / "configs" / "logging.conf"]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            config = json.loads(text)
            text = to_text(
                {key: TINY.get(key, value) if path.parent.name == "configs" else value for key, value in config.items()}
            )
        _write(source / path.relative_to(BUNDLE), text.encode())
    _write(source / "LICENSE", (BUNDLE / "LICENSE").read_bytes())
    _write(source / "docs" / "README.md", (BUNDLE / "docs" / "README.md").read_bytes())
    _write(source / "models" / "perceptual_ct.pt", (BUNDLE / "models" / "perceptual_ct.pt").read_bytes())
    inference = json.loads((source / "configs" / "inference.json").read_text(encoding="utf-8"))
    earlier: dict[str, torch.Tensor] = {}
    for stage in (1, 2, 3):
        torch.manual_seed(0)
        network = build_network(inference, stage)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        network.load_state_dict(earlier, strict=False)
        earlier = HalfPrecisionState(network).state_dict()
        torch.save(earlier, source / "models" / f"stage{stage}_best.pt")
    _write(source / "models" / "model.pt", (source / "models" / "stage3_best.pt").read_bytes())
    return source


def export(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """Exports a source; returns the bundle's folder."""
    monkeypatch.setattr(bundle_module, "bundle_root", lambda: source)
    export_bundle(output, Export(**options))
    return output / BUNDLE_NAME


def make_xrays(folder: Path, beam: ConeBeam = BEAM) -> Path:
    """Writes a pair of radiographs of a smooth body, and its geometry."""
    rows, cols = beam.detector_shape
    y, x = np.mgrid[0:rows, 0:cols] / rows - 0.5
    folder.mkdir(parents=True, exist_ok=True)
    for name, width in (("pa", 0.35), ("lateral", 0.25)):
        pixels = 6 * np.exp(-((x / width) ** 4) - (y / 0.45) ** 4).astype(np.float32)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(pixels.T[..., None]), np.eye(4)), folder / f"{name}.nii.gz")
    save_geometry(beam, folder / "geometry.json")
    return folder


def run_bare(code: str, folder: Path, *, path: Path | None = None) -> str:
    """Runs Python code in a process that has neither this checkout nor the optional packages.

    Args:
        code: to run, in ``folder``, which comes first on the path as it does for ``python -m``.
        folder: the current folder.
        path: a further folder on the path.

    Returns:
        What it printed.
    """
    hide = f"import sys\nsys.path.insert(0, {str(folder)!r})\nsys.modules.update(dict.fromkeys({_ABSENT!r}))\n"
    # An editable install of the checkout would stand in for what the bundle forgot to bring along.
    hide += "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    hide += f"sys.path[:] = [p for p in sys.path if p != {str(BUNDLE.parent / 'scripts')!r}]\n"
    hide += f"sys.path += {[str(path)] if path else []!r}\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", hide + code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
