# SPDX-License-Identifier: Apache-2.0
"""A reconstruction from two radiographs, cold and warm, by precision and window."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from gpu_day.machine import busy, peak_gib, reset_peak, synchronize
from progressive_cascade import ConeBeam, hu_to_mu, line_integrals
from progressive_cascade.evaluation.metrics import evaluate_volume
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import load_cascade, reconstruct
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.phantom import generate_phantom

_MINIATURE = ConeBeam(detector_shape=(128, 128), pixel_spacing=(3.36, 3.36))


def measure_reconstruction(
    device: str, *, window: int | None, amp: bool, repeats: int, miniature: bool = False
) -> dict[str, Any]:
    """Reconstruct a phantom that nobody has trained on.

    Args:
        device: ``cuda`` or ``cpu``.
        window: of the last stage [voxel]; None: the whole volume.
        amp: bfloat16 autocast, else float32.
        repeats: warm reconstructions.
        miniature: a network of a few channels and 64³ voxels with random weights.

    Returns:
        Seconds of the first reconstruction of this process and median of the next ones, after the weights were read,
        peak memory and the error against the phantom.
    """
    beam = _MINIATURE if miniature else ConeBeam()
    size = 64 if miniature else 256
    phantom = generate_phantom(2_000_000, shape=(size, size, size), spacing=358.4 / size)
    mu = hu_to_mu(torch.from_numpy(phantom.hu).float())[None, None].to(device)
    image = line_integrals(mu, beam, affine=phantom.affine)[0].cpu().numpy()
    del mu
    network = _miniature().to(device).eval() if miniature else load_cascade(device=device)
    inferer = CascadeInferer(window, amp=amp)

    def run() -> Any:
        result = reconstruct(image, beam, network=network, inferer=inferer)
        synchronize(device)
        return result

    reset_peak(device)
    start = time.perf_counter()
    result = run()
    cold, warm = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        warm.append(time.perf_counter() - start)
    row = {"window": window, "precision": "bfloat16" if amp else "float32", "cold_s": cold}
    row |= {"warm_s": statistics.median(warm), "peak_gib": peak_gib(device)}
    if not miniature:
        row["native_psnr_3d_db"] = evaluate_volume(result.hu, phantom.hu, protocol="native")["native_psnr_3d_db"]
    return row | {"busy": busy(run, device)}


def _miniature() -> ProgressiveCascade:
    torch.manual_seed(0)
    return ProgressiveCascade(geometry=_MINIATURE, unet_channels=((4, 8, 16),) * 3, consistency_iterations=(2, 2, 2))
