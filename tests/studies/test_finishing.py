"""The study of networks that learn from the one from which they were converted."""

import pytest
import torch

from multipde import NetworkConfig, PDENet, load_data, save
from multipde.studies.bench.finishing import ARMS, WAYS, finish_study, finish_table

OPTIONS = {"num_train": 120, "num_test": 40}


def test_rows_for_every_arm_and_number_of_images(tmp_path, figures, monkeypatch):
    data = load_data("shapes", size=8, **OPTIONS)
    torch.manual_seed(0)
    net = PDENet(NetworkConfig("hamiltonian", (4,), 8, steps=1, size=8, class_names=data.class_names))
    with torch.no_grad():
        net.classifier.weight.mul_(1000)  # so that the answers differ
    save(net, tmp_path / "net")
    given = {"size": 4, "images": (50, 1000), "learned": 125, "device": "cpu"}
    rows = finish_study(tmp_path / "net", ("shapes", OPTIONS), tmp_path / "rows.jsonl", **given)
    assert [(r["arm"], r["images"], r["learned"]) for r in rows] == [(arm, n, 125) for arm in ARMS for n in (50, 96)]
    assert len({r["before"] for r in rows}) == 1
    assert all(0 <= r["accuracy"] <= 1 for r in rows)
    monkeypatch.setattr("multipde.studies.bench.finishing._measured", lambda *_: pytest.fail("measured again"))
    again = finish_study(tmp_path / "net", ("shapes", OPTIONS), tmp_path / "rows.jsonl", **given)
    assert again == rows
    points = {(x, y) for line in figures[-1].axes[0].lines for x, y in zip(*line.get_data(), strict=True)}
    assert points == {(r["images"], 100 * r["accuracy"]) for r in rows}


def test_all_ways_to_larger_images(tmp_path, figures):
    data = load_data("shapes", size=16, **OPTIONS)
    torch.manual_seed(0)
    net = PDENet(NetworkConfig("hamiltonian", (4,), 8, steps=1, size=8, class_names=data.class_names))
    with torch.no_grad():
        net.classifier.weight.mul_(1000)
    save(net, tmp_path / "net")
    given = {"images": (50,), "arms": ("labels",), "learned": 50, "device": "cpu"}
    rows = finish_study(
        tmp_path / "net", ("shapes", OPTIONS), tmp_path / "rows.jsonl", size=16, ways=tuple(WAYS), **given
    )
    assert [r["way"] for r in rows] == list(WAYS)
    before = {r["way"]: r["before"] for r in rows}
    assert before["detail"] == rows[0]["teacher"]  # the same answers
    assert len({line.get_label() for line in figures[-1].axes[0].lines}) == len(WAYS)


def test_a_detail_needs_a_multiple_of_the_size(tmp_path):
    torch.manual_seed(0)
    save(PDENet(NetworkConfig("hamiltonian", (4,), 8, steps=1, size=8)), tmp_path / "net")
    for size in (4, 12):
        with pytest.raises(ValueError, match=f"size must be a multiple of 8 .*, got {size}"):
            finish_study(tmp_path / "net", None, tmp_path / "rows.jsonl", size=size, ways=("detail",))


def test_the_table_has_means_over_seeds():
    shared = {"images": 500, "learned": 40000, "before": 0.5}
    rows = [{**shared, "way": "copy", "arm": "answers", "seed": k, "accuracy": 0.6 + 0.1 * k} for k in (0, 1)]
    assert finish_table(rows) == [
        {"way": "copy", "images": "500", "seen": "40,000", "moved": "50.00 ± 0.00", "answers": "65.00 ± 7.07"}
        | dict.fromkeys(list(ARMS)[1:], "-")
    ]


def test_an_unknown_arm_is_named(tmp_path):
    with pytest.raises(ValueError, match="arms must be among answers, .*, got 'guess'"):
        finish_study(tmp_path, None, tmp_path / "rows.jsonl", arms=("guess",))
    with pytest.raises(ValueError, match="ways must be among copy, calibrated, detail, a trous, got 'galerkin'"):
        finish_study(tmp_path, None, tmp_path / "rows.jsonl", ways=("galerkin",))
