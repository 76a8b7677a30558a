# SPDX-License-Identifier: Apache-2.0
"""From two radiographs to a CT: sliding windows, the reconstruction, its uncertainty, the inference workflow."""
