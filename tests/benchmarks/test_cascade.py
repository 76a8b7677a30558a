# SPDX-License-Identifier: Apache-2.0
"""Laws of the ablation: rows are comparable, a run is made once, the table says what differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cascade
from ablation.networks import ChannelToDepth
from published.ablation import ablation_table
from tests.support.processes import start_server

SCRIPT = Path(cascade.__file__)
OTHER_SIZES = {"narrower", "wider"}


@pytest.mark.parametrize("stage", [1, 2])
def test_rows_have_about_the_same_number_of_parameters(stage):
    """Within 7 %; a part must not win by size."""
    beam = cascade.half_or_full("half")

    def trained(row):
        network = cascade.build(row, stage, beam, None)
        if isinstance(network, ChannelToDepth):
            return sum(p.numel() for p in network.parameters())
        parts = [network.stages[-1], *([] if network.xray is None else [network.xray])]
        return sum(p.numel() for part in parts for p in part.parameters())

    rows = {name: row for name, row in cascade.ROWS.items() if stage in row.stages and name not in OTHER_SIZES}
    default = trained(rows["default"])
    for name, row in rows.items():
        assert trained(row) == pytest.approx(default, rel=0.07), name


def test_channels_become_depth_where_the_patient_is():
    """A map that is bright at one pixel of a view lights the line behind that pixel, in the volume's axes."""
    network = ChannelToDepth(geometry=cascade.half_or_full("half"), depth_channels=1)
    volumes = []
    network.unet = _Keep(volumes)
    for encoder in network.encoders:
        for parameter in encoder.parameters():
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        # The last layer's bias is a constant per depth; the PA looks along y, the lateral along x.
        for encoder in network.encoders:
            encoder[-1].bias.copy_(torch.arange(16.0))
        network(torch.zeros(1, 2, 256, 256), torch.zeros(1, 2, 3, 4))
    from_pa, from_lateral = volumes[0][0]
    torch.testing.assert_close(from_pa[3, :, 5], torch.arange(16.0))
    torch.testing.assert_close(from_lateral[:, 3, 5], torch.arange(16.0))


class _Keep(torch.nn.Module):
    """Stands in for the U-Net and keeps what it is given."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x, tokens):
        """Eight channels of nothing."""
        self.seen.append(x)
        return x[:, :1].expand(-1, 8, -1, -1, -1)


def test_a_run_is_made_once_and_tabulated(tmp_path, monkeypatch, capsys):
    """The script trains, scores and writes a row; called again it finds it there."""
    start_server()
    output = tmp_path / "cascade.json"
    command = [str(SCRIPT), "--rows", "default", "--stages", "1", "--seeds", "0", "--seconds", "0.1", "--phantoms", "1"]
    command += ["--unseen", "1", "--jobs", "1", "--cache", str(tmp_path / "cache"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    assert cascade.main() == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    (run,) = report["runs"]
    assert run["row"] == "default" and run["steps"] >= 1 and run["native_psnr_3d_db"] > 5
    assert "default" in capsys.readouterr().out
    assert cascade.main() == 0
    assert capsys.readouterr().out == "" and json.loads(output.read_text(encoding="utf-8")) == report
    monkeypatch.setattr(sys, "argv", [*command, "--unseen", "2"])
    assert cascade.main() == 2 and "name another --output" in capsys.readouterr().err
    better = {**run, "row": "wider", "native_psnr_3d_db": run["native_psnr_3d_db"] + 1.25}
    table = ablation_table({**report, "runs": [run, better]})
    assert any(line.startswith("| wider | 1 | +1.25 (+1.25) | +0.000 |") for line in table)
