# SPDX-License-Identifier: Apache-2.0
"""The JSON sidecar that a geometry travels in, beside every simulated radiograph and every reconstruction."""

from __future__ import annotations

from os import PathLike

from progressive_cascade.geometry.beam import ConeBeam

# What a file may ask for: 360 views of 512², or two of 8192²; no apparatus is larger than 100 m, no pixel finer.
_MAX_PIXELS = 1 << 27
_MIN_MM, _MAX_MM = 1e-3, 1e5


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
    from progressive_cascade.io import read_json

    origin = f"geometry file {path}"
    beam = ConeBeam.from_dict(read_json(path, "geometry file"), origin=origin)
    pixels = beam.detector_shape[0] * beam.detector_shape[1] * len(beam.views)
    if pixels > _MAX_PIXELS:
        raise ValueError(f"{origin}: detector_shape and views must make at most {_MAX_PIXELS} pixels, got {pixels}")
    lengths = (beam.source_to_detector, *beam.isocenter, *beam.detector_offset, *beam.pixel_spacing)
    if max(map(abs, lengths)) > _MAX_MM or min(*beam.pixel_spacing, beam.source_to_isocenter) < _MIN_MM:
        raise ValueError(f"{origin}: lengths must lie between {_MIN_MM} and {_MAX_MM:g} mm, got {sorted(lengths)}")
    return beam
