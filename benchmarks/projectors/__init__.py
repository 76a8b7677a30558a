# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/projector.py measures with: an analytic phantom, the projectors, the measurement of one row."""
