"""Networks that users have changed, wrapped or put into another precision are copied and used as they are."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from multipde import (
    NetworkConfig,
    PDENet,
    convert,
    convert_,
    describe,
    evaluate,
    export,
    load,
    predict,
    recalibrate,
    reparametrize,
    save,
    set_mesh_size,
    transfer_stencil,
    with_detail,
)
from multipde.networks.all_sizes import share
from multipde.networks.folding import folded, is_as_made
from multipde.networks.plain import PlainNet


class Net(nn.Module):
    """A classifier with BatchNorm and dropout."""

    def __init__(self, conv: nn.Module | None = None, **options):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 8, 3, padding=1, **options), nn.BatchNorm2d(8)
        self.conv2 = conv or nn.Conv2d(8, 8, 3, padding=1, **options)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)
        self.seen = {}

    def forward(self, x):
        y = functional.relu(self.bn(self.conv1(x)))
        return self.fc(self.drop(functional.relu(self.conv2(y)).mean((2, 3))))


def described(**options):
    return describe(Net(**options), size=16, classes=4)


def pde_net(**options):
    return PDENet(NetworkConfig("parabolic", (4, 8), 8, steps=2, size=16, classes=4, **options))


IMAGES = torch.rand(4, 3, 16, 16)


def probabilities(predictions):
    return torch.tensor([list(p.probabilities.values()) for p in predictions])


@pytest.mark.parametrize("make", [described, pde_net])
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_network_in_training_mode_predicts_as_in_evaluation_and_stays(make, amp):
    net = make().train()
    before = copy.deepcopy(net.state_dict())
    first, again = (probabilities(predict(net, IMAGES, amp=amp, device="cpu")) for _ in range(2))
    assert torch.equal(first, again)
    one = probabilities([predict(net, image, amp=amp, device="cpu")[0] for image in IMAGES])
    torch.testing.assert_close(first, one, rtol=0.02 if amp == "bf16" else 1e-5, atol=1e-6)
    assert net.training
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items() if isinstance(v, torch.Tensor))


def test_a_forward_that_holds_another_module_is_refused_where_it_would_be_copied():
    net = described()
    net.forward = torch.autocast("cpu", torch.bfloat16)(net.forward)
    line = "forward must be the method of its module where that is copied, got .* of Net; type del module.forward"
    for call in (lambda: convert(net, size=32), lambda: with_detail(net, 2), lambda: predict(net, IMAGES)):
        with pytest.raises(ValueError, match=line):
            call()
    del net.forward
    net.fc.forward = functional.relu  # a function without a module is copied
    assert convert(net, size=32)(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_a_compiled_network_is_saved_as_the_network_inside(tmp_path):
    net = described()
    save(torch.compile(net, backend="eager"), tmp_path / "net")
    loaded = load(tmp_path / "net", model=Net())
    assert torch.equal(loaded(IMAGES), net.eval()(IMAGES))


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as some networks of timm do."""

    def forward(self, x):
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def test_an_opening_that_computes_something_else_gets_no_detail():
    net = Net()
    net.conv1 = Padded(3, 8, 3)
    with pytest.raises(ValueError, match="detail must be 1 where the opening has a forward of its own, got Padded in"):
        with_detail(net, 2, example=IMAGES)


CHANGES = {
    "another classifier": lambda n: setattr(n, "classifier", nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 4))),
    "an activation": lambda n: n.opening.__setitem__(2, nn.Sigmoid()),
    "another norm": lambda n: n.connectors[0].__setitem__(1, nn.GroupNorm(2, 8)),
    "no statistics": lambda n: n.opening.__setitem__(1, nn.BatchNorm2d(4, track_running_stats=False)),
    "a hook": lambda n: n.register_forward_hook(lambda module, inputs, scores: scores / 2),
    "weight norm": lambda n: nn.utils.parametrizations.weight_norm(n.classifier),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_network_is_used_with_its_changes(change, shapes_of_four_classes):
    net = pde_net()
    assert is_as_made(net)
    assert isinstance(folded(net), PlainNet)
    change(net)
    net.eval()
    assert not is_as_made(net)
    with torch.no_grad():
        expected = net(IMAGES.mul(255).round() / 255).softmax(1)
    torch.testing.assert_close(probabilities(predict(net, IMAGES, device="cpu")), expected, rtol=1e-4, atol=1e-5)
    assert evaluate(net, shapes_of_four_classes, device="cpu").num_images == 8


@pytest.fixture
def shapes_of_four_classes():
    images, labels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), torch.arange(8) % 4
    return (images, labels), (images, labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [described, pde_net])
def test_another_precision(make, dtype, shapes_of_four_classes, tmp_path):
    net = make().to(dtype)
    assert len(predict(net, IMAGES, device="cpu")) == 4
    assert evaluate(net, shapes_of_four_classes, device="cpu").num_images == 8
    moved = convert(net, size=32, calibration=torch.rand(4, 3, 32, 32, dtype=torch.float64), method="calibrated")
    assert {p.dtype for p in moved.parameters()} == {dtype}
    export(net, tmp_path / "net.pt2", format="pt2")


def test_circular_padding_moves():
    net = described(padding_mode="circular")
    new = convert(net, size=32, method="rediscretize")
    for name in ("conv1", "conv2"):
        moved = transfer_stencil(net.get_submodule(name).weight, "rediscretize", 2.0)
        torch.testing.assert_close(new.get_submodule(name).weight, moved)
    assert new(torch.rand(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_results_of_a_forward_pass_that_a_module_keeps_are_no_obstacle():
    net = described(conv=nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1)))
    net.bn.register_forward_hook(lambda module, inputs, result: net.seen.update(y=result))
    net(IMAGES)
    assert len(predict(net, IMAGES, device="cpu")) == 4
    with pytest.warns(UserWarning, match="conv2 .parametrised otherwise."):
        assert convert(net, size=32)(torch.rand(1, 3, 32, 32)).shape == (1, 4)


def test_more_steps_keep_what_is_frozen_and_the_class():
    class Own(PDENet):
        """Scores twice as large."""

        def forward(self, x):
            return 2 * super().forward(x)

    net = Own(pde_net().config)
    for p in net.blocks[0].parameters():
        p.requires_grad_(False)
    new = convert(net, steps=4)
    assert type(new) is Own
    assert not any(p.requires_grad for p in new.blocks[0].parameters())
    assert all(p.requires_grad for p in new.blocks[1].parameters())
    assert new.config.block_steps == (4, 4) == tuple(block.steps for block in new.blocks)


def test_what_is_changed_in_inference_mode_can_be_trained():
    net = described()
    reparametrize(net, 1 / 16)
    with torch.inference_mode():
        set_mesh_size(net, 1 / 32)
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    net, optimizer = pde_net(), None
    optimizer = torch.optim.Adam(net.parameters())
    net(IMAGES).sum().backward()
    optimizer.step()
    with torch.inference_mode():
        convert_(net, size=32, detail=2, optimizer=optimizer, method="rediscretize")
        other = with_detail(pde_net(), 2)
    for each in (net, other):
        each(torch.rand(2, 3, *each.config.image_sizes)).sum().backward()
    optimizer.step()


def test_numbers_of_numpy_are_stored(tmp_path):
    net = describe(Net(), size=np.int64(16), classes=np.int64(4), mean=[np.float32(0.5)] * 3, std=(np.float64(1),) * 3)
    assert load(save(net, tmp_path / "net"), model=Net()).multipde_spec.mean == (0.5, 0.5, 0.5)


def test_a_weight_that_stands_in_a_skipped_layer_too_is_refused():
    layers = [nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))]
    layers[2].weight = layers[1].weight
    net = describe(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=8, classes=4)
    with pytest.raises(ValueError, match="layers must not share a weight, got '1' and '2' with the same one"):
        convert(net, size=16, method="rediscretize", skip="2")
    moved = convert(net, size=16, method="rediscretize", skip=("1", "2"))
    assert torch.equal(moved[2].weight, layers[2].weight)


def test_a_description_is_pickled_with_its_module():
    net = described().eval()
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert type(again.multipde_spec.build()) is Net


def test_moments_by_rows_and_columns_are_told_and_begin_anew():
    net = described()
    optimizer = torch.optim.Adafactor(net.parameters())
    net(IMAGES).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="parameters begin without the state of Adafactor, of which no rule maps"):
        convert_(net, size=32, optimizer=optimizer, method="rediscretize")
    assert not optimizer.state[net.conv1.weight]
    assert "row_var" in optimizer.state[net.fc.weight]
    net(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()


def test_parameters_of_other_shapes_are_not_shared():
    nets = [nn.Sequential(nn.Linear(num, 4)) for num in (8, 16)]
    with pytest.raises(ValueError, match="must share their parameters, got the shapes .4, 8. and .4, 16. of 0.weight"):
        share(nets)


@pytest.mark.parametrize(
    ("head", "got"), [(nn.Linear(8, 5), r"shape \(4, 5\)"), (nn.Unflatten(1, (4, 2)), r"shape \(4, 4, 2\)")]
)
def test_scores_of_another_shape_are_told(head, got):
    net = described()
    net.fc = head
    with pytest.raises(ValueError, match=rf"model must give scores \(N, 4\), .* got {got}"):
        predict(net, IMAGES, device="cpu")


def test_a_composed_opening_moves_as_the_plain_one_does_with_its_reaction():
    for reaction in ("121", "141"):
        net = PDENet(NetworkConfig("hamiltonian", (4, 6), 5, size=8, reaction=reaction))
        first = with_detail(convert(net, factor=2, method="rediscretize"), 2)
        second = convert(with_detail(net, 2), factor=2, method="rediscretize")
        torch.testing.assert_close(second.opening[0].weight, first.opening[0].weight)


class ByName(Net):
    """The same network, whose layers are called by the names of their arguments."""

    def forward(self, x):
        y = functional.relu(self.bn(input=self.conv1(input=x)))
        return self.fc(input=self.drop(functional.relu(self.conv2(input=y)).mean((2, 3))))


def test_layers_may_be_called_by_the_names_of_their_arguments():
    nets = [described(), describe(ByName(), size=16, classes=4)]
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.rand(40, 3, 32, 32)
    moved = [convert(net, size=32, calibration=images) for net in nets]
    for net in moved:
        recalibrate(net, [images])
    first, second = (net.state_dict() for net in moved)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv2.weight"], nets[0].state_dict()["conv2.weight"])
    assert torch.equal(*(with_detail(net, 2).conv1.weight for net in nets))


class KeepsGradients(torch.optim.SGD):
    """Keeps a list of the gradients of every parameter."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("history", []).append(p.grad.clone())
        return super().step(closure)


def test_a_list_in_the_state_of_an_optimizer_is_told_and_begins_anew():
    net = described()
    optimizer = KeepsGradients(net.parameters(), lr=0.1)
    net(IMAGES).sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="begin without the state of KeepsGradients, of which no rule maps history"):
        convert_(net, size=32, optimizer=optimizer, method="rediscretize")
    assert "history" not in optimizer.state[net.conv1.weight]
    assert len(optimizer.state[net.fc.weight]["history"]) == 1
