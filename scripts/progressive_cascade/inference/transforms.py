# SPDX-License-Identifier: Apache-2.0
"""MONAI dictionary transforms around a reconstruction: radiographs to the network's input, its output to a CT."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Transform

from progressive_cascade.attenuation import unit_to_hu
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOLUME_SHAPE, VOXEL_SIZE, ConeBeam, load_geometry, volume_affine
from progressive_cascade.inference.opposite import mirror_matrices, mirror_pictures, mirrored_views
from progressive_cascade.io import read_nifti
from progressive_cascade.physics.tones import typical_line_integrals
from progressive_cascade.radiograph.check import check_views

# Line integrals of a patient stay well below this; a display intensity of 8 to 16 bits does not.
_LARGEST_LINE_INTEGRAL = 30.0


# A radiograph without a patient holds noise about 0; 10 mm of water cast 0.2.
_EMPTY_LINE_INTEGRAL = 0.2


class LoadRadiographPaird(MapTransform):
    """Reads a PA and a lateral radiograph as the network's input.

    NIfTI arrays run (column, row) or (column, row, 1); `image[view, row, column]` is `array[column, row]`.

    Args:
        keys: PA first, then the lateral: paths, or arrays (column, row) in memory.
        image_key: where the float32 tensor (2, rows, cols) of line integrals goes.
        detector_shape: rows and columns the radiographs must have.
        check: refuse a pair whose views are identical or look swapped.

    Raises:
        FileNotFoundError: where a radiograph does not exist.
        UserError: where a file is damaged, has another shape, NaN, infinity, one constant value or no patient, or the
            two radiographs are the same image or look swapped.
    """

    def __init__(
        self,
        keys: KeysCollection = ("pa", "lateral"),
        *,
        image_key: str = "image",
        detector_shape: tuple[int, int] = (512, 512),
        check: bool = True,
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.detector_shape = (int(detector_shape[0]), int(detector_shape[1]))
        self.check = check

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the pair to a copy of the item.

        Args:
            data: item with the radiographs.

        Returns:
            The item with `image_key`.
        """
        views = [self._read(data[key], str(key)) for key in self.key_iterator(dict(data))]
        image = torch.from_numpy(np.stack(views))
        if self.check:
            check_views(image)
        return {**data, self.image_key: image}

    def _read(self, source: Any, name: str) -> np.ndarray:
        in_memory = isinstance(source, (np.ndarray, torch.Tensor))
        array = np.asarray(source) if in_memory else read_nifti(source, num_dimensions=2)[0]
        origin = name if in_memory else f"{name} {source}"
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.T.shape != self.detector_shape:
            rows, cols = self.detector_shape
            raise UserError(f"{origin} must have {rows} rows and {cols} columns, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise UserError(f"{origin} must hold finite numbers, got NaN or infinity")
        if array.min() == array.max():
            raise UserError(f"{origin} must show a patient, got the constant value {float(array.min()):g}")
        if array.min() > -1.0 and float(np.percentile(array, 99)) < _EMPTY_LINE_INTEGRAL:
            raise UserError(f"{origin} must show a patient, got nothing but values below {_EMPTY_LINE_INTEGRAL:g}")
        return np.ascontiguousarray(array.T, dtype=np.float32)


def to_line_integrals(image: np.ndarray, *, display: bool = False) -> tuple[np.ndarray, bool]:
    """Bring radiographs of unknown intensity to the scale of line integrals.

    Args:
        image: (view, rows, cols), a frontal and laterals: line integrals or display values with bone bright.
        display: take them for display values, whatever their range.

    Returns:
        The image as float32, unchanged where it can be line integrals (0 to 30), and whether it is calibrated.
        Otherwise what typical patients cast, by the order of the grey levels
        (:func:`progressive_cascade.physics.tones.typical_line_integrals`).
    """
    image = np.asarray(image, dtype=np.float32)
    if not display and image.min() > -1.0 and image.max() < _LARGEST_LINE_INTEGRAL:
        return image, True
    kinds = ["frontal", *["lateral"] * (len(image) - 1)]
    return typical_line_integrals(torch.from_numpy(image), kinds).numpy(), False


class ToLineIntegralsd(MapTransform):
    """Radiographs of unknown intensity to the scale of line integrals, see :func:`to_line_integrals`.

    Args:
        keys: images (view, rows, cols).
        calibrated_key: where a float32 tensor of 1 (true line integrals) or 0 goes.
    """

    def __init__(self, keys: KeysCollection = "image", *, calibrated_key: str = "calibrated") -> None:
        super().__init__(keys)
        self.calibrated_key = calibrated_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Maps each key of a copy of the item.

        Args:
            data: item with the images.

        Returns:
            The item with `calibrated_key`, 1 where every image was calibrated.
        """
        item = dict(data)
        flags = []
        for key in self.key_iterator(item):
            image, calibrated = to_line_integrals(np.asarray(item[key]))
            item[key] = torch.from_numpy(image)
            flags.append(calibrated)
        item[self.calibrated_key] = torch.tensor(float(all(flags)))
        return item


class LoadGeometryd(Transform):
    """Reads the geometry sidecar of a pair of radiographs.

    Replaces the path under `geometry_key` (which may be None or absent) by what the network needs of it: `matrices`
    (float32 tensor (view, 3, 4)) and `isocenter` (float64 tensor (3,) [mm]). A right lateral becomes its mirror image,
    as the network reads it, and its matrix that of the mirror image.

    Args:
        default: geometry of pairs that have no sidecar; None is the chest stand.
        geometry_key: where the path stands.
        image_key: where the pair stands (view, rows, cols).

    Raises:
        FileNotFoundError: where the sidecar does not exist.
        ValueError: where it is no geometry.
    """

    def __init__(
        self, default: ConeBeam | None = None, *, geometry_key: str = "geometry", image_key: str = "image"
    ) -> None:
        self.default = default or ConeBeam()
        self.geometry_key = geometry_key
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces the path in a copy of the item.

        Args:
            data: item with or without `geometry_key`.

        Returns:
            The item with `matrices` and `isocenter`.
        """
        item = dict(data)
        path = item.pop(self.geometry_key, None)
        beam = load_geometry(path) if path else self.default
        # The network's volume is centred on the origin; where the patient stood only moves the result's affine.
        matrices = torch.from_numpy(beam.at((0.0, 0.0, 0.0)).projection_matrices())
        item["matrices"] = mirror_matrices(matrices[None], beam)[0].float()
        if self.image_key in item and mirrored_views(beam):
            item[self.image_key] = torch.from_numpy(mirror_pictures(np.asarray(item[self.image_key]), beam))
        item["isocenter"] = torch.tensor(beam.isocenter, dtype=torch.float64)
        return item


class UnitToHUd(MapTransform):
    """The network's output to CT numbers: clipped to [0, 1], mapped to [-1024, 1024] HU, rounded to whole HU."""

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Maps each key of a copy of the item.

        Args:
            data: item with tensors in [0, 1], any shape.

        Returns:
            The item with float32 tensors [HU].
        """
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = unit_to_hu(item[key].float().clamp(0, 1)).round()
        return item


class SetAffined(MapTransform):
    """Places a reconstructed volume in the patient's world, whatever metadata came along from the radiographs.

    The affine is that of a 358.4 mm cube around the item's `isocenter`; the file name `SaveImaged` writes to follows
    the item's `case`.

    Args:
        keys: volumes (1, x, y, z).
        isocenter: used for items without an `isocenter` [mm].
        allow_missing_keys: passes over keys an item lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        isocenter: tuple[float, float, float] = (0.0, 0.0, 0.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.isocenter = isocenter

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sets the affine of each key in a copy of the item.

        Args:
            data: item with the volumes.

        Returns:
            The item with a `MetaTensor` for each key.
        """
        item = dict(data)
        x, y, z = (float(value) for value in item.get("isocenter", self.isocenter))
        for key in self.key_iterator(item):
            volume = torch.as_tensor(item[key])
            volume = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
            shape = (volume.shape[1], volume.shape[2], volume.shape[3])
            affine = volume_affine(shape, VOLUME_SHAPE[0] * VOXEL_SIZE / shape[0], (x, y, z))
            meta = {"filename_or_obj": f"{item['case']}.nii.gz"} if "case" in item else {}
            item[key] = MetaTensor(volume, affine=torch.from_numpy(affine), meta=meta)
        return item
