# SPDX-License-Identifier: Apache-2.0
"""Reconstructions for other machines: HTTP service with a lasting queue, watch folder, DICOM node, DICOMweb poll.

Each name is looked up in its module when it is first used: a watch folder needs no web server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from progressive_cascade.doors import door

if TYPE_CHECKING:
    from progressive_cascade.service.app import build_app
    from progressive_cascade.service.pool import Pool
    from progressive_cascade.service.process import WorkerProcess
    from progressive_cascade.service.settings import Settings
    from progressive_cascade.service.store import Store

__all__ = ["Pool", "Settings", "Store", "WorkerProcess", "build_app"]

__getattr__ = door(
    __name__,
    {
        "app": ("build_app",),
        "pool": ("Pool",),
        "process": ("WorkerProcess",),
        "settings": ("Settings",),
        "store": ("Store",),
    },
)
