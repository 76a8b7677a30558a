# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a 256³ reconstruction, each setting in a process of its own.

    python benchmarks/inference.py [--output benchmarks/results/inference.json] [--device cpu]
    python benchmarks/inference.py --networks [--turns 3]     # the attention preset's network beside the default's

Rows differ in the last stage's windows: in small ones most of the work is overlap, in large ones the memory grows.
Freed memory is kept for the next layer, as the command line does it.

``--networks`` runs both networks by turns in one process, with 8 steps of refinement, in CPU seconds of one thread; the
full network is grown from the shipped weights, so that both reconstruct alike. The phantom is a clinical one, and needs
all steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

WINDOWS = (128, 160, 256)


def measure(window: int, device: str) -> dict[str, float]:
    """Reconstruct a phantom in this process; seconds of the reconstruction alone, peak memory of the process."""
    import torch

    from progressive_cascade import ConeBeam, line_integrals
    from progressive_cascade.attenuation import hu_to_mu
    from progressive_cascade.cli.common import keep_freed_memory
    from progressive_cascade.inference.inferers import CascadeInferer
    from progressive_cascade.inference.reconstruct import load_cascade, reconstruct
    from progressive_cascade.phantom import generate_phantom

    keep_freed_memory()
    phantom = generate_phantom(2_000_000)
    mu = hu_to_mu(torch.from_numpy(phantom.hu).float())[None, None]
    image = line_integrals(mu, ConeBeam(), affine=phantom.affine)[0].numpy()
    network = load_cascade(device=device)
    start = time.perf_counter()
    reconstruct(image, ConeBeam(), network=network, inferer=CascadeInferer(window, amp=True))
    seconds = time.perf_counter() - start
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"window": window, "seconds": round(seconds, 2), "peak_gib": round(peak / 2**30, 2)}


def compare_networks(turns: int) -> dict[str, list[float]]:
    """CPU seconds of reconstructions, by network, one for each turn."""
    import torch

    from progressive_cascade import ConeBeam, line_integrals
    from progressive_cascade.attenuation import hu_to_mu
    from progressive_cascade.cli.common import keep_freed_memory
    from progressive_cascade.inference.inferers import CascadeInferer
    from progressive_cascade.io import read_json
    from progressive_cascade.networks import ProgressiveCascade
    from progressive_cascade.paths import bundle_root
    from progressive_cascade.phantom import generate_phantom
    from progressive_cascade.training import load_predecessor

    keep_freed_memory()
    torch.set_num_threads(1)
    phantom = generate_phantom(2_000_000, population="clinical")
    mu = hu_to_mu(torch.from_numpy(phantom.hu).float())[None, None]
    image = line_integrals(mu, ConeBeam(), affine=phantom.affine).float()
    preset = read_json(bundle_root() / "configs" / "presets" / "attention.json")
    sizes = {key: value for key, value in preset.items() if not key.startswith(("_", "grow"))}
    networks = {"default": ProgressiveCascade().eval(), "attention": ProgressiveCascade(**sizes).eval()}
    for network in networks.values():
        load_predecessor(network, bundle_root() / "models" / "model.pt", grow=True)
    inferer = CascadeInferer(None, amp=True, refine_steps=8)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(turns):
        for name in list(networks)[:: 1 if turn % 2 == 0 else -1]:
            start = time.process_time()
            with torch.inference_mode():
                inferer(image, networks[name])
            seconds[name].append(round(time.process_time() - start, 2))
    return seconds


def main() -> None:
    """Measure every row in its own process, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "inference.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--networks", action="store_true", help="compare the attention preset's network instead")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.networks:
        for name, seconds in compare_networks(options.turns).items():
            print(f"{name:>12}", *(f"{value:8.2f}" for value in seconds), f"  least {min(seconds):8.2f} CPU s")
        return
    if options.row is not None:
        print(json.dumps(measure(options.row, options.device)))
        return
    rows = []
    print(f"{'window':>8}{'seconds':>10}{'peak GiB':>10}")
    for window in WINDOWS:
        command = [sys.executable, __file__, "--device", options.device, "--row", str(window)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        print(f"{window:8d}{rows[-1]['seconds']:10.1f}{rows[-1]['peak_gib']:10.2f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "device": options.device, "python": platform.python_version()}
    options.output.write_text(json.dumps({**machine, "rows": rows}, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
