# SPDX-License-Identifier: Apache-2.0
"""What training workflows are made of: cases, batches, handlers, checkpoints; the small networks' training."""
