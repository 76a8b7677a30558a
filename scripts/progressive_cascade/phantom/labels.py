# SPDX-License-Identifier: Apache-2.0
"""Names and values of the anatomy labels."""

from __future__ import annotations

_NAMES = (
    "skin",
    "fat",
    "muscle",
    "breast",
    "lung_right",
    "lung_left",
    "lung_vessel",
    "airway",
    "mediastinum",
    "heart",
    "aorta",
    "great_vessel",
    "esophagus",
    "abdomen",
    "liver",
    "spleen",
    "stomach",
    "stomach_gas",
    "kidney",
    "vertebra",
    "disc",
    "spinal_canal",
    "rib",
    "costal_cartilage",
    "sternum",
    "clavicle",
    "scapula",
    "humerus",
    "lesion",
    "effusion",
    "device",
    "consolidation",
    "pneumothorax",
    "bowel_gas",
)

LABELS: dict[str, int] = {name: value for value, name in enumerate(_NAMES, start=1)}
"""Anatomy label of each tissue; 0 is air around the patient."""
