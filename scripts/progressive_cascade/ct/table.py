# SPDX-License-Identifier: Apache-2.0
"""A scan without the table it was made on, on its own grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from progressive_cascade.attenuation import AIR_HU
from progressive_cascade.ct.body import find_field_of_view, segment_body
from progressive_cascade.ct.placement import resample, to_ras
from progressive_cascade.ct.scan import Scan, undefined_to_air


def without_table(scan: Scan) -> Scan:
    """Sets what was measured outside of the body to air, as :func:`.placement.place_ct` does.

    Args:
        scan: of any orientation; NaN where nothing was measured, which stays.

    Returns:
        The scan with its axes closest to right, anterior, superior.

    Raises:
        UserError: where it shows no body.
    """
    hu, affine = to_ras(scan.hu, scan.affine)
    filled, _ = to_ras(undefined_to_air(scan).hu, scan.affine)
    body = segment_body(filled.astype(np.float32), affine, find_field_of_view(filled))
    x, y, z = hu.shape
    inside = resample(body.with_skin().astype(np.float32), body.affine, affine, shape=(x, y, z), surround=0.0) >= 0.5
    return replace(scan, hu=np.where(inside | np.isnan(hu), hu, np.asarray(AIR_HU, hu.dtype)), affine=affine)
