# SPDX-License-Identifier: Apache-2.0
"""Pictures of radiographs, volumes and geometries."""
