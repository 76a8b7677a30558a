# SPDX-License-Identifier: Apache-2.0
"""How good a reconstruction is: named protocols, baselines, scores with intervals."""
