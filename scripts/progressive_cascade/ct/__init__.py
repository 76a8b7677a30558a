# SPDX-License-Identifier: Apache-2.0
"""CTs as they come: series and files, the body, its place on the cube, splits, augmentation, tissues.

Each name is looked up in its module when it is first used: training reads the datalist on machines without scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from progressive_cascade.doors import door

if TYPE_CHECKING:
    from progressive_cascade.ct.augment import RandAnatomyd
    from progressive_cascade.ct.datalist import SECTIONS, load_datalist
    from progressive_cascade.ct.files import read_ct
    from progressive_cascade.ct.placement import PreparedCase, place_ct, prepare_case
    from progressive_cascade.ct.prepare import prepare_dataset
    from progressive_cascade.ct.series import find_dicom_series
    from progressive_cascade.ct.split import Split
    from progressive_cascade.ct.tissues import TISSUES, tissue_classes

__all__ = [
    "SECTIONS",
    "TISSUES",
    "PreparedCase",
    "RandAnatomyd",
    "Split",
    "find_dicom_series",
    "load_datalist",
    "place_ct",
    "prepare_case",
    "prepare_dataset",
    "read_ct",
    "tissue_classes",
]

__getattr__ = door(
    __name__,
    {
        "augment": ("RandAnatomyd",),
        "datalist": ("SECTIONS", "load_datalist"),
        "files": ("read_ct",),
        "placement": ("PreparedCase", "place_ct", "prepare_case"),
        "prepare": ("prepare_dataset",),
        "series": ("find_dicom_series",),
        "split": ("Split",),
        "tissues": ("TISSUES", "tissue_classes"),
    },
)
