# SPDX-License-Identifier: Apache-2.0
"""Time of the losses, forward and backward, and of SSIM against MONAI's dense kernel.

python benchmarks/losses.py --sizes 64 128 --output benchmarks/results/losses.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.losses.ssim_loss import SSIMLoss
from torch import Tensor

from progressive_cascade.losses import GradientLoss, MaskedL1Loss, SSIMLoss3D, VGGPerceptualLoss

Loss = Callable[[Tensor, Tensor], Tensor]


def volumes(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A prediction that wants a gradient, and a truth (1, 1, size, size, size) with structure at several scales."""
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(1, 1, size, size, size)
    for cells in (4, 16, size):
        noise = torch.rand(1, 1, cells, cells, cells, generator=generator)
        target += torch.nn.functional.interpolate(noise, (size,) * 3, mode="trilinear") / 3
    prediction = (target + 0.05 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    return prediction.to(device).requires_grad_(), target.to(device)


def measure(loss: Loss, size: int, *, device: torch.device, repeats: int) -> tuple[float, float]:
    """Best seconds of forward and backward, and the value."""
    prediction, target = volumes(size, device)
    seconds, value = float("inf"), 0.0
    for _ in range(repeats + 1):  # the first one warms up
        prediction.grad = None
        start = time.perf_counter()
        result = loss(prediction, target)
        result.backward()
        value = result.item()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, value


def compare_ssim(size: int, *, device: torch.device, repeats: int) -> dict[str, float]:
    """Our SSIM loss before and after MONAI's on the same volumes: a machine busy for a while disturbs both."""
    reference = SSIMLoss(spatial_dims=3, data_range=1.0, win_size=11, kernel_type="gaussian").to(device)
    ours, value = measure(SSIMLoss3D(), size, device=device, repeats=repeats)
    theirs, expected = measure(reference, size, device=device, repeats=1)
    ours = min(ours, measure(SSIMLoss3D(), size, device=device, repeats=repeats)[0])
    return {
        "size": size,
        "ours_s": ours,
        "monai_s": theirs,
        "ratio": theirs / ours,
        "difference": abs(value - expected),
    }


def main() -> None:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="voxels a side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after one to warm up; MONAI gets one")
    parser.add_argument("--perceptual-weights", default="ct", help='"ct", "imagenet" or a file')
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/losses.json"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    options = {"device": device, "repeats": arguments.repeats}

    print("SSIM, forward and backward [s]\nvoxels   ours     MONAI    ratio   |difference|")
    ssim = [compare_ssim(size, **options) for size in arguments.sizes]
    for row in ssim:
        times = f"{row['size']:4d}³  {row['ours_s']:8.4f} {row['monai_s']:8.3f}"
        print(f"{times} {row['ratio']:7.1f}   {row['difference']:.1e}")

    perceptual = VGGPerceptualLoss(arguments.perceptual_weights, seed=0).to(device)
    losses: dict[str, Loss] = {"l1": MaskedL1Loss(), "ssim": SSIMLoss3D(), "gradient": GradientLoss()}
    losses[f"perceptual ({perceptual.weights_name}, {perceptual.num_slices} slices a plane)"] = perceptual
    print("\nAll losses, forward and backward [s]")
    terms = []
    for name, loss in losses.items():
        seconds = {str(size): measure(loss, size, **options)[0] for size in arguments.sizes}
        terms.append({"loss": name, "seconds": seconds})
        print(f"{name:42s}" + "".join(f"  {size}³ {value:.4f}" for size, value in seconds.items()))

    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.machine()}
    report = {"machine": machine, "device": str(device), "ssim": ssim, "losses": terms}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=4) + "\n", encoding="utf-8")
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
