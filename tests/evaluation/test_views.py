"""Two views of an image: the mean of the scores of the image and of its mirror image, reported apart."""

import pytest
import torch
from PIL import Image
from torch import nn

from multipde import NetworkConfig, PDENet, evaluate, load_data, predict, save
from multipde.cli.main import main
from multipde.data.feed import Feed
from multipde.evaluation.sizes import evaluate_sizes
from multipde.evaluation.views import TwoViews, with_views
from multipde.networks.inputs import Normalize
from multipde.runtime.device import Compute

OPTIONS = {"num_train": 40, "num_test": 30}


@pytest.fixture(scope="module")
def data():
    return load_data("shapes", size=8, **OPTIONS)


@pytest.fixture(scope="module")
def net(data) -> nn.Module:
    torch.manual_seed(0)
    return PDENet(NetworkConfig("second_order", (4, 6), 8, steps=2, size=8, class_names=data.class_names)).eval()


def test_a_symmetric_image_has_the_same_scores_and_a_mirrored_one_those_of_the_image(net):
    x, both = torch.randn(3, 3, 8, 8), TwoViews(net)
    symmetric = x + x.flip(-1)
    torch.testing.assert_close(both(symmetric), net(symmetric))
    assert torch.equal(both(x.flip(-1)), both(x))
    torch.testing.assert_close(both(x), (net(x) + net(x.flip(-1))) / 2)
    assert not torch.allclose(both(x), net(x))
    assert with_views(net, 1) is net
    with pytest.raises(ValueError, match="views must be 1 or 2, got 3"):
        with_views(net, 3)


def test_evaluate_with_two_views_costs_twice_and_does_not_touch_the_plain_figure(net, data):
    plain, both = (evaluate(net, data, device="cpu", views=v) for v in (1, 2))
    assert evaluate(net, data, device="cpu").loss == plain.loss
    assert both.flops == 2 * plain.flops
    assert both.loss != plain.loss
    ((x, labels),) = Feed(data.test, Normalize.of(net.multipde_spec), Compute.of("cpu")).evaluation(None, 8)
    assert both.loss == pytest.approx(nn.functional.cross_entropy(TwoViews(net)(x), labels).item(), rel=1e-5)


@pytest.mark.usefixtures("few_shapes")
def test_the_command_prints_a_row_for_each(net, tmp_path, capsys):
    save(net, tmp_path / "net")
    plain = evaluate_sizes(tmp_path / "net", ("shapes", OPTIONS), sizes=(8, 4), device="cpu")
    found = evaluate_sizes(tmp_path / "net", ("shapes", OPTIONS), sizes=(8, 4), device="cpu", views=2)
    assert [r.get("views") for r in found] == [None, 2, None, 2]
    for a, b in zip(plain, found[::2], strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {k: v for k, v in b.items() if "second" not in k}
    main(["evaluate", str(tmp_path / "net"), "--data", "shapes", "--num-images", "20", "--views", "2"])
    assert "-, 2 views" in capsys.readouterr().out


def test_predictions_of_an_image_and_of_its_mirror_image_agree(net, tmp_path):
    save(net, tmp_path / "net")
    pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:, ::-1].copy()).save(tmp_path / "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    one, other = (p.probabilities for p in predict(tmp_path / "net", files, device="cpu", views=2))
    assert one == pytest.approx(other, abs=1e-6)
    one, other = (p.probabilities for p in predict(tmp_path / "net", files, device="cpu"))
    assert one != pytest.approx(other, abs=1e-4)
