# SPDX-License-Identifier: Apache-2.0
"""The acquisition geometry: a point source, a flat detector, named views, and where they stand in the patient's world.

World coordinates are RAS millimetres as NIfTI means them: +x towards the patient's right, +y anterior, +z superior.

Pixel and voxel centres lie at integer indices: voxel (0, 0, 0) is centred on the affine's translation and reaches half
a voxel to each side; a detector of n columns spans the column coordinates -0.5 to n - 0.5, with its middle at
(n - 1) / 2.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from progressive_cascade.geometry.views import VIEWS as VIEWS  # part of this module's names, too
from progressive_cascade.geometry.views import cos_sin_degrees, parse_views, view_axes

VOLUME_SHAPE = (256, 256, 256)
"""Grid of the reconstructed CT."""
VOXEL_SIZE = 1.4
"""Voxel size of the reconstructed CT [mm]; the cube is 358.4 mm wide."""

_SIDECAR_FORMAT = "progressive-cascade geometry 1"


def _parse_numbers(name: str, values: Any, count: int, *, positive: bool = False) -> Any:
    """``values`` as a tuple of ``count`` finite floats, or an error that names the argument."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be {count} number(s), got {values!r}") from None
    if len(numbers) != count or not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"{name} must be {count} finite number(s), got {values!r}")
    if positive and any(value <= 0 for value in numbers):
        raise ValueError(f"{name} must be positive, got {values!r}")
    return numbers


@dataclass(frozen=True)
class ConeBeam:
    """A set of cone-beam views of one patient.

    Args:
        source_to_isocenter: distance from the source to the isocenter [mm].
        source_to_detector: distance from the source to the detector plane [mm].
        detector_shape: detector pixels (rows, columns).
        pixel_spacing: detector pixel pitch (row, column) [mm].
        views: names out of :data:`VIEWS` or C-arm angles such as ``lao30_cranial15`` (:func:`view_axes`).
        isocenter: the point of the patient's world (RAS) the central rays meet in [mm].
        detector_offset: where the detector's centre lies relative to the foot of the central ray, along its own
            (row, column) axes: positive is further down, further right in the image [mm].
        detector_rotation: turn of the detector about the central ray, clockwise as seen in the image [degrees].

    Raises:
        ValueError: if a distance, shape, spacing or view is impossible.
        TypeError: if a field is of the wrong type.

    Example:
        >>> beam = ConeBeam(source_to_isocenter=1500, source_to_detector=1800)
        >>> beam.magnification
        1.2
        >>> beam.projection_matrices().shape
        (2, 3, 4)
    """

    source_to_isocenter: float = 1500.0
    source_to_detector: float = 1800.0
    detector_shape: tuple[int, int] = (512, 512)
    pixel_spacing: tuple[float, float] = (0.84, 0.84)
    views: tuple[str, ...] = ("pa", "left_lateral")
    isocenter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    detector_offset: tuple[float, float] = (0.0, 0.0)
    detector_rotation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("source_to_isocenter", "source_to_detector"):
            object.__setattr__(self, name, _parse_numbers(name, [getattr(self, name)], 1, positive=True)[0])
        rows_cols = _parse_numbers("detector_shape", self.detector_shape, 2, positive=True)
        if any(value != int(value) for value in rows_cols):
            raise ValueError(f"detector_shape must be two whole numbers (rows, columns), got {self.detector_shape}")
        object.__setattr__(self, "detector_shape", (int(rows_cols[0]), int(rows_cols[1])))
        object.__setattr__(self, "pixel_spacing", _parse_numbers("pixel_spacing", self.pixel_spacing, 2, positive=True))
        object.__setattr__(self, "isocenter", _parse_numbers("isocenter", self.isocenter, 3))
        object.__setattr__(self, "detector_offset", _parse_numbers("detector_offset", self.detector_offset, 2))
        turn = _parse_numbers("detector_rotation", [self.detector_rotation], 1)[0]
        object.__setattr__(self, "detector_rotation", turn)
        object.__setattr__(self, "views", parse_views(self.views))
        if self.source_to_detector <= self.source_to_isocenter:
            raise ValueError(
                "source_to_detector must exceed source_to_isocenter, "
                f"got {self.source_to_detector:g} mm and {self.source_to_isocenter:g} mm"
            )

    @classmethod
    def preset(cls, name: str = "chest_stand") -> ConeBeam:
        """One of the named geometries (:data:`PRESETS`).

        Args:
            name: ``chest_stand``, ``bedside_ap``, ``x2ct``, ``xmed`` or ``c_arm``.

        Returns:
            The geometry.

        Raises:
            ValueError: if there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"geometry preset must be one of {sorted(PRESETS)}, got {name!r}")
        return PRESETS[name]

    def at(self, isocenter: tuple[float, float, float]) -> ConeBeam:
        """The same geometry about another point of the world.

        Args:
            isocenter: RAS [mm].

        Returns:
            The geometry, moved.
        """
        return replace(self, isocenter=isocenter)

    @property
    def magnification(self) -> float:
        """Size on the detector over size in the isocenter plane, ``source_to_detector / source_to_isocenter``."""
        return self.source_to_detector / self.source_to_isocenter

    def poses(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where source and detector of every view stand in the world.

        Returns:
            float64 arrays: sources (view, 3) and centres of the detectors (view, 3), RAS [mm]; rotations (view, 3, 3)
            whose rows are the unit vectors along increasing columns, along increasing rows, from source to detector.
        """
        sources, centers, rotations = [], [], []
        cos, sin = cos_sin_degrees(self.detector_rotation)
        for view in self.views:
            along, column, row = view_axes(view)
            column, row = cos * column + sin * row, cos * row - sin * column
            sources.append(np.array(self.isocenter) - along * self.source_to_isocenter)
            foot = np.array(self.isocenter) + along * (self.source_to_detector - self.source_to_isocenter)
            centers.append(foot + row * self.detector_offset[0] + column * self.detector_offset[1])
            rotations.append(np.stack([column, row, along]))
        return np.stack(sources), np.stack(centers), np.stack(rotations)

    def projection_matrices(self) -> np.ndarray:
        """World to pixel matrices: ``(column w, row w, w) = P (x, y, z, 1)``, w the depth from the source [mm].

        Returns:
            float64 array (view, 3, 4); x, y, z in RAS mm, pixel centres at integer columns and rows.
        """
        (rows, cols), (row_pitch, col_pitch) = self.detector_shape, self.pixel_spacing
        intrinsic = np.array(
            [
                [self.source_to_detector / col_pitch, 0.0, (cols - 1) / 2 - self.detector_offset[1] / col_pitch],
                [0.0, self.source_to_detector / row_pitch, (rows - 1) / 2 - self.detector_offset[0] / row_pitch],
                [0.0, 0.0, 1.0],
            ]
        )
        sources, _, rotations = self.poses()
        return intrinsic @ np.concatenate([rotations, -rotations @ sources[..., None]], axis=-1)

    def detector_affine(self, view: int) -> np.ndarray:
        """Where a radiograph's pixels stand in the world, for its NIfTI header.

        Args:
            view: index into :attr:`views`.

        Returns:
            float64 array (4, 4) that maps (column, row, 0, 1) to RAS mm; the third axis is the right-handed normal.
        """
        _, centers, rotations = self.poses()
        column, row, _ = rotations[view]
        rows, cols = self.detector_shape
        affine = np.eye(4)
        affine[:3, 0] = column * self.pixel_spacing[1]
        affine[:3, 1] = row * self.pixel_spacing[0]
        affine[:3, 2] = np.cross(column, row)
        affine[:3, 3] = centers[view] - affine[:3, 0] * (cols - 1) / 2 - affine[:3, 1] * (rows - 1) / 2
        return affine

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, with the sidecar's format tag."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"format": _SIDECAR_FORMAT, **plain}

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, origin: str = "geometry") -> ConeBeam:
        """Build from the values of :meth:`to_dict`.

        Args:
            values: mapping of field names; ``format`` is optional, everything else must be a field.
            origin: what to name in an error, for example the file's path.

        Returns:
            The geometry.

        Raises:
            ValueError: if a key is missing, unknown or impossible; the message names the origin and the key.
        """
        if not isinstance(values, dict):
            raise ValueError(f"{origin} must hold a JSON object of geometry fields, got {type(values).__name__}")
        names = [field.name for field in fields(cls)]
        given = {key: value for key, value in values.items() if key != "format"}
        if values.get("format", _SIDECAR_FORMAT) != _SIDECAR_FORMAT:
            raise ValueError(f"{origin}: format must be {_SIDECAR_FORMAT!r}, got {values['format']!r}")
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"{origin}: unknown keys {unknown}; the keys are {names}")
        missing = [key for key in ("source_to_isocenter", "source_to_detector") if key not in given]
        if missing:
            raise ValueError(f"{origin}: keys {missing} must be given")
        try:
            plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
            return cls(**plain)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{origin}: {error}") from error


PRESETS: dict[str, ConeBeam] = {
    # A wall stand at 1.8 m; 430 mm detector = the 358.4 mm cube magnified 1.2 times.
    "chest_stand": ConeBeam(),
    # A mobile unit at the bedside: 1 m, the cassette under the patient.
    "bedside_ap": ConeBeam(800.0, 1000.0, (512, 512), (0.84, 0.84), ("ap", "left_lateral")),
    # X2CT-GAN (Ying et al. 2019, arXiv 1905.06902), CTs of 320 mm.
    "x2ct": ConeBeam(541.0, 949.0, (320, 320), (1.5625, 1.5625)),
    # The sparse-view papers of xmed-lab (DIF-Net, C2RV, DIF-Gaussian).
    "xmed": ConeBeam(800.0, 1200.0, (256, 256), (2.4, 2.4)),
    # A mobile C-arm with a 300 mm flat panel.
    "c_arm": ConeBeam(700.0, 1020.0, (512, 512), (0.586, 0.586)),
}
"""Geometries by name."""


def volume_affine(
    shape: tuple[int, int, int] = VOLUME_SHAPE,
    spacing: float = VOXEL_SIZE,
    isocenter: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Affine of an RAS volume whose centre lies at the isocenter.

    Args:
        shape: voxels (x, y, z).
        spacing: isotropic voxel size [mm].
        isocenter: the volume's centre in the world (RAS) [mm].

    Returns:
        float64 array (4, 4), voxel index to RAS mm.
    """
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array(isocenter) - spacing * (np.array(shape) - 1) / 2
    return affine


def parse_beam(beam: ConeBeam | dict | str) -> ConeBeam:
    """A geometry from what a config may hold: a preset's name, the mapping of its fields, or the object itself.

    Args:
        beam: preset name, mapping or :class:`ConeBeam`.

    Returns:
        The geometry.

    Raises:
        ValueError: if the name or a field is unknown or impossible.
    """
    if isinstance(beam, ConeBeam):
        return beam
    return ConeBeam.preset(beam) if isinstance(beam, str) else ConeBeam.from_dict(dict(beam))
