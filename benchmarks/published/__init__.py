# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/results_tables.py: evaluations as the Markdown of README and model card."""
