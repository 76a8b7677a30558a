# SPDX-License-Identifier: Apache-2.0
"""What other programs take: the self-contained bundle of a model zoo, TorchScript, and ONNX.

Each name is looked up in its module when it is first used: a DICOM series is written without torch and MONAI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from progressive_cascade.doors import door

if TYPE_CHECKING:
    from progressive_cascade.export.bundle import BUNDLE_NAME, Export, export_bundle
    from progressive_cascade.export.programs import onnx_program, save_onnx, save_torchscript

__all__ = [
    "BUNDLE_NAME",
    "Export",
    "export_bundle",
    "onnx_program",
    "save_onnx",
    "save_torchscript",
]

__getattr__ = door(
    __name__,
    {
        "bundle": ("BUNDLE_NAME", "Export", "export_bundle"),
        "programs": ("onnx_program", "save_onnx", "save_torchscript"),
    },
)
