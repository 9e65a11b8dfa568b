"""Corruptions and attacks by their definitions, and what is counted under them."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportArgumentType=false

import json
import math
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde import NetworkConfig, PDENet, convert, corrupt, evaluate, fgsm, load_data, pgd, robustness, save
from multipde.data.batches import drawn_indices
from multipde.evaluation import robustness as module
from multipde.evaluation.attacks import random_start
from multipde.evaluation.corruptions import CORRUPTIONS
from multipde.evaluation.robustness import ATTACKS, FGSM, PGD, pixel_scores
from multipde.networks.inputs import Normalize
from multipde.studies.robustness_study import compare_robustness
from multipde.studies.robustness_tables import tables


def pixels(num: int = 6, size: int = 16) -> torch.Tensor:
    return torch.rand(num, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_none_changes_nothing_and_pixels_stay_pixels(name):
    x, c = pixels(), CORRUPTIONS[name]
    assert torch.equal(corrupt(x, name, c.none), x)
    for strength in c.strengths:
        y = corrupt(x, name, strength)
        assert y.min() >= 0
        assert y.max() <= 1
        assert not torch.equal(y, x)
        assert y.shape == x.shape


def test_noise_has_its_deviation_and_belongs_to_the_image():
    x = torch.full((8, 3, 32, 32), 0.5, dtype=torch.float64)
    n = corrupt(x, "noise", 0.1, indices=torch.arange(10, 18)) - x
    assert n.std().item() == pytest.approx(0.1, rel=0.02)
    assert n.mean().abs() < 0.003
    torch.testing.assert_close(corrupt(x, "noise", 0.05, indices=torch.arange(10, 18)) - x, n / 2)
    assert torch.equal(corrupt(x[:2], "noise", 0.1, indices=torch.tensor([17, 10])) - x[:2], n[[7, 0]])
    assert not torch.equal(corrupt(x, "noise", 0.1, indices=torch.arange(10, 18), seed=1) - x, n)


def test_blur_is_a_gaussian_that_keeps_constants():
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1
    y = corrupt(x, "blur", 2.0)[0, 0]
    assert y[16, 16].item() == pytest.approx(1 / (2 * math.pi * 4), rel=0.02)
    assert (y[16, 18] / y[16, 16]).item() == pytest.approx(math.exp(-0.5), rel=1e-6)
    constant = torch.full((1, 3, 8, 8), 0.7, dtype=torch.float64)
    torch.testing.assert_close(corrupt(constant, "blur", 3.0), constant)


def test_contrast_keeps_the_mean_and_scales_what_deviates():
    x = pixels()
    y = corrupt(x, "contrast", 0.25)
    axes = (1, 2, 3)
    torch.testing.assert_close(y.mean(axes), x.mean(axes))
    torch.testing.assert_close(y.std(axes), x.std(axes) / 4)


@pytest.mark.parametrize("amount", [0.5, 1.0, 1.25, 2.0])
def test_a_shift_is_exact_on_linear_functions_and_mirrors_the_border(amount):
    line = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x = line.view(1, 1, 9, 1).expand(1, 2, 9, 9)
    y, step = corrupt(x, "shift", amount), 0.1
    torch.testing.assert_close(y[..., 2:, :], x[..., 2:, :] - amount * step)
    torch.testing.assert_close(y, corrupt(x.mT, "shift", amount).mT)
    if amount == 2:
        torch.testing.assert_close(y[0, 0, :2, 0], line[[2, 1]])


def linear_problem() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A linear classifier of two classes, and images far enough inside [0, 1]."""
    net = nn.Linear(48, 2).double()
    x = 0.3 + 0.4 * pixels(200, 4)
    return net, x, (net(x.flatten(1)).argmax(1) + (torch.rand(200) < 0.2)) % 2


def margins(net: nn.Linear, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    scores = net(x.flatten(1))
    own = labels.view(-1, 1)
    return (scores.gather(1, own) - scores.gather(1, 1 - own))[:, 0].detach()


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.05])
def test_of_a_linear_classifier_fgsm_is_the_worst_case_and_pgd_reaches_it(eps):
    net, x, labels = linear_problem()
    length = (net.weight[0] - net.weight[1]).abs().sum().detach()
    exact = margins(net, x, labels) - eps * length
    for attacked in (
        fgsm(lambda v: net(v.flatten(1)), x, labels, eps),
        pgd(lambda v: net(v.flatten(1)), x, labels, eps, start=random_start(x)),
    ):
        torch.testing.assert_close(margins(net, attacked, labels), exact)
        right = (net(attacked.flatten(1)).argmax(1) == labels).double().mean()
        assert right.item() == (exact > 0).double().mean().item()


def curved() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(1152, 5))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net.double()


def test_attacks_stay_in_the_ball_and_many_steps_are_no_weaker():
    net, x, eps = curved(), pixels(), 0.1
    labels = net(x).argmax(1)
    one, many = fgsm(net, x, labels, eps), pgd(net, x, labels, eps, num_steps=40, start=random_start(x))
    for attacked in (one, many):
        assert bool(((attacked >= x - eps) & (attacked <= x + eps)).all())
        assert bool(((attacked >= 0) & (attacked <= 1)).all())
    losses = [functional.cross_entropy(net(v), labels).item() for v in (x, one, many)]
    assert losses[0] < losses[1] < losses[2]
    assert torch.equal(pgd(net, x, labels, eps, num_steps=1, step_size=eps), one)
    assert torch.equal(pgd(net, x, labels, 0.0, start=random_start(x)), x)
    assert all(p.grad is None for p in net.parameters())


def test_starts_belong_to_the_image():
    x = pixels()
    start = random_start(x, torch.arange(6))
    assert start.abs().max() <= 1
    assert start.std().item() == pytest.approx(3**-0.5, rel=0.03)
    assert torch.equal(random_start(x[:1], torch.tensor([4])), start[4:5])


def test_wrong_input_is_named():
    x, labels = pixels(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="name must be one of noise, blur, contrast, shift, got 'rain'"):
        corrupt(x, "rain", 1.0)
    with pytest.raises(ValueError, match="strength must not be negative, got -1.0"):
        corrupt(x, "blur", -1.0)
    with pytest.raises(ValueError, match=r"images must have shape \(N, C, height, width\), got \(3, 16, 16\)"):
        corrupt(x[0], "blur", 1.0)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\], got .*; normalise them inside the model"):
        fgsm(curved(), x - 0.5, labels, 0.1)
    with pytest.raises(ValueError, match="eps must not be negative, got -0.1"):
        pgd(curved(), x, labels, -0.1)
    with pytest.raises(ValueError, match="num_steps must be positive, got 0"):
        pgd(curved(), x, labels, 0.1, num_steps=0)


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", size=8, num_train=60, num_test=50)


def network(data, dynamics: str = "parabolic", seed: int = 0) -> PDENet:
    torch.manual_seed(seed)
    config = NetworkConfig(
        dynamics, (4, 6), 8, steps=2, size=8, mean=data.mean, std=data.std, class_names=data.class_names
    )
    net = PDENet(config)
    net.train()(Normalize(data.mean, data.std)(data.train.images.float()))  # BatchNorm has seen the images
    return net.eval()


def test_in_inference_mode_it_works_and_the_network_can_be_trained_afterwards(data):
    net = PDENet(NetworkConfig("hamiltonian", (4, 6), 6, steps=1, size=data.size, classes=len(data.class_names)))
    expected = robustness(net, data, num_images=4, device="cpu")
    with torch.inference_mode():
        assert robustness(net, data, num_images=4, device="cpu") == expected
        x, labels = pixels(2), torch.tensor([0, 1])
        assert (pgd(net, x.float(), labels, 1 / 255) - x).abs().max() > 0
    net(pixels(2, data.size).float()).sum().backward()


def test_of_no_right_image_there_is_no_ratio(data, tmp_path):
    row = {"checkpoint": "a", "dynamics": "x", "clean": 0.0, "accuracy": {"noise": [[0.02, 0.5]]}}
    row |= {"num_images": 2, "data": "d", "growth": [], "energy": []}
    (table,) = tables([row]).values()
    assert table[1]["a"] == "50.00 (-)"
    (table,) = tables([row, row | {"checkpoint": "b", "clean": 1.0}], "dynamics").values()
    assert table[1]["x"] == "50.00 ± 0.00 (0.50)"


def test_what_is_counted(data, monkeypatch):
    net = network(data, "hamiltonian")
    found = robustness(net, data, device="cpu", num_images=40)
    assert found.clean == evaluate(net, data, device="cpu", num_images=40).accuracy
    chosen = drawn_indices(50, 40, (0, "test"))
    x, labels = data.test.images[chosen].float() / 255, data.test.labels[chosen]
    scores = pixel_scores(net)
    torch.testing.assert_close(scores(x), net(Normalize(data.mean, data.std)(255 * x)))

    def accuracy(images: torch.Tensor) -> float:
        return (scores(images).argmax(1) == labels).float().mean().item()

    for name in CORRUPTIONS:
        for strength, value in found.accuracy[name]:
            assert value == pytest.approx(accuracy(corrupt(x, name, strength, indices=chosen)), abs=1e-6)
    for eps, value in found.accuracy[FGSM]:
        assert value == pytest.approx(accuracy(fgsm(scores, x, labels, eps / 255)), abs=1e-6)
    attacked = pgd(scores, x, labels, ATTACKS[PGD][0] / 255, start=random_start(x, chosen))
    standing = (scores(attacked).argmax(1) == labels) & (scores(x).argmax(1) == labels)
    assert found.accuracy[PGD][0][1] == pytest.approx(standing.float().mean().item(), abs=1e-6)
    path = [found.clean, *(value for _, value in found.accuracy[PGD])]
    assert path == sorted(path, reverse=True)
    assert [g.block for g in found.growth] == [0, 1]
    assert [(e.block, e.time) for e in found.energy] == [(k, 1.0 * j) for k in (0, 1) for j in range(3)]
    monkeypatch.setattr(module, "BATCH", 7)
    again = robustness(net, data, device="cpu", num_images=40)
    assert again.accuracy == found.accuracy
    assert robustness(network(data), data, device="cpu", num_images=5).energy == []


@pytest.mark.usefixtures("one_strength")
def test_several_checkpoints_in_one_table_and_figure_measured_once(data, tmp_path):
    names = {"a": ("parabolic", 0), "b": ("parabolic", 1), "c": ("second_order", 0)}
    places = [save(network(data, *given), tmp_path / name) for name, given in names.items()]
    out, plot = tmp_path / "rows.jsonl", tmp_path / "figure.svg"
    arguments = {"num_images": 20, "device": "cpu", "out": out}
    first = compare_robustness(places[:2], (data, {}), **arguments)
    rows = compare_robustness(places, (data, {}), by="dynamics", plot=plot, **arguments)
    assert json.loads(json.dumps(rows[:2])) == json.loads(json.dumps(first))
    assert len(out.read_text().splitlines()) == 3
    assert plot.read_text().startswith("<?xml")
    accuracy, growth, energy = tables(json.loads(json.dumps(rows)), "dynamics").values()
    clean = [100 * row["clean"] for row in rows]
    assert accuracy[0] == {
        "name": "clean",
        "parabolic": f"{statistics.mean(clean[:2]):.2f} ± {statistics.stdev(clean[:2]):.2f}",
        "second_order": f"{clean[2]:.2f}",
    }
    last = rows[2]["accuracy"]["noise"][0]
    assert accuracy[1]["name"] == f"noise, σ / pixel range {last[0]:g}"
    assert accuracy[1]["second_order"] == f"{100 * last[1]:.2f} ({last[1] / rows[2]['clean']:.2f})"
    assert [(g["name"], g["block"]) for g in growth] == [
        ("parabolic", "0"), ("parabolic", "1"), ("second_order", "0"), ("second_order", "1")
    ]  # fmt: skip
    assert growth[2]["worst"] == f"{max(rows[2]['growth'][0]['worst']):.3g}"
    energies = [e["energy"] for e in rows[2]["energy"] if e["block"] == 1]
    ratios = {f"step {j}": f"{e / energies[0]:.2f}" for j, e in enumerate(energies)}
    assert energy[1] == {"name": "second_order", "block": "1"} | ratios
    by_name = tables(json.loads(json.dumps(rows)))
    assert list(next(iter(by_name.values()))[0]) == ["name", "a", "b", "c"]


def test_what_cannot_be_compared_is_named(data, tmp_path):
    net = network(data)
    places = [save(net, tmp_path / "a"), save(convert(net, size=16), tmp_path / "b")]
    with pytest.raises(ValueError, match="checkpoints must have one size to be compared, got 8 and 16"):
        compare_robustness(places, (data, {}))
    with pytest.raises(ValueError, match="checkpoints must name at least one, got none"):
        compare_robustness([], (data, {}))
    with pytest.raises(ValueError, match="by must be one of checkpoint, dynamics, got 'seed'"):
        compare_robustness(places, (data, {}), by="seed")
    with pytest.raises(ValueError, match="data must be given for .*a, which does not name its own"):
        compare_robustness(places, None)
    with pytest.raises(ValueError, match="plot must end in one of .png, .svg, .pdf"):
        compare_robustness(places, (data, {}), plot=tmp_path / "figure.txt")
