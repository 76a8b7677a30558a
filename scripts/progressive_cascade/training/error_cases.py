# SPDX-License-Identifier: Apache-2.0
"""Reconstructions whose truth is known, from which sigma learns what errors look like; made once, kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from progressive_cascade.ct.augment import RandAnatomyd
from progressive_cascade.ct.datalist import load_datalist
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import VOXEL_SIZE, ConeBeam, volume_affine
from progressive_cascade.inference.inferers import CascadeInferer
from progressive_cascade.inference.reconstruct import load_cascade, reconstruct
from progressive_cascade.inference.transforms import to_line_integrals
from progressive_cascade.inference.uncertainty import block_errors, describe
from progressive_cascade.io import atomic_path, read_state
from progressive_cascade.io.released import file_hash
from progressive_cascade.networks import ProgressiveCascade
from progressive_cascade.physics import Exposure
from progressive_cascade.physics.simulate import expose, jittered_beam
from progressive_cascade.training.cases import load_case

FIRST_SEED = 500_000
"""Seed of the first phantom, between those of the cascade's training and validation."""
_HELD_OUT_EVERY = 8


@dataclass(frozen=True)
class Example:
    """One reconstruction to make: whose, the how manieth variant of it, and what it is for.

    Args:
        name: of its file.
        item: the CT or phantom, as for :func:`load_case`.
        seed: of augmentation, geometry and noise.
        augmented: whether the anatomy is varied.
        held_out: for the calibration, not for the training.
    """

    name: str
    item: dict[str, Any]
    seed: int
    augmented: bool
    held_out: bool

    @property
    def mirrored(self) -> bool:
        """Whether the cascade was trained on this patient, and shall not know him."""
        return "seed" not in self.item and not self.held_out


def plan_examples(dataset: Path | None, num_phantoms: int, repeats: int) -> list[Example]:
    """All examples of a run, phantoms and CTs in turn, so that a run that is stopped early has seen both.

    Args:
        dataset: folder written by `prepare`, or None.
        num_phantoms: phantoms.
        repeats: variants of each CT; the first is not augmented.

    Raises:
        UserError: if there is nothing to train on, or nothing to calibrate with.
    """
    cts = [
        Example(f"{item['case']}_{repeat}", item, 1000 * number + repeat, repeat > 0, section == "validation")
        for repeat in range(repeats)
        for section in ("training", "validation")
        for number, item in enumerate(load_datalist(dataset, section) if dataset else [])
    ]
    has_held_out_ct = any(example.held_out for example in cts)
    phantoms = [
        Example(
            f"phantom_{seed}",
            {"seed": seed},
            seed,
            augmented=False,
            held_out=not has_held_out_ct and (seed - FIRST_SEED + 1) % _HELD_OUT_EVERY == 0,
        )
        for seed in range(FIRST_SEED, FIRST_SEED + num_phantoms)
    ]
    placed = [((index + 0.5) / len(kind), example) for kind in (phantoms, cts) for index, example in enumerate(kind)]
    examples = [example for _, example in sorted(placed, key=lambda pair: pair[0])]
    if {example.held_out for example in examples} != {False, True}:
        least = f"at least {_HELD_OUT_EVERY} where no CT is held out"
        raise UserError(f"--phantoms must be {least}, got {num_phantoms}")
    return examples


def make_tensors(example: Example, network: ProgressiveCascade, beam: ConeBeam) -> dict[str, Tensor]:
    """Reconstruct an example, and keep what the training needs in half precision.

    Windows do not overlap: the seams change the result by 0.4 HU where its error is 170 HU, at 40 % of the time.

    Returns:
        ``inputs`` (10, g, g, g), ``rms`` (1, g, g, g) [HU] and ``weight`` (1, g, g, g); float16.
    """
    case = load_case(example.item)
    hu = torch.from_numpy(case.hu.astype(np.float32))[None]
    valid = torch.ones_like(hu) if case.valid is None else torch.from_numpy(case.valid.astype(np.float32))[None]
    if example.mirrored:
        hu, valid = hu.flip(1), valid.flip(1)
    if example.augmented:
        vary = RandAnatomyd(prob=1.0)
        vary.set_random_state(seed=example.seed)
        varied = vary({"label": hu, "valid": valid})
        hu, valid = varied["label"], varied["valid"]
    rng = np.random.default_rng(example.seed)
    beam = jittered_beam(beam, rng, distance_jitter=0.02, shift_jitter=0.0)
    exposure = Exposure(photons=1e5 if rng.random() < 0.5 else None)
    generator = torch.Generator().manual_seed(example.seed)
    affine = volume_affine((hu.shape[1], hu.shape[2], hu.shape[3]), VOXEL_SIZE)
    image = expose(hu[None], beam, affine=affine, exposure=exposure, generator=generator)[0].numpy()
    calibrated = bool(rng.random() >= 0.1)
    if not calibrated:
        # Grey levels that nobody takes for line integrals, brought back as the command line does.
        image, calibrated = to_line_integrals(500 * image + 100)
    inferer = CascadeInferer(128, overlap=0.0, amp=True)
    result = reconstruct(image, beam, network=network, inferer=inferer, calibrated=calibrated)
    mse, weight = block_errors(result.hu, hu[0].numpy(), valid[0].numpy())
    return {
        "inputs": describe(result, beam)[0].half(),
        "rms": mse[0].sqrt().half(),
        "weight": weight[0].half(),
    }


def collect(
    examples: Sequence[Example], checkpoint: Path, cache: Path, device: str
) -> dict[bool, list[dict[str, Tensor]]]:
    """The tensors of all examples, from the folder where they are there, by whether they are held out.

    Args:
        examples: what to reconstruct.
        checkpoint: the cascade's weights.
        cache: folder of the folders, one for each checkpoint.
        device: where to reconstruct.
    """
    folder = cache / file_hash(checkpoint)[:12]
    network = load_cascade(checkpoint, device)
    size = network.image_size
    pitch = ConeBeam().pixel_spacing[0] * ConeBeam().detector_shape[0] / size
    beam = ConeBeam(detector_shape=(size, size), pixel_spacing=(pitch, pitch))
    found: dict[bool, list[dict[str, Tensor]]] = {False: [], True: []}
    for number, example in enumerate(examples, start=1):
        path = folder / f"{example.name}.pt"
        if not path.is_file():
            start = time.perf_counter(), time.process_time()
            tensors = make_tensors(example, network, beam)
            with atomic_path(path) as temporary:
                torch.save(tensors, temporary)
            rms = float((tensors["rms"].float() ** 2).mean().sqrt())
            spent = f"{time.perf_counter() - start[0]:.1f} s, {time.process_time() - start[1]:.1f} CPU-s"
            print(f"{number}/{len(examples)}  {example.name}  error {rms:.0f} HU  {spent}", flush=True)
        found[example.held_out].append(read_state(path))
    return found
