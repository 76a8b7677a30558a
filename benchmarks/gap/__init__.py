# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/phantom_gap.py: the patients, and what their errors consist of."""
