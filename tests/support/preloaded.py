# SPDX-License-Identifier: Apache-2.0
"""What a training imports underway, imported once for all the processes that are forked: three seconds of each."""

import gc
from importlib import import_module

gc.disable()
for name in (
    "monai.bundle.scripts",
    "torch._dynamo",
    "progressive_cascade.components",
    "progressive_cascade.projector.numba_backend",
    "progressive_cascade.training.settings",
    "progressive_cascade.training.trainer",
):
    import_module(name)
# None of it is ever garbage, and no child has to look through it.
gc.freeze()
gc.enable()
