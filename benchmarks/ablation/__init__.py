# SPDX-License-Identifier: Apache-2.0
"""Parts of benchmarks/cascade.py: the patients every row sees, and the networks that are no cascade."""
