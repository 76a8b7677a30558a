# SPDX-License-Identifier: Apache-2.0
"""Can phantoms be told from patients by a few centimetres of tissue? A small classifier tries.

    python benchmarks/texture.py --dataset dataset                       # minutes of CPU, one thread
    python benchmarks/texture.py --dataset dataset --populations clinical-scan --views whole --folds 1

Patches of 32³ voxels of 1.4 mm, of soft tissue, of lung and of bone, are drawn from the prepared CTs of the training
and validation sections and from a dozen phantoms painted at 256³. A network of 18 thousand parameters (4 where it is
shown `three numbers`) is trained on two thirds of the patients and phantoms and tested on the others; in three folds,
each with its own seed, everyone is tested once. The figure is the balanced accuracy: 50 % is a guess, 100 % tells every
patch. What is shown is varied (:data:`gap.patches.VIEWS`), which says what gives phantoms away: their HU, their noise,
their anatomy. Populations are drawn without the family `scan`, whose repeated end slices are no texture;
`clinical-scan-scanner` is without grain and noise, too. What is in `texture.json` is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gap.patches import TISSUES, VIEWS, ct_patches, look, phantom_patches
from progressive_cascade.errors import UserError
from progressive_cascade.evaluation.cases import evaluation_items
from progressive_cascade.io import finite, read_json, save_json

RESULTS = Path(__file__).parent / "results"
FOLDS = 3
RATES = {"three numbers": 0.1}  # of the views that do not take 0.002


def make_classifier(view: str) -> nn.Module:
    """Patches to one number: above 0 a phantom."""
    if view == "three numbers":
        return nn.Sequential(nn.Linear(3, 1))

    def block(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.Conv3d(before, after, 3, stride, 1, bias=False), nn.BatchNorm3d(after), nn.ReLU()]

    first = 1 if view == "coarse" else 2
    blocks = [*block(1, 8, first), *block(8, 16, 2), *block(16, 16, 2), *block(16, 16, 1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 1))


def train_classifier(real: Tensor, made: Tensor, *, view: str, steps: int, batch: int, seed: int) -> nn.Module:
    """Half of every batch is real; patches are mirrored at random.

    Args:
        real: what is shown of patients' patches (n, …).
        made: of phantoms' (m, …).
        view: of :data:`gap.patches.VIEWS`.
        steps: of AdamW with a cosine.
        batch: patches of each kind a step.
        seed: of the weights and of the order.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = make_classifier(view)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATES.get(view, 2e-3), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    target = torch.cat([torch.zeros(batch), torch.ones(batch)])
    for _ in range(steps):
        picked = torch.cat([kind[torch.from_numpy(rng.integers(len(kind), size=batch))] for kind in (real, made)])
        if picked.ndim == 5:
            picked = picked.flip([axis for axis in (2, 3, 4) if rng.random() < 0.5])
        loss = F.binary_cross_entropy_with_logits(network(picked)[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def balanced_accuracy(network: nn.Module, real: Tensor, made: Tensor) -> float:
    """Mean of the shares of patients' patches and of phantoms' patches that are told right."""
    right = [(network(real)[:, 0] <= 0).float().mean(), (network(made)[:, 0] > 0).float().mean()]
    return float(sum(right) / 2)


def measure(
    cts: list[Tensor], phantoms: list[Tensor], *, view: str, folds: int, steps: int, batch: int
) -> tuple[list[float], int]:
    """Balanced accuracy of each fold, and the patches tested.

    Args:
        cts: patches (n, 1, 32, 32, 32) [HU] of each patient.
        phantoms: likewise.
        view: of :data:`gap.patches.VIEWS`.
        folds: how many of the three are measured.
        steps: of training.
        batch: patches of each kind a step.
    """
    accuracies, tested = [], 0
    for fold in range(folds):
        sets = {}
        for kind, volumes in (("real", cts), ("made", phantoms)):
            for part, held in (("train", False), ("test", True)):
                chosen = [v for index, v in enumerate(volumes) if (index % FOLDS == fold) is held]
                sets[kind, part] = look(torch.cat(chosen).float(), view)
        both = torch.cat([sets["real", "train"], sets["made", "train"]])
        axes = tuple(range(2, both.ndim)) if both.ndim == 5 else ()
        center, scale = both.mean((0, *axes), keepdim=True), both.std((0, *axes), keepdim=True).clamp_min(1e-6)
        sets = {key: (value - center) / scale for key, value in sets.items()}
        network = train_classifier(
            sets["real", "train"], sets["made", "train"], view=view, steps=steps, batch=batch, seed=fold
        )
        accuracies.append(balanced_accuracy(network, sets["real", "test"], sets["made", "test"]))
        tested += len(sets["real", "test"]) + len(sets["made", "test"])
    return accuracies, tested


def table(runs: Sequence[dict]) -> str:
    """Markdown: accuracy by population, what is shown, and tissue, with the lowest and highest fold."""
    lines = [f"| phantoms | shown | {' | '.join(TISSUES)} |", f"|---|---|{'---|' * len(TISSUES)}"]
    for population, view in dict.fromkeys((run["population"], run["view"]) for run in runs):
        cells = []
        for tissue in TISSUES:
            found = [r for r in runs if (r["population"], r["view"], r["tissue"]) == (population, view, tissue)]
            folds = [100 * value for run in found for value in run["accuracy"]]
            cells.append(f"{np.mean(folds):.0f} % ({min(folds):.0f} to {max(folds):.0f})" if folds else "")
        lines.append(f"| {population} | {view} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder written by `prepare`")
    parser.add_argument(
        "--populations", nargs="+", default=["basic", "clinical-scan-scanner", "clinical-scan"], metavar="NAME"
    )
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="what the classifier sees")
    parser.add_argument("--folds", type=int, choices=range(1, FOLDS + 1), default=FOLDS)
    parser.add_argument("--patches", type=int, default=48, help="of each tissue and patient")
    parser.add_argument("--phantoms", type=int, default=12, help="of each population, from seed 0 on")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16, help="patches of patients, and of phantoms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/texture"), help="folder of patches")
    parser.add_argument("--output", type=Path, default=RESULTS / "texture.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, write it after each run, print the table."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("folds", "patches", "steps", "batch")}
    try:
        report = read_json(options.output) if options.output.is_file() else {"settings": settings, "runs": []}
        if report["settings"] != settings:
            raise UserError(f"{options.output} was made with {report['settings']}: name another --output")
        items = [item for section in ("training", "validation") for item in evaluation_items(options.dataset, section)]
        keep = {"count": options.patches, "cache": options.cache}
        cts = [ct_patches(item, **keep) for item in items]
        for population in options.populations:
            phantoms = [phantom_patches(population, seed, **keep) for seed in range(options.phantoms)]
            for view in options.views:
                for tissue in TISSUES:
                    own = {"population": population, "view": view, "tissue": tissue}
                    if any(own.items() <= run.items() for run in report["runs"]):
                        continue
                    real, made = (
                        [torch.from_numpy(volume[tissue])[:, None] for volume in kind] for kind in (cts, phantoms)
                    )
                    accuracy, tested = measure(
                        real, made, view=view, folds=options.folds, steps=options.steps, batch=options.batch
                    )
                    report["runs"].append(own | {"phantoms": len(made), "accuracy": accuracy, "patches_tested": tested})
                    save_json(finite(report), options.output)
    except (UserError, FileNotFoundError) as error:
        print(f"texture: error: {error}", file=sys.stderr)
        return 2
    print(table(report["runs"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
