# SPDX-License-Identifier: Apache-2.0
"""itk with the formats that the tests read, instead of all it has."""

from __future__ import annotations

from typing import Any

import pytest

_FORMATS = ("ITKIOGDCM", "ITKIONIFTI")


def load_itk() -> Any:
    """itk, which reads DICOM and NIfTI; skips where it is not installed.

    On its first use of a file it loads the libraries of every format, mesh and transform that it knows, those of other
    packages included: half a minute.
    """
    itk = pytest.importorskip("itk")
    base = pytest.importorskip("itk.support.base")
    for name, module in base.itk_base_global_module_data.items():
        if name not in _FORMATS:
            module._factories = ()
    return itk
