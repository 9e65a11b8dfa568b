"""Runs: they learn, they are recorded, they resume as if nothing had happened."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from multipde import (
    Level,
    NetworkConfig,
    PDENet,
    Schedule,
    TrainSettings,
    bake,
    convert,
    evaluate,
    load,
    load_data,
    mesh_size,
    render_shapes,
    resume,
    save,
    set_mesh_size,
    train,
)
from multipde.runtime.console import Log
from multipde.runtime.device import choose_amp
from multipde.runtime.signals import Interrupted
from multipde.storage.run_directory import recorded_data
from multipde.training.checkpoint import read_checkpoint
from multipde.training.listeners import Listeners
from multipde.training.optimizers import planned_flops
from multipde.training.start import initial_network, network_for, new_trainer, read_start
from multipde.training.trainer import Trainer
from tests.fixtures import as_format_1, load_unfinished

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16)
SCHEDULE = Schedule([Level(8, 2, steps=2, batch=50), Level(16, 2, steps=4, batch=50)])
OPTIONS = {"num_train": 200, "num_test": 60}


def run(directory, schedule=SCHEDULE, network=NETWORK, data="shapes", **options):
    settings = TrainSettings(**{"calibration_images": 100, "device": "cpu"} | options.pop("settings", {}))
    named = {"data_options": OPTIONS} if data == "shapes" else {}
    return train(network, schedule, data, directory, settings=settings, quiet=True, **named | options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run") / "a")


def test_a_run_is_recorded_from_settings_to_result(finished):
    rows = finished.metrics
    assert [(r["level"], r["size"], r["epoch"]) for r in rows] == [(1, 8, 1), (1, 8, 2), (2, 16, 1), (2, 16, 2)]
    assert rows[0]["steps"] == [2, 2]
    assert rows[-1]["steps"] == [4, 4]
    flops = [w * 150 for w in SCHEDULE.of(finished.model.config).of(NETWORK).work()]  # 160 in batches of 50
    precise = 1 + 160 / 3 / 150  # forward passes of the images that measure BatchNorm
    configs = SCHEDULE.of(NETWORK).configs()
    products = 6 * sum(planned_flops(config, "muon") for config in configs)  # of the optimizer, in each step
    assert rows[-1]["total_flops"] == pytest.approx(precise * (sum(flops) + products))
    (move,) = finished.result["moves"]
    assert (move["from"], move["to"], move["method"]) == (8, 16, "calibrated")
    assert {"accuracy_before", "accuracy_moved", "accuracy_recalibrated"} <= set(move)
    record = json.loads((finished.directory / "run.json").read_text())
    assert record["levels"][1]["steps"] == 4
    assert recorded_data(finished.directory) == ("shapes", OPTIONS)


def test_the_written_network_is_the_tested_one(finished):
    net = load(finished.directory)
    assert net.config.class_names[0] == "disc"
    assert (net.config.size, net.config.block_steps, net.config.final_times) == (16, (4, 4), (2.0, 2.0))
    metrics = evaluate(net, load_data("shapes", size=16, **OPTIONS), device="cpu")
    assert metrics.accuracy == finished.result["test_accuracy"]
    assert metrics.loss == pytest.approx(finished.result["test_loss"])


def test_equal_runs_give_equal_bytes_and_another_seed_others(finished, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy(finished.directory / "run.json", tmp_path / "b")  # a run that was stopped before its first checkpoint
    again = resume(tmp_path / "b", quiet=True)
    other = run(tmp_path / "c", settings={"seed": 1})
    first = (finished.directory / "model.safetensors").read_bytes()
    assert (again.directory / "model.safetensors").read_bytes() == first
    assert (other.directory / "model.safetensors").read_bytes() != first


def test_a_resumed_run_is_the_undisturbed_one(finished, tmp_path, signal_at_step):
    """Stopped within the second level; ``tests/faults`` stops at other steps and trains in other ways."""
    signal_at_step(8, signal.SIGTERM)
    with pytest.raises(
        Interrupted, match=r"stopped and saved at size .*; go on with: multipde train --run .* --resume"
    ):
        run(tmp_path / "b")
    signal_at_step(None)
    with (tmp_path / "b/metrics.jsonl").open("a") as file:
        file.write('{"torn": ')
    assert load_unfinished(tmp_path / "b").config.class_names
    resumed = resume(tmp_path / "b", quiet=True)
    assert (tmp_path / "b/model.safetensors").read_bytes() == (finished.directory / "model.safetensors").read_bytes()

    def timeless(rows):
        return [{k: v for k, v in r.items() if "second" not in k} for r in rows]

    assert timeless(resumed.metrics) == timeless(finished.metrics)
    assert resumed.result["test_accuracy"] == finished.result["test_accuracy"]
    last, _, _, momentum = read_checkpoint(next((tmp_path / "b").glob("checkpoint-*")))
    undisturbed, _, _, same = read_checkpoint(next(finished.directory.glob("checkpoint-*")))
    for a, b in ((dict(last.state_dict()), dict(undisturbed.state_dict())), (momentum, same)):
        assert set(a) == set(b)
        assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_finished_run_is_left_alone(finished, tmp_path):
    before = (finished.directory / "result.json").stat().st_mtime_ns
    assert resume(finished.directory, quiet=True).result == json.loads((finished.directory / "result.json").read_text())
    assert (finished.directory / "result.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="run must be a directory with a run.json, got"):
        resume(tmp_path)


def test_automatic_batch_and_precision_are_recorded_as_what_they_came_to(finished, tmp_path):
    plan = Schedule([Level(8, 0.25, batch=5), Level(16, 0.1, batch=5)])
    options = {"data_options": {"num_train": 400, "num_test": 20}}
    result = run(tmp_path / "r", plan, balance=True, settings={"amp": "auto"}, **options)
    record = json.loads((result.directory / "run.json").read_text())
    assert [(level["batch"], level["learning_rate"]) for level in record["levels"]] == [(20, 0.4), (5, 0.1)]
    assert record["settings"]["amp"] == choose_amp(torch.device("cpu"), "auto")
    (tmp_path / "b").mkdir()
    shutil.copy(result.directory / "run.json", tmp_path / "b")
    resume(tmp_path / "b", quiet=True)
    assert (tmp_path / "b/model.safetensors").read_bytes() == (tmp_path / "r/model.safetensors").read_bytes()


def test_bf16_is_chosen_where_there_are_instructions_and_refused_where_it_cannot_be_computed(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    for known, chosen in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "off")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        monkeypatch.setattr("multipde.runtime.device._is_faster_with_bf16", lambda: True)
        assert [choose_amp(cpu, amp) for amp in ("auto", "off", "bf16")] == [chosen, "off", "bf16"]
    for capability, chosen in (((8, 0), "bf16"), ((7, 5), "off")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert choose_amp(cuda, "auto") == chosen
    with pytest.raises(ValueError, match="amp must be off on cuda:0, which has no bfloat16, got bf16; type --amp off"):
        choose_amp(cuda, "bf16")


def test_training_learns(tmp_path):
    """To tell discs from stripes."""
    parts = []
    for num, seed in ((1500, 0), (750, 1)):
        images, labels = render_shapes(num, 8, seed)
        chosen = (labels == 0) | (labels == 8)
        parts.append((images[chosen], labels[chosen] // 8))
    network = replace(NETWORK, channels=(8, 12), out_channels=12)
    result = run(tmp_path / "r", Schedule([Level(8, 4, batch=20)]), network, tuple(parts)).result
    assert result["test_accuracy"] > 0.7  # a half by chance


@pytest.mark.parametrize("dynamics", ["parabolic", "second_order", "resnet"])
def test_every_dynamics_trains_in_bf16_without_warnings(dynamics, tmp_path):
    network, plan = replace(NETWORK, dynamics=dynamics), Schedule([Level(8, 2)])
    less, usual = (run(tmp_path / amp, plan, network, settings={"amp": amp}).metrics for amp in ("bf16", "off"))
    for row, other in zip(less, usual, strict=True):
        assert row["train_loss"] != other["train_loss"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)


@pytest.mark.parametrize("transfer", ["copy", "rediscretize", "galerkin"])
def test_the_network_after_a_move_is_the_converted_one(transfer, tmp_path):
    data = load_data("shapes", size=16, **OPTIONS)
    config = replace(NETWORK, class_names=data.class_names, mean=data.mean, std=data.std)
    plan = Schedule([Level(8, 1), Level(16, 1, steps=4)], config)
    net = initial_network(plan.configs()[0], 0)
    settings = TrainSettings(transfer=transfer, calibration_images=100, device="cpu")
    trainer = Trainer(plan, data, settings, tmp_path, Listeners(Log(quiet=True)))
    trainer.begin(net)
    trainer._next_level()
    expected = dict(convert(net, size=16, method=transfer, steps=4).named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in trainer.net.named_parameters())
    assert (trainer.state.index, trainer.state.epoch) == (1, 0)


def test_a_checkpoint_can_start_a_run_and_is_converted_to_its_first_level(finished, tmp_path):
    one = Schedule([Level(8, 1)])
    second = run(tmp_path / "b", one, None, init=finished.directory)
    assert second.model.config.size == 8
    assert second.model.config.block_steps == (4, 4)
    with pytest.raises(ValueError, match="channels must be that of the checkpoint"):
        run(tmp_path / "c", one, replace(NETWORK, channels=(4, 4)), init=finished.directory)
    assert not (tmp_path / "c").exists()


def test_other_steps_keep_the_final_time_of_the_checkpoint(finished, tmp_path):
    levels, start = Schedule([Level(16, 1, steps=8)]), read_start(finished.directory)
    plan = levels.of(network_for(None, levels, start)[0])
    data = load_data("shapes", size=16, **OPTIONS)
    settings = TrainSettings(calibration_images=100, device="cpu")
    trainer = new_trainer(plan, data, settings, tmp_path, Listeners(Log(quiet=True)), start)
    assert trainer.net.config.final_times == finished.model.config.final_times == (2.0, 2.0)
    expected = convert(load(finished.directory), steps=8)
    assert trainer.net.config == expected.config
    assert all(torch.equal(p, q) for p, q in zip(trainer.net.parameters(), expected.parameters(), strict=True))


def test_a_checkpoint_for_other_classes_is_refused(finished, tmp_path):
    save(PDENet(replace(NETWORK, classes=7)), tmp_path / "net")
    with pytest.raises(ValueError, match="data must have the 7 classes of the network"):
        run(tmp_path / "r", Schedule([Level(8, 1)]), None, init=tmp_path / "net")
    assert not (tmp_path / "r").exists()


def test_a_run_is_not_resumed_on_other_data(finished, tmp_path):
    (tmp_path / "b").mkdir()
    record = json.loads((finished.directory / "run.json").read_text())
    record["data_options"]["num_train"] = 150
    (tmp_path / "b/run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="data must be those of the run, 200 training images, got 150"):
        resume(tmp_path / "b")


def test_a_network_off_its_mesh_is_neither_saved_nor_converted(tmp_path):
    net = PDENet(NETWORK)
    set_mesh_size(net, 1 / 32)
    for call in (lambda: save(net, tmp_path / "net"), lambda: convert(net, size=8)):
        with pytest.raises(ValueError, match="network must be on the mesh of its size .16, 16., got mesh size"):
            call()
    assert not (tmp_path / "net").exists()


def test_a_directory_in_use_is_refused_and_left_alone(finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="type --resume"):
        run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_diverging_loss_is_reported_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"loss must stay finite, got .* at size 8, epoch 1, step 2; type a smaller"):
        run(tmp_path / "r", Schedule([Level(8, 1, batch=50, learning_rate=1e20)]), settings={"box": 0.0})
    assert load_unfinished(tmp_path / "r").config.size == 8


def test_data_without_a_name_must_be_given_again(tmp_path):
    data = load_data("shapes", size=8, **OPTIONS)
    result = run(tmp_path / "r", Schedule([Level(8, 1)]), data=data).result
    (tmp_path / "r/result.json").unlink()
    with pytest.raises(ValueError, match="data must be given to resume"):
        resume(tmp_path / "r")
    again = resume(tmp_path / "r", data, quiet=True).result
    assert (again["test_accuracy"], again["test_loss"]) == (result["test_accuracy"], result["test_loss"])


def test_save_and_load_give_the_same_network_and_refuse_to_overwrite(tmp_path):
    net = PDENet(replace(NETWORK, coordinates="beta", reference=32)).eval()
    save(net, tmp_path / "net")
    again = load(tmp_path / "net")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), net(x))
    assert again.config == net.config
    with pytest.raises(FileExistsError, match="directory must be new or empty"):
        save(net, tmp_path / "net")


def test_a_baked_network_is_saved_and_comes_back_on_its_mesh(tmp_path):
    net = bake(PDENet(replace(NETWORK, coordinates="beta"))).eval()
    save(net, tmp_path / "net")
    x = torch.randn(2, 3, 16, 16)
    again = load(tmp_path / "net")
    torch.testing.assert_close(again(x), net(x))
    assert mesh_size(again) == 1 / 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "checkpoint must hold config.json"),
        (lambda d: (d / "config.json").write_text("{"), "must be JSON, got"),
        (lambda d: (d / "config.json").write_text("[]"), "must be a record of multipde"),
        (lambda d: (d / "config.json").write_text('{"format": 99}'), "must have format 2 or older, got 99"),
        (lambda d: (d / "config.json").write_text('{"format": 1}'), "record must have the entry network, got none"),
        (lambda d: edit(d, depth=4), "must hold known entries only, got 'depth'"),
        (lambda d: edit(d, channels=[8, 16]), "must hold the weights that config.json describes"),
        (lambda d: edit(d, dynamics=None), "dynamics must be one of"),
        (lambda d: edit(d, channels=3), "channels must name 1 to 64 blocks, got 3"),
        (lambda d: (d / "model.safetensors").write_bytes(b"abc"), "must be a safetensors file"),
        (lambda d: (d / "model.safetensors").unlink(), "checkpoint must hold model.safetensors and config.json"),
    ],
)
def test_damaged_checkpoints_are_named(damage, message, tmp_path):
    save(PDENet(NETWORK), tmp_path / "net")
    as_format_1(tmp_path / "net")
    damage(tmp_path / "net")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net")


def edit(directory, **changes):
    record = json.loads((directory / "config.json").read_text())
    record["network"] |= changes
    (directory / "config.json").write_text(json.dumps(record))


def test_what_is_no_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="checkpoint must be a directory, got .*nothing"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": "magic"}, "transfer must be one of"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"box": -1.0}, "box must not be negative, got -1.0"),
        ({"validation": 0.0}, r"validation must lie in \(0, 1\), got 0.0"),
        ({"calibration_images": 1}, "calibration_images must be at least 2, got 1"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "warp"}, "device must be one that torch has here, got 'warp'"),
        ({"amp": "int4"}, "amp must be one of off, bf16, fp16, auto, got 'int4'"),
        ({"alpha1": -1.0}, "alpha1 must not be negative"),
    ],
)
def test_nothing_is_written_before_everything_is_checked(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "r", settings=settings)
    assert not (tmp_path / "r").exists()


def test_only_networks_for_images_are_trained_here(tmp_path):
    with pytest.raises(ValueError, match="dim must be 2 for a network that is trained on images, got 1"):
        run(tmp_path / "r", network=replace(NETWORK, dim=1))
    assert not (tmp_path / "r").exists()


def test_evaluating_keeps_the_training_flag_of_every_part():
    net = PDENet(NETWORK).train()
    net.opening[1].eval()  # a frozen BatchNorm
    flags = [m.training for m in net.modules()]
    evaluate(net, load_data("shapes", size=16, **OPTIONS), num_images=50, device="cpu")
    assert [m.training for m in net.modules()] == flags


def test_evaluate_checks_data_against_the_model():
    data = load_data("shapes", size=8, **OPTIONS)
    with pytest.raises(ValueError, match="data must have the 3 classes of the network"):
        evaluate(PDENet(replace(NETWORK, classes=3)), data)
    with pytest.raises(ValueError, match="part must be test or train, got 'all'"):
        evaluate(PDENet(NETWORK), data, part="all")
    metrics = evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), data, num_images=50)
    assert (metrics.num_images, metrics.flops) == (50, None)
