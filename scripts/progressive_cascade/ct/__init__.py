# SPDX-License-Identifier: Apache-2.0
"""CTs as they come: series and files, the body, its place on the cube, splits, augmentation, tissues."""
