# SPDX-License-Identifier: Apache-2.0
"""What other programs take: the self-contained bundle of a model zoo, TorchScript, and ONNX."""

from __future__ import annotations

from progressive_cascade.export.bundle import BUNDLE_NAME, Export, export_bundle
from progressive_cascade.export.programs import onnx_program, save_onnx, save_torchscript

__all__ = ["BUNDLE_NAME", "Export", "export_bundle", "onnx_program", "save_onnx", "save_torchscript"]
