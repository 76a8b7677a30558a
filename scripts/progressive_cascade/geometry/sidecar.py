# SPDX-License-Identifier: Apache-2.0
"""The JSON sidecar that a geometry travels in, beside every simulated radiograph and every reconstruction."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from progressive_cascade.geometry.beam import ConeBeam


def save_geometry(beam: ConeBeam, path: str | PathLike[str]) -> None:
    """Write the JSON sidecar of a geometry.

    Args:
        beam: the geometry.
        path: file to write; written whole or not at all.
    """
    from progressive_cascade.io import save_json

    save_json(beam.to_dict(), path)


def load_geometry(path: str | PathLike[str]) -> ConeBeam:
    """Read and check the JSON sidecar of a geometry.

    Args:
        path: file written by :func:`save_geometry`, or by hand with the same keys.

    Returns:
        The geometry.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not JSON, or a key is missing, unknown or impossible; file and key are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"geometry file {path} does not exist")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"geometry file {path} must be JSON: {error}") from error
    return ConeBeam.from_dict(values, origin=f"geometry file {path}")
