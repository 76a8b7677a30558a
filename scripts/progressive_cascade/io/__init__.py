# SPDX-License-Identifier: Apache-2.0
"""Files that are either complete or absent: atomic writing, and validated reading, of NIfTI, JSON and weights.

Each name is looked up in its module when it is first used: JSON needs neither nibabel nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from progressive_cascade.doors import door

if TYPE_CHECKING:
    from progressive_cascade.io.commits import atomic_paths, finish_writing, staged_folder, take_lock
    from progressive_cascade.io.files import atomic_path, sync
    from progressive_cascade.io.nifti import (
        NIFTI_SUFFIXES,
        check_array,
        nifti_has_place,
        nifti_stem,
        read_nifti,
        save_nifti,
        smallest_array,
    )
    from progressive_cascade.io.records import finite, read_json, save_json
    from progressive_cascade.io.state import read_state

__all__ = [
    "NIFTI_SUFFIXES",
    "atomic_path",
    "atomic_paths",
    "check_array",
    "finish_writing",
    "finite",
    "nifti_has_place",
    "nifti_stem",
    "read_json",
    "read_nifti",
    "read_state",
    "save_json",
    "save_nifti",
    "smallest_array",
    "staged_folder",
    "sync",
    "take_lock",
]

__getattr__ = door(
    __name__,
    {
        "commits": (
            "atomic_paths",
            "finish_writing",
            "staged_folder",
            "take_lock",
        ),
        "files": (
            "atomic_path",
            "sync",
        ),
        "nifti": (
            "NIFTI_SUFFIXES",
            "check_array",
            "nifti_has_place",
            "nifti_stem",
            "read_nifti",
            "save_nifti",
            "smallest_array",
        ),
        "records": (
            "finite",
            "read_json",
            "save_json",
        ),
        "state": ("read_state",),
    },
)
