# SPDX-License-Identifier: Apache-2.0
"""metadata.json: what can be read off the code is generated from it, the rest stands in the bundle's own file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata as distributions
from typing import Any

from progressive_cascade import __version__
from progressive_cascade.attenuation import HU_MAX, HU_MIN
from progressive_cascade.errors import UserError
from progressive_cascade.networks import ProgressiveCascade

REQUIRED_PACKAGES = ("fire", "nibabel", "pytorch-ignite", "scipy")
"""What the configs need beside torch, MONAI and numpy; scipy for evaluate.json alone."""
_WRITTEN_FIRST = ("schema", "version", "changelog")
_WRITTEN_BY_HAND = ("schema", "changelog", "name", "authors", "copyright", "intended_use")
# Line integrals of a thorax stay below 10; metal and jewellery add some.
_LARGEST_LINE_INTEGRAL = 15


def build_metadata(written: Mapping[str, Any], networks: Mapping[int, ProgressiveCascade]) -> dict[str, Any]:
    """The metadata of a bundle.

    Args:
        written: content of the bundle's ``metadata.json``; what is not generated is kept.
        networks: the cascades of stages 1 up to the bundle's own, by stage.

    Returns:
        The metadata, keys in the order of the file.

    Raises:
        UserError: if a field that only a person can write is missing, or the changelog does not know the version.
    """
    missing = [name for name in _WRITTEN_BY_HAND if not written.get(name)]
    if missing:
        raise UserError(f"metadata.json must have {', '.join(missing)}")
    if written.get("version", __version__) != __version__:
        raise UserError(f"metadata.json must have the code's version {__version__}, got {written['version']}")
    if __version__ not in written["changelog"]:
        raise UserError(f"metadata.json must say in its changelog what is new in version {__version__}")
    last = max(networks)
    grids = [f"{networks[stage].grid}³" for stage in sorted(networks)]
    generated = {
        "version": __version__,
        **package_versions(),
        "task": f"Reconstruction of a {grids[-1]} CT in Hounsfield units from a posteroanterior and a lateral "
        "radiograph",
        "description": f"A progressive cascade ({', '.join(grids)}) of residual U-Nets that read the radiographs by "
        "geometric lifting, closed by data consistency. Research use only.",
        "network_data_format": data_format(networks[last]),
        **{f"stage{stage}_data_format": data_format(networks[stage]) for stage in sorted(networks) if stage < last},
    }
    kept = {name: value for name, value in written.items() if not name.endswith("_data_format")}
    first = {name: {**kept, **generated}[name] for name in _WRITTEN_FIRST}
    return {**first, **package_versions(), **kept, **generated}


def package_versions() -> dict[str, Any]:
    """Versions of this environment, without local labels such as ``+cpu``."""
    installed = {
        name: distributions.version(name).split("+")[0] for name in ("monai", "torch", "numpy", *REQUIRED_PACKAGES)
    }
    return {
        "monai_version": installed["monai"],
        "pytorch_version": installed["torch"],
        "numpy_version": installed["numpy"],
        "required_packages_version": {name: installed[name] for name in REQUIRED_PACKAGES},
    }


def data_format(network: ProgressiveCascade) -> dict[str, Any]:
    """Input and output of a cascade in the words of the metadata schema.

    Args:
        network: of any stage.

    Returns:
        ``inputs``, ``outputs`` and ``post_processed_outputs``.
    """
    num_views = int(network.projection_matrices.shape[0])
    views = ("posteroanterior", "left lateral")[:num_views]
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "DX",
        "num_channels": num_views,
        "spatial_shape": [network.image_size, network.image_size],
        "dtype": "float32",
        "value_range": [0, _LARGEST_LINE_INTEGRAL],
        "is_patch_data": False,
        "channel_def": {str(index): f"{view} line integrals" for index, view in enumerate(views)},
    }
    volume = {
        "type": "image",
        "format": "hounsfield",
        "num_channels": 1,
        "spatial_shape": [network.grid] * 3,
        "dtype": "float32",
        "is_patch_data": False,
    }
    meaning = f"CT, 0 is {HU_MIN:g} HU and 1 is {HU_MAX:g} HU"
    unit = {**volume, "value_range": [0, 1], "channel_def": {"0": meaning}}
    hu = {**volume, "value_range": [int(HU_MIN), int(HU_MAX)], "channel_def": {"0": "CT in Hounsfield units"}}
    return {"inputs": {"image": image}, "outputs": {"pred": unit}, "post_processed_outputs": {"pred": hu}}
