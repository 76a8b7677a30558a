# SPDX-License-Identifier: Apache-2.0
"""Laws of checkpoints: what is kept, how a run resumes, how stages chain."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from progressive_cascade import ConeBeam
from progressive_cascade.errors import UserError
from progressive_cascade.geometry import GeometryRange
from progressive_cascade.training import assemble
from progressive_cascade.training.assemble import with_first_stage
from progressive_cascade.training.checkpoints import (
    AverageWeights,
    BestCheckpoint,
    HalfPrecisionState,
    load_predecessor,
)
from progressive_cascade.training.resume import ResumableCheckpoint


def test_checkpoints_are_half_but_keep_the_geometry(small_cascade):
    """Parameters in float16, projection matrices untouched."""
    network = small_cascade(stage=1)
    state = HalfPrecisionState(network).state_dict()
    assert all(state[name].dtype == torch.float16 for name, _ in network.named_parameters())
    assert torch.equal(state["projection_matrices"], network.projection_matrices)


def test_the_best_weights_stay_until_better_ones_are_whole(tmp_path, monkeypatch):
    """A run that dies while it writes a better checkpoint keeps the one before, and nothing else."""
    network = torch.nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: None)
    engine.state_dict_user_keys.append("metrics")
    saver = BestCheckpoint(
        str(tmp_path), {"model": network}, save_key_metric=True, key_metric_name="psnr", key_metric_filename="best.pt"
    )

    @engine.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        torch.nn.init.constant_(network.weight, engine.state.epoch)
        engine.state.metrics["psnr"] = engine.state.epoch

    def interrupted(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    saver.attach(engine)
    engine.run([0], max_epochs=2)
    assert torch.load(tmp_path / "best.pt")["weight"].item() == 2
    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run([0], max_epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]
    assert torch.load(tmp_path / "best.pt")["weight"].item() == 2


def test_a_stage_starts_from_its_predecessor(small_cascade, tmp_path):
    """Encoder and stage 1 are filled, the new stage stays fresh."""
    earlier = small_cascade(stage=1)
    torch.save(HalfPrecisionState(earlier).state_dict(), tmp_path / "stage1_best.pt")
    network = small_cascade(stage=2)
    filled = network.stages[0].unet.enter.weight
    torch.nn.init.zeros_(filled)
    load_predecessor(network, tmp_path / "stage1_best.pt")
    torch.testing.assert_close(filled, earlier.stages[0].unet.enter.weight, atol=1e-3, rtol=0)


def test_stage_three_starts_from_the_weights_of_stage_two(small_cascade, tmp_path):
    """Two refining stages of one shape begin alike; one of another shape, or after stage 1, begins fresh."""

    def start(stage: int, **arguments: object) -> Any:
        earlier = small_cascade(stage=stage - 1, **arguments)
        torch.nn.init.normal_(earlier.stages[-1].unet.out.weight)
        torch.save(earlier.state_dict(), tmp_path / "earlier.pt")
        network = small_cascade(stage=stage, **arguments)
        load_predecessor(network, tmp_path / "earlier.pt")
        return network.stages

    second, third = start(3)[1:]
    assert all(torch.equal(value, second.unet.state_dict()[name]) for name, value in third.unet.state_dict().items())
    assert not start(2)[-1].unet.out.weight.any()
    assert not start(3, unet_channels=((4, 8), (4, 8), (4, 16)))[-1].unet.out.weight.any()


def test_a_stage_goes_on_from_its_own_checkpoint(small_cascade, tmp_path):
    """What the checkpoint holds of the stage itself is loaded, too, and stage 2 does not overwrite it."""
    trained = small_cascade(stage=3)
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(trained.state_dict(), tmp_path / "stage3_best.pt")
    network = small_cascade(stage=3)
    load_predecessor(network, tmp_path / "stage3_best.pt")
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in network.state_dict().items())


def _plain(small_cascade, stage, **options):
    """A cascade without a 2-D encoder, its weights drawn."""
    network = small_cascade(stage=stage, **{"cross_attention": False, "lift_channels": 0, **options})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


def test_a_cascade_takes_another_first_stage_and_its_range(small_cascade, tmp_path):
    """Stage 1 and the geometries it takes are the donor's, later stages the cascade's; the donor may have fewer."""
    cascade = _plain(small_cascade, 2)
    donor = _plain(small_cascade, 1, geometry_range=GeometryRange((700.0, 1900.0), (300.0, 430.0), turn=10.0))
    for name, network in (("cascade", cascade), ("donor", donor)):
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    mixed = with_first_stage(tmp_path / "cascade.pt", tmp_path / "donor.pt")
    assert set(mixed) == set(cascade.state_dict())
    for name, value in mixed.items():
        origin = donor if name.startswith("stages.0.") or name == "range_values" else cascade
        assert torch.equal(value, origin.state_dict()[name]), name
    assert not torch.equal(mixed["range_values"], cascade.state_dict()["range_values"])


def test_two_first_stages_are_averaged(small_cascade, tmp_path):
    """The mean of every weight of stage 1; the geometries are the first's; another shape is refused."""
    learnt = GeometryRange((700.0, 1900.0), (300.0, 430.0))
    networks = {
        "cascade": _plain(small_cascade, 2),
        "donor": _plain(small_cascade, 1, geometry_range=learnt),
        "later": _plain(small_cascade, 1),
        "wide": _plain(small_cascade, 1, unet_channels=((4, 8, 32),) * 3),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    files = [tmp_path / f"{name}.pt" for name in ("cascade", "donor", "later")]
    mixed, (one, other) = with_first_stage(*files), (networks[name].state_dict() for name in ("donor", "later"))
    for name in (name for name in one if name.startswith("stages.0.")):
        torch.testing.assert_close(mixed[name], (one[name] + other[name]) / 2)
    assert torch.equal(mixed["range_values"], one["range_values"])
    with pytest.raises(UserError, match=r"wide\.pt must have stage 1 of the architecture of .*donor\.pt"):
        with_first_stage(*files[:2], tmp_path / "wide.pt")
    assert assemble.main(["--checkpoint", str(files[0]), "--average_with", str(files[1]), "--output", "x.pt"]) == 2


def test_first_stages_that_do_not_fit_are_refused(small_cascade, tmp_path):
    """A stage 1 of another shape or geometry, or that shares a 2-D encoder."""
    other = ConeBeam(1000, 1800, (128, 128), (3.36, 3.36))
    networks = {
        "cascade": _plain(small_cascade, 2),
        "wide": _plain(small_cascade, 1, unet_channels=((4, 8, 32),) * 3),
        "elsewhere": _plain(small_cascade, 1, geometry=other),
        "encoder": _plain(small_cascade, 2, cross_attention=True),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    for donor, message in (
        ("wide", r"wide\.pt must have stage 1 of the architecture"),
        ("elsewhere", r"elsewhere\.pt must have the geometry"),
        ("encoder", r"encoder\.pt must have no 2-D encoder"),
    ):
        with pytest.raises(UserError, match=message):
            with_first_stage(tmp_path / "cascade.pt", tmp_path / f"{donor}.pt")
    with pytest.raises(UserError, match=r"encoder\.pt must have no 2-D encoder"):
        with_first_stage(tmp_path / "encoder.pt", tmp_path / "cascade.pt")


def test_assembling_writes_a_whole_cascade_or_nothing(small_cascade, tmp_path, capsys):
    """One file, equal to what it was made of; of a file that is missing or no cascade: one line, exit 2, no file."""
    network = _plain(small_cascade, 1)
    torch.save(network.state_dict(), tmp_path / "1.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    output = tmp_path / "new.pt"
    for checkpoint in ("none.pt", "other.pt"):
        assert assemble.main(["--checkpoint", str(tmp_path / checkpoint), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert checkpoint in error and error.count("\n") == 1 and not output.exists()
    assert assemble.main(["--checkpoint", str(tmp_path / "1.pt"), "--output", str(output)]) == 0
    written = torch.load(output, weights_only=True)
    assert all(torch.equal(value, written[name]) for name, value in network.state_dict().items())


def test_a_missing_or_wrong_predecessor_is_one_clear_error(small_cascade, tmp_path):
    """Missing file, no checkpoint, another architecture, another stage, another geometry."""
    network = small_cascade(stage=2)
    path = tmp_path / "stage1_best.pt"
    with pytest.raises(UserError, match="train stage 1 first"):
        load_predecessor(network, path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="must be a torch state dict"):
        load_predecessor(network, path)
    torch.save(small_cascade(stage=1, unet_channels=((4, 8, 32),) * 3).state_dict(), path)
    with pytest.raises(UserError, match="must hold stage 1 of this architecture"):
        load_predecessor(network, path)
    torch.save(small_cascade(stage=3).state_dict(), path)
    with pytest.raises(UserError, match=r"must hold stage 2 of this architecture; first difference: stages\.2"):
        load_predecessor(network, path)
    other = ConeBeam(1000, 1800, (128, 128), (3.36, 3.36))
    torch.save(small_cascade(stage=1, geometry=other).state_dict(), path)
    with pytest.raises(UserError, match="must have the geometry of the config"):
        load_predecessor(network, path)


def _run(
    layer: torch.nn.Module, folder: Path, epochs: int, *, momentum: float | None = 0.05, resume: bool = False
) -> Any:
    """Trains a layer for epochs of five steps, each with its own data, and keeps the average."""
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.05)
    average = AverageWeights(layer, momentum)

    def step(engine, batch):
        optimizer.zero_grad()
        ((layer(batch) - engine.state.iteration) ** 2).mean().backward()
        optimizer.step()

    engine = Engine(step)
    average.attach(engine)
    objects = {"network": layer, "average": average, "optimizer": optimizer}
    ResumableCheckpoint(folder, objects, resume=resume).attach(engine)
    engine.run([torch.ones(1, 2)] * 5, max_epochs=epochs)
    return average


def test_the_average_follows_its_formula():
    """The first step replaces the initial weights, a later one weighs as much as the momentum of its step."""
    layer = torch.nn.Linear(1, 1)
    average: Any = AverageWeights(layer, 0.25)
    torch.nn.init.zeros_(layer.weight)

    def step(engine, batch):
        torch.nn.init.constant_(layer.weight, float(engine.state.iteration))

    engine = Engine(step)
    average.attach(engine)
    expected, values = 0.0, []
    for number, momentum in enumerate((1.0, 0.75, 0.5, 0.25, 0.25, 0.25), start=1):
        expected += momentum * (number - expected)
        values.append(expected)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(float(average.network.weight)))
    engine.run([0] * 6)
    assert seen == pytest.approx(values)


def test_the_average_starts_from_what_is_loaded_later(small_cascade):
    """Weights that are filled in after the handler was built, as a predecessor's, are the average's own."""
    network = small_cascade(stage=2, freeze_earlier=True)
    average = AverageWeights(network)
    torch.nn.init.constant_(network.stages[0].unet.enter.weight, 0.123)
    engine = Engine(lambda *_: None)
    average.attach(engine)
    engine.run([0] * 3)
    for name, value in average.network.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], msg=name)
    assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())


def test_frozen_parameters_are_their_own_average(tmp_path):
    """To the bit, while the others lag behind."""
    torch.manual_seed(0)
    layer: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    layer[0].requires_grad_(False)
    average = _run(layer, tmp_path, epochs=3)
    assert torch.equal(average.network[0].weight, layer[0].weight)
    assert not torch.equal(average.network[1].weight, layer[1].weight)


def test_without_momentum_the_average_is_the_network(tmp_path):
    """Nothing is copied, and a run with an average may go on without one, and the reverse."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    for momentum in (0, None):
        assert _run(layer, tmp_path, epochs=1, momentum=momentum).network is layer
    average = _run(layer, tmp_path, epochs=1, resume=True)
    assert torch.equal(average.network.weight, layer.weight)
    with pytest.raises(ValueError, match="momentum must lie in"):
        AverageWeights(layer, 1.0)


def test_a_resumed_average_is_that_of_one_long_run(tmp_path):
    """Weights, average and its schedule go on to the bit."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    start = deepcopy(layer.state_dict())
    long = _run(layer, tmp_path / "long", epochs=4)
    expected = layer.weight.detach().clone(), long.network.weight.clone()
    layer.load_state_dict(start)
    _run(layer, tmp_path / "short", epochs=2)
    torch.nn.init.zeros_(layer.weight)
    average = _run(layer, tmp_path / "short", epochs=4, resume=True)
    assert torch.equal(layer.weight, expected[0]) and torch.equal(average.network.weight, expected[1])
