# SPDX-License-Identifier: Apache-2.0
"""What one step of a stage takes on this machine: seconds and memory, measured, and what a run of them amounts to."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch.utils.data import default_collate

from progressive_cascade.training.watch import peak_memory


def measure_lines(config: ConfigParser, *, steps: int) -> list[str]:
    """Reads one case, tries a step and a validation on it, and multiplies; nothing is written, nothing is kept.

    Args:
        config: of a stage; its network, not yet trained, is used up.
        steps: of an epoch.

    Returns:
        Lines to print: memory, and time with its arithmetic.

    Raises:
        RunError: if the step does not fit into the memory; it says which batch would.
    """
    names = ("epochs", "val_interval", "batch_size", "num_workers")
    epochs, interval, size, workers = (config.get_parsed_content(name) for name in names)
    cases = len(config.get_parsed_content("validate#dataset#data"))
    dataset: Any = config.get_parsed_content("train#dataset")
    begun = time.perf_counter()
    case = dataset.transform(dataset.data[0])
    read = time.perf_counter() - begun
    batch = default_collate([{key: torch.as_tensor(case[key]) for key in ("label", "valid")}] * size)
    batch |= {"draw": torch.arange(size), "step": torch.zeros(size, dtype=torch.int64)}
    trainer: Any = config.get_parsed_content("train#trainer")
    seconds = trainer.try_step(batch)
    checked = _time_validation(config, {key: value[:1] for key, value in batch.items()})
    total = epochs * steps * seconds + epochs // interval * cases * checked
    return [
        f"  memory: {peak_memory() / 1e9:.2f} GB at the most in a step of {size} cases on {trainer.state.device}",
        f"  time: {epochs} x {steps} steps x {seconds:.3g} s + {epochs // interval} validations x {cases} cases x "
        f"{checked:.3g} s = {timedelta(seconds=round(total))}",
        f"  reading: {read:.3g} s for a case the first time, {size * read / max(1, workers):.3g} s a step by {workers} "
        "workers; later from the cache",
    ]


def _time_validation(config: ConfigParser, batch: dict[str, Any]) -> float:
    """One case through the validation's network and inferer [s]."""
    evaluator: Any = config.get_parsed_content("validate#evaluator")
    begun = time.perf_counter()
    with torch.no_grad():
        image, _, args, kwargs = evaluator.prepare_batch(batch, evaluator.state.device, False)
        evaluator.inferer(image, evaluator.network, *args, **kwargs)
        finish_work(evaluator.state.device)
    return time.perf_counter() - begun


def finish_work(device: Any) -> None:
    """Waits for what a GPU is at."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
