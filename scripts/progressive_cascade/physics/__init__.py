# SPDX-License-Identifier: Apache-2.0
"""X-ray physics between the patient and the picture: spectra, detection, exposures, display."""

from __future__ import annotations

from progressive_cascade.physics.detection import (
    detector_signal,
    log_counts,
    noisy_counts,
    polyenergetic,
    scattered,
    water_equivalent,
)
from progressive_cascade.physics.display import display_image, display_window
from progressive_cascade.physics.exposure import Exposure, detect
from progressive_cascade.physics.spectrum import (
    Spectrum,
    half_value_layer,
    monoenergetic,
    parse_spectrum,
    tube_spectrum,
)
from progressive_cascade.physics.variety import Acquired, AcquisitionRange, acquire, harden

__all__ = [
    "Acquired",
    "AcquisitionRange",
    "Exposure",
    "Spectrum",
    "acquire",
    "detect",
    "detector_signal",
    "display_image",
    "display_window",
    "half_value_layer",
    "harden",
    "log_counts",
    "monoenergetic",
    "noisy_counts",
    "parse_spectrum",
    "polyenergetic",
    "scattered",
    "tube_spectrum",
    "water_equivalent",
]
