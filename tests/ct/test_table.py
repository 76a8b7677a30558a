# SPDX-License-Identifier: Apache-2.0
"""Laws of a scan without its table: the body stays where it was, in any orientation, and nothing else is made up."""

from __future__ import annotations

import numpy as np

from progressive_cascade.ct.scan import Scan
from progressive_cascade.ct.table import without_table
from progressive_cascade.phantom import generate_phantom


def test_the_table_goes_and_the_body_stays() -> None:
    """Of a scan whose axes run to left, back and head, with voxels that were not measured, which stay so."""
    phantom = generate_phantom(2_000_003, shape=(64, 64, 64), spacing=5.6)
    scanned = phantom.hu.astype(np.float32)
    scanned[8:56, 3:5] = 300
    scanned[:2] = np.nan
    affine = phantom.affine @ np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (phantom.affine @ np.array([63.0, 63.0, 0.0, 1.0]))[:3]
    found = without_table(Scan(scanned[::-1, ::-1], affine, ("as it was",)))
    assert np.allclose(found.affine, phantom.affine) and found.notes == ("as it was",)
    assert np.isnan(found.hu[:2]).all() and (found.hu[2:, 3:5] == -1000).all()
    body = phantom.hu[2:] > -200
    assert np.mean(found.hu[2:][body] == phantom.hu[2:][body]) > 0.99
