# SPDX-License-Identifier: Apache-2.0
"""The MONAI transform that takes radiographs of a CT inside a pipeline."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Randomizable

from progressive_cascade.geometry import ConeBeam, parse_beam
from progressive_cascade.physics import Exposure, display_image
from progressive_cascade.physics.display import PHOTOMETRICS
from progressive_cascade.physics.simulate import expose, jittered_beam


class SimulateRadiographsd(Randomizable, MapTransform):
    """Takes the radiographs of a CT.

    Adds `image`, a float32 `MetaTensor` (view, rows, cols) of line integrals or display values, and what the network
    needs of its geometry, as `LoadGeometryd` does: `matrices` (float32 tensor (view, 3, 4), about the isocenter) and
    `isocenter` (float64 tensor (3,) [mm]). The image's `meta` holds `geometry` and `exposure` (the mappings of
    `ConeBeam.to_dict` and `Exposure.to_dict`, without what is None) and `detector_affines` (view, 4, 4), (column,
    row, 0) to RAS mm; its `affine` is the first view's, (row, column, 0) to RAS mm.

    In a JSON config: `{"_target_": "progressive_cascade.physics.transforms.SimulateRadiographsd", "keys": "ct",
    "geometry": "c_arm", "exposure": {"spectrum": "120kV", "photons": 1e5}}`.

    Args:
        keys: the one CT, (1, x, y, z) or (x, y, z) in HU.
        image_key: where the radiographs go.
        affine_key: where the CT's affine, voxel index to RAS mm, stands if the CT is no `MetaTensor`.
        geometry: preset name, mapping of the fields, or :class:`ConeBeam`.
        centered: the central rays meet in the middle of the CT's grid; otherwise in the geometry's own isocenter.
        exposure: :class:`Exposure` or the mapping of its fields; default: the ideal one.
        distance_jitter: source_to_isocenter and source_to_detector vary by this share, uniformly.
        shift_jitter: the isocenter varies by this much per axis, uniformly [mm].
        display: a photometric interpretation to store windowed display values in [0, 1]; None: line integrals.

    Raises:
        ValueError: if an argument does not fit; when called, if the CT is not finite, has another shape or no affine.
    """

    def __init__(
        self,
        keys: KeysCollection = "ct",
        *,
        image_key: str = "image",
        affine_key: str = "affine",
        geometry: str | dict | ConeBeam = "chest_stand",
        centered: bool = True,
        exposure: Exposure | dict | None = None,
        distance_jitter: float = 0.0,
        shift_jitter: float = 0.0,
        display: str | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys must name one CT, got {self.keys}")
        if not 0 <= distance_jitter < 0.1:
            raise ValueError(f"distance_jitter must lie in [0, 0.1), got {distance_jitter}")
        if not 0 <= shift_jitter < math.inf:
            raise ValueError(f"shift_jitter must be finite and at least 0 mm, got {shift_jitter}")
        if display is not None and display not in PHOTOMETRICS:
            raise ValueError(f"display must be one of {PHOTOMETRICS} or None, got {display!r}")
        self.image_key = image_key
        self.affine_key = affine_key
        self.beam = parse_beam(geometry)
        self.centered = centered
        self.exposure = exposure if isinstance(exposure, Exposure) else Exposure.from_dict(exposure or {})
        self.distance_jitter = distance_jitter
        self.shift_jitter = shift_jitter
        self.display = display

    def randomize(self, data: ConeBeam) -> tuple[ConeBeam, int]:
        """Draws one examination.

        Args:
            data: the nominal geometry.

        Returns:
            The geometry, varied where that is asked for, and the seed of the noise.
        """
        seed = int(self.R.randint(2**31 - 1))
        if self.distance_jitter == 0 and self.shift_jitter == 0:
            return data, seed
        jitter = {"distance_jitter": self.distance_jitter, "shift_jitter": self.shift_jitter}
        return jittered_beam(data, self.R, **jitter), seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Takes the radiographs of the item's CT.

        Args:
            data: item with the CT.

        Returns:
            A copy of the item with `image_key`, `matrices` and `isocenter`.
        """
        item = dict(data)
        hu, affine = self._read(item)
        beam, seed = self.randomize(self.beam.at(_center(hu, affine)) if self.centered else self.beam)
        generator = torch.Generator(device=hu.device).manual_seed(seed)
        with torch.no_grad():
            image = expose(hu, beam, affine=affine, exposure=self.exposure, generator=generator)[0].float()
        if self.display is not None:
            image = display_image(image, photometric=self.display)
        item[self.image_key] = self._with_meta(image, beam)
        item["matrices"] = torch.from_numpy(beam.at((0.0, 0.0, 0.0)).projection_matrices()).float()
        item["isocenter"] = torch.tensor(beam.isocenter, dtype=torch.float64)
        return item

    def _read(self, item: Mapping[Hashable, Any]) -> tuple[torch.Tensor, np.ndarray]:
        """The CT as (1, 1, x, y, z) and its affine."""
        key = self.keys[0]
        ct = item[key]
        affine = ct.affine if isinstance(ct, MetaTensor) else item.get(self.affine_key)
        if affine is None:
            raise ValueError(f"{key} must be a MetaTensor or come with {self.affine_key!r}, got neither")
        hu = torch.as_tensor(ct.as_tensor() if isinstance(ct, MetaTensor) else ct).float()
        if hu.dim() not in (3, 4) or (hu.dim() == 4 and hu.shape[0] != 1):
            raise ValueError(f"{key} must have shape (1, x, y, z) or (x, y, z), got {tuple(hu.shape)}")
        if not bool(torch.isfinite(hu).all()):
            raise ValueError(f"{key} must hold finite HU, got NaN or infinity")
        return hu.reshape(1, 1, *hu.shape[-3:]), np.asarray(torch.as_tensor(affine).cpu(), dtype=np.float64)

    def _with_meta(self, image: torch.Tensor, beam: ConeBeam) -> MetaTensor:
        affines = np.stack([beam.detector_affine(view) for view in range(len(beam.views))])
        exposure = {key: value for key, value in self.exposure.to_dict().items() if value is not None}
        meta = {"geometry": beam.to_dict(), "exposure": exposure, "detector_affines": torch.from_numpy(affines)}
        return MetaTensor(image, affine=torch.from_numpy(affines[0][:, [1, 0, 2, 3]]), meta=meta)


def _center(hu: torch.Tensor, affine: np.ndarray) -> tuple[float, float, float]:
    """The middle of the grid in the world [mm]."""
    x, y, z = affine[:3, :3] @ ((np.array(hu.shape[2:]) - 1) / 2) + affine[:3, 3]
    return float(x), float(y), float(z)
