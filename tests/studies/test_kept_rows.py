"""A row of a study is taken again for the same network, images and settings, and for no others."""

import json
import shutil
from dataclasses import replace

import pytest

from multipde import NetworkConfig, PDENet, external_model, load_data, save
from multipde.studies.bench.finetune import finetune_study
from multipde.studies.bench.finishing import finish_study
from multipde.studies.robustness_study import compare_robustness
from multipde.studies.study import Study
from tests.fixtures import write_folder

OPTIONS = {"num_train": 120, "num_test": 20}
pytestmark = pytest.mark.usefixtures("one_strength")


def measured(study, name):
    return len((study / name).read_text().splitlines())


def test_robustness_is_measured_anew_for_other_images_weights_and_descriptions(tmp_path):
    write_folder(tmp_path / "v1/data", num_train=6, num_test=4, size=8)
    write_folder(tmp_path / "v2/data", num_train=6, num_test=4, size=8)
    for picture in (tmp_path / "v2/data/test").rglob("*0.png"):
        picture.write_bytes((picture.parent / "001.png").read_bytes())
    names = ("disc", "ring", "square")
    config = NetworkConfig("hamiltonian", (2, 4), 4, steps=2, size=8, classes=3, class_names=names)
    net, other = PDENet(config), PDENet(replace(config, dt=0.5))
    save(net, tmp_path / "net")
    other.load_state_dict(net.state_dict())
    save(other, tmp_path / "other")

    def rows(checkpoint, data):
        place = ("folder", {"root": tmp_path / data / "data"})
        compare_robustness([tmp_path / checkpoint], place, out=tmp_path / "rows.jsonl", device="cpu")
        return measured(tmp_path, "rows.jsonl")

    assert [rows("net", "v1"), rows("net", "v1")] == [1, 1]
    assert [rows("net", "v2"), rows("net", "v2")] == [2, 2]
    assert [rows("other", "v1"), rows("other", "v1")] == [3, 3]


def test_networks_of_other_depths_are_not_averaged(tmp_path):
    names = load_data("shapes", size=8, **OPTIONS).class_names
    for depth in (1, 2):
        save(PDENet(NetworkConfig("hamiltonian", (2,) * depth, 4, size=8, class_names=names)), tmp_path / str(depth))
    message = r"must have the same steps, got \(3,\) and \(3, 3\) for hamiltonian; type --by checkpoint"
    with pytest.raises(ValueError, match=message):
        compare_robustness([tmp_path / "1", tmp_path / "2"], ("shapes", OPTIONS), by="dynamics", device="cpu")


def various(net):
    """The network with larger scores, so that its answers differ."""
    net.classifier.weight.data.mul_(1000)
    return net


@pytest.mark.parametrize(
    ("study", "how"),
    [
        (finetune_study, {"methods": ("copy",), "recalibration": (32,), "epochs": (), "scratch": ()}),
        (finish_study, {"ways": ("copy",), "arms": ("answers",), "images": (20,), "learned": 20, "seeds": (0,)}),
    ],
)
def test_a_replaced_checkpoint_is_measured_anew(study, how, tmp_path):
    names = load_data("shapes", size=8, **OPTIONS).class_names
    config = NetworkConfig("hamiltonian", (4,), 8, steps=1, size=8, class_names=names)
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "net", ignore_errors=True)
        save(various(PDENet(config)), tmp_path / "net")
        study(tmp_path / "net", ("shapes", OPTIONS), tmp_path / "rows.jsonl", size=16, device="cpu", **how)
        assert measured(tmp_path, "rows.jsonl") == seed + 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[0]["sha256"] != rows[1]["sha256"]


def test_any_described_network_can_be_fine_tuned(tmp_path):
    names = load_data("shapes", size=8, **OPTIONS).class_names
    save(external_model("squeezenet1_1", size=32, classes=10, class_names=names).build(), tmp_path / "net")
    how = {"size": 48, "methods": ("copy",), "recalibration": (32,), "epochs": (), "scratch": (), "device": "cpu"}
    (row,) = finetune_study(tmp_path / "net", ("shapes", OPTIONS), tmp_path / "rows.jsonl", **how)
    assert 20 * row["accuracy"] == pytest.approx(round(20 * row["accuracy"]))


def test_shared_values_that_earlier_rows_lack_are_filled_in(tmp_path):
    file = tmp_path / "rows.jsonl"
    Study(file, {"data": "x"}, ("arm",)).add("a", accuracy=1)
    study = Study(file, {"data": "x", "batch": 64}, ("arm",), earlier={"batch": 64})
    assert study.left([("a",), ("b",)], "arms") == [("b",)]
    assert Study(file, {"data": "x", "batch": 32}, ("arm",), earlier={"batch": 64}).left([("a",)], "arms") == [("a",)]
