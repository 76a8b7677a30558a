# SPDX-License-Identifier: Apache-2.0
"""What the inference workflow needs beside transforms: input in memory as well as in files, and checks before work."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import PathLike
from monai.data.image_writer import NibabelWriter
from monai.data.meta_tensor import MetaTensor

from progressive_cascade.errors import UserError
from progressive_cascade.geometry import ConeBeam, load_geometry
from progressive_cascade.inference.pairs import xray_pair_items
from progressive_cascade.inference.reconstruct import check_beam
from progressive_cascade.inference.transforms import LoadRadiographPaird
from progressive_cascade.io import atomic_path
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.networks.checkpoints import load_checkpoint
from progressive_cascade.radiograph.check import check_views

_log = logging.getLogger(__name__)


class RadiographPaird(LoadRadiographPaird):
    """A pair of radiographs as the network's input: read from files, or taken as it stands under ``image_key``.

    Programs that load images themselves (MONAI Deploy) hand over one two-channel image; a dataset hands over two paths.
    The arguments are those of :class:`LoadRadiographPaird`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the pair to a copy of the item, or checks the one that is there.

        Args:
            data: item with the radiographs, or with ``image_key`` (view, rows, cols): PA, then the lateral.

        Returns:
            The item with ``image_key``, a float32 tensor (view, rows, cols) without metadata.

        Raises:
            UserError: for an image of another shape, with NaN or infinity, or whose views are the same or look swapped.
        """
        if self.image_key not in data:
            return super().__call__(data)
        image = torch.as_tensor(data[self.image_key])
        image = (image.as_tensor() if isinstance(image, MetaTensor) else image).float()
        if tuple(image.shape) != (len(self.keys), *self.detector_shape):
            raise UserError(
                f"{self.image_key} must have shape {(len(self.keys), *self.detector_shape)} (views, rows, columns), "
                f"got {tuple(image.shape)}"
            )
        if not bool(torch.isfinite(image).all()):
            raise UserError(f"{self.image_key} must hold finite numbers, got NaN or infinity")
        if self.check:
            check_views(image)
        return {**data, self.image_key: image}


class WholeFileWriter(NibabelWriter):
    """MONAI's writer of NIfTI files, for ``SaveImage``, that never leaves half a file under the file's name."""

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Writes the image.

        Args:
            filename: the file.
            verbose: log the progress.
            obj_kwargs: for ``NibabelWriter.write``.

        Raises:
            UserError: where its folder cannot be written.
        """
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)


def pairs_in(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Pairs of radiographs in a folder, none where there is no such folder.

    A workflow can be built and looked at before its data is there; :func:`check_inputs` refuses to run it.

    Args:
        dataset_dir: see :func:`progressive_cascade.inference.pairs.xray_pair_items`.

    Returns:
        The items.

    Raises:
        UserError: where the folder exists without a pair.
    """
    return xray_pair_items(dataset_dir) if Path(dataset_dir).is_dir() else []


def check_inputs(
    network: ProgressiveCascade,
    *,
    checkpoint: str | Path,
    items: Sequence[Mapping[str, Any]],
    beam: ConeBeam,
    dataset_dir: str | Path,
) -> None:
    """Refuses, before any work, what the reconstruction of a folder would stumble over.

    Args:
        network: the cascade; it is filled from the checkpoint, whose geometry the radiographs must have.
        checkpoint: bare state dict.
        items: the pairs; ``geometry`` is the path of a sidecar, or None for ``beam``.
        beam: geometry of pairs without a sidecar.
        dataset_dir: where the items came from, for the message.

    Raises:
        UserError: if the checkpoint is missing or of another architecture, there is no pair of radiographs, or a pair's
            geometry is not the checkpoint's.
    """
    load_checkpoint(network, checkpoint)
    if not items:
        raise UserError(f"dataset_dir must be a folder with pa.nii.gz and lateral.nii.gz, got {dataset_dir}")
    for item in items:
        path = item.get("geometry")
        check_geometry(network, load_geometry(path) if path else beam, str(path or "the default geometry"))


def check_geometry(network: ProgressiveCascade, beam: ConeBeam, origin: str = "geometry") -> None:
    """:func:`check_beam` for workflows: what it warns of is logged.

    Args:
        network: the cascade.
        beam: the radiographs' geometry.
        origin: what to name.
    """
    for line in check_beam(network, beam, origin):
        _log.warning("%s: %s", origin, line)
