# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/robustness.py: radiographs that are not what they are taken for, and pairs that are none."""
