# SPDX-License-Identifier: Apache-2.0
"""A small case with everything a page can show."""

from __future__ import annotations

import numpy as np
import pytest

from progressive_cascade.report import ReportCase
from tests.support.cases import AFFINE, BEAM, RECORD, water_volume


@pytest.fixture(scope="session")
def case() -> ReportCase:
    """A small case with truth, sigma and radiographs."""
    hu, random = water_volume(), np.random.default_rng(1)
    image = random.uniform(0, 6, (2, 128, 128)).astype(np.float32)
    return ReportCase(
        name="<script>alert(1)</script>",
        hu=hu,
        affine=AFFINE,
        beam=BEAM,
        reprojected=image + 0.1,
        radiographs=image,
        record={**RECORD, "warnings": ["<b>turned</b>"], "assumptions": [{"text": "0.2 mm assumed"}], "unheard_of": 7},
        sigma=np.full(hu.shape, 90.0, np.float32),
        truth=(hu - 30).astype(np.int16),
        scores={"native_mae_hu": 41.4},
    )
