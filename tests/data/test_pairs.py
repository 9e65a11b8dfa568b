"""What users give for training and test images: the right labels and classes, or one line that says what to type."""

from collections import namedtuple
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from multipde import ImageData, Level, NetworkConfig, Schedule, TrainSettings, evaluate, load_data, train
from multipde.data.images import TensorImages
from multipde.data.labels import whole_labels

X = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
ARRAYS = X.permute(0, 2, 3, 1).numpy()
NAMES = ("ant", "bee", "cat")


class Items(Dataset):
    """A data set of these items, with these attributes."""

    def __init__(self, items, **attributes):
        self.items = list(items)
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def items(labels=None, **attributes):
    labels = Y.tolist() if labels is None else labels
    return Items(zip((Image.fromarray(a) for a in ARRAYS), labels, strict=True), **attributes)


def names_of(labels):
    return [NAMES[k] for k in labels]


Feature = namedtuple("Feature", "names")
SETS: dict[str, Any] = {
    "tensors": (X, Y),
    "arrays": (ARRAYS, Y.numpy()),
    "lists": (list(X), Y.tolist()),
    "pictures and names": ([Image.fromarray(a) for a in ARRAYS], names_of(Y)),
    "labels (N, 1)": (X, Y[:, None]),
    "labels as floats": (X.float() / 255, Y.float()),
    "labels in bfloat16": (X, Y.bfloat16()),
    "labels as 0-d tensors": (list(X), list(Y)),
    "unsigned labels": (X, Y.to(torch.uint16)),
    "a list of lists": [list(ARRAYS), Y.tolist()],
    "a dictionary": {"image": X, "label": Y},
    "an array of names": (ARRAYS, np.array(names_of(Y))),
    "data set": items(),
    "data set with names": items(classes=NAMES),
    "data set of names": items(names_of(Y), classes=list(NAMES)),
    "data set of dictionaries": Items({"img": a, "label": k} for a, k in zip(ARRAYS, Y.tolist(), strict=True)),
    "Hugging Face": Items(
        ({"image": a, "label": k, "id": 7} for a, k in zip(ARRAYS, Y.tolist(), strict=True)),
        features={"image": None, "label": Feature(NAMES)},
    ),
    "labels of shape (1,)": items([np.array([k]) for k in Y.tolist()]),
    "labels as NumPy numbers": items([np.int16(k) for k in Y.tolist()]),
    "tensor data set": TensorDataset(X, Y),
    "a list of pairs": list(zip(X, Y.tolist(), strict=True)),
    "synonyms": items(classes=[("ant", "emmet"), ("bee",), ("cat",)], class_to_idx={"ant": 0, "emmet": 0, "bee": 1}),
}


@pytest.mark.parametrize("kind", SETS)
def test_all_these_are_the_same_images_with_the_same_labels(kind):
    data = load_data((SETS[kind], SETS[kind]))
    for part in (data.train, data.test):
        assert torch.equal(part.images, X)  # pyright: ignore[reportAttributeAccessIssue]
        assert torch.equal(part.labels, Y)
    numbers = kind in ("data set of dictionaries", "labels of shape (1,)", "labels as NumPy numbers", "data set")
    named = ("ant, emmet", "bee", "cat") if kind == "synonyms" else NAMES
    if "name" in kind or kind in ("Hugging Face", "synonyms"):
        assert data.class_names == named
    elif numbers:
        assert data.class_names == ("0", "1", "2")
    assert data.notes == ()


def test_two_items_are_a_data_set_and_two_lists_are_images_with_labels():
    pairs = [(X[0], 1), (X[1], 0)]
    for part in (pairs, tuple(pairs), ([X[0], X[1]], [1, 0]), (X[:2], [1, 0]), (X[:2].numpy(), np.array([1, 0]))):
        data = load_data((part, part))
        assert data.train.labels.tolist() == [1, 0]
        assert torch.equal(data.train.images, X[:2])  # pyright: ignore[reportAttributeAccessIssue]


def test_parts_of_data_sets_keep_the_names_of_the_whole():
    named = items(classes=NAMES)
    for part in (Subset(named, range(4)), Subset(Subset(named, range(5)), range(3)), ConcatDataset([named, named])):
        assert load_data((part, items())).class_names == NAMES
    assert load_data((items(), Subset(named, range(4)))).class_names == NAMES  # one side names them


ONE_HOT = torch.eye(3)[Y]
REFUSED: list[tuple[Any, str]] = [
    (items([1.4] * 6), "^train item 0 must be an image with a whole number as label, got ValueError: label 1.4$"),
    (items([None] * 6), "^train item 0 .*: label None$"),
    (items([float("nan")] * 6), "^train item 0 .*: label nan$"),
    (items([float("inf")] * 6), "^train item 0 .* OverflowError"),
    (items([-1] * 6), "^train item 0 labels must lie in 0..999999, got -1$"),
    (items([3] * 6, classes=NAMES), "^train item 0 labels must lie in 0..2, got 3$"),
    (items([1j] * 6), "^train item 0 .*: label 1j$"),
    (items([Fraction(1, 2)] * 6), "^train item 0 .*: label 1/2$"),
    (items(["dog"] * 6, classes=NAMES), "or names out of ant, bee, cat, got 'dog'$"),
    (
        items(["ant"] * 6),
        "^train item 0 labels must be whole numbers or a data set must name its `classes`, got 'ant'$",
    ),
    (items(list(ONE_HOT)), r"^train item 0 .*: label of shape \(3,\); give the number of the class, e.g. by argmax$"),
    (items([{"boxes": []}] * 6), "^train item 0 .*: label {'boxes': .*$"),
    ((X, ONE_HOT), r"^train labels must be one number per image, got shape \(6, 3\); type labels.argmax\(1\)$"),
    ((X, Y.float() + 0.4), "^train labels must be whole numbers, got 0.4$"),
    ((X, Y / 0), "^train labels must be whole numbers, got nan$"),
    ((X, (Y + 1) / 0), "^train labels must lie in 0..999999, got inf$"),
    ((X, [0, 1, 1.4, 0, 1, 2]), "^train labels must be whole numbers, got label 1.4$"),
    ((X, [0, 1, "2", 0, 1, 2]), "^train labels must be whole numbers or a data set must name"),
    ((X, Y * 10**9), "^train labels must lie in 0..999999, got 1000000000$"),
    ((X, Y.to(torch.complex64)), "^train labels must be whole numbers, got complex64$"),
    ((X, Y[:4]), r"^train must hold images .* and as many labels, got \(6, 3, 8, 8\) and 4$"),
    (X, r"^train must be a pair \(images, labels\), got the images alone$"),
    ((X, Y, Y), "^train item 0 must be an image .* ValueError: train item 0 must be a pair"),
    ((X[:, 0], Y), r"^train images must be \(N, C, H, W\), got \(6, 8, 8\); type images\[:, None\]"),
    (
        {"image": X, "labels": Y, "target": Y},
        "^train must have one entry 'image' and one 'label', got image, labels, target$",
    ),
    ({"pixels": X}, "^train must have one entry 'image' and one 'label', got pixels$"),
    (
        Items(zip(X, Y.tolist(), Y.tolist(), strict=True)),
        "^train item 0 .* dictionary with these entries, got 3 entries$",
    ),
    (Items(X), "^train item 0 .* dictionary with these entries, got Tensor$"),
    (
        Items([(X[0], 0), (X[1, :1], 1)]),
        r"^train images must have one number of channels, got 1 and 3; type image.conv",
    ),
    (Items([(X[0], 0), (X[1, :, :4], 1)]), "^train images must have one shape, got .*; add a Resize transform$"),
    (Items([("a.png", 0)]), "^train item 0 must be a Pillow image, a tensor or an array, got str$"),
    (DataLoader(TensorDataset(X, Y)), "^train must be a data set, got a DataLoader; type loader.dataset$"),
    (iter([(X[0], 0)]), "^train must be a data set whose images can be read in any order, got list_iterator, which"),
    (items(classes={"ant": 0}), "^train classes must be a list of names in the order of the labels, got "),
    (items(classes=NAMES, class_to_idx={"ant": 2, "bee": 1, "cat": 0}), "got 'ant' at 0, where class_to_idx has 2$"),
    (
        ConcatDataset([items(classes=NAMES), items(classes=NAMES[::-1])]),
        "^train set 0 and train set 1 must have the same",
    ),
    ("train", "^train must be a data set or .images, labels. tensors, got str$"),
    ((X[:, 0, :, :5], Y), r"^train and test images must have one shape, got \(8, 5\) and \(3, 8, 8\)$"),
    ((X, None), r"^train labels must be one number per image, got shape \(\)$"),
    ((X, np.array([0, 1, None, 0, 1, 2], dtype=object)), "^train labels must be whole numbers, got label None$"),
    ((X, np.ma.masked_equal(Y.numpy(), 2)), "^train labels must be whole numbers, got masked ones$"),
    ((np.ma.masked_greater(ARRAYS, 200), Y), "^train images must have all their pixels, got masked ones$"),
    ((X[:, :0], Y), r"^train must hold images .*, got \(6, 0, 8, 8\) and 6$"),
    ((X[..., :0, :0], Y), r"^train must hold images .*, got \(6, 3, 0, 0\) and 6$"),
    (Items, "^train must be a data set with a length, got object of type 'type' has no len"),
    (None, "^train must be a data set or .images, labels. tensors, got NoneType$"),
]


@pytest.mark.parametrize(("part", "message"), REFUSED)
def test_what_may_mean_something_else_is_refused_before_a_directory_is_made(part, message, tmp_path):
    net = NetworkConfig("parabolic", (2,), 2, steps=1, size=8)
    with pytest.raises(ValueError, match=message) as refusal:
        train(net, Schedule([Level(8, 1, batch=2)]), (part, (X, Y)), tmp_path / "run", quiet=True)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_signals_and_volumes_are_no_images_to_train_on(tmp_path):
    net, plan = NetworkConfig("parabolic", (2,), 2, steps=1, size=8), Schedule([Level(8, 1, batch=2)])
    for x in (X[:, 0, :, :5], X[..., None].expand(-1, -1, -1, -1, 8)):
        with pytest.raises(
            ValueError, match=rf"^data must be images \(N, C, H, W\) to be trained on, got {x.dim() - 2} "
        ):
            train(net, plan, ((x, Y), (x, Y)), tmp_path / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_images_that_come_one_after_the_other_are_told_how_to_be_given():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(X[0], 0)])

    with pytest.raises(ValueError, match="got Stream, which gives one after the other; collect them in two lists"):
        load_data((Stream(), (X, Y)))


@pytest.mark.parametrize(
    ("train_names", "test_names", "got"),
    [
        (NAMES, ("bee", "cat", "dog"), "'ant' and 'bee' for label 0"),
        (NAMES, ("ant", "cat", "bee"), "'bee' and 'cat' for label 1"),
        (NAMES, ("ant", "bee", "cat", "dog"), "3 and 4 classes"),
    ],
)
def test_training_and_test_images_have_the_same_classes(train_names, test_names, got):
    pair = items(classes=train_names), items(classes=test_names)
    with pytest.raises(ValueError, match=f"^train and test must have the same classes, got {got}$"):
        load_data(pair)


def test_names_among_the_labels_are_those_of_the_training_images():
    data = load_data(((X, names_of(Y)), (X[:2], ["cat", "bee"])))
    assert (data.class_names, data.test.labels.tolist()) == (NAMES, [2, 1])
    with pytest.raises(
        ValueError, match="^test labels must be whole numbers or names out of ant, bee, cat, got 'dog'$"
    ):
        load_data(((X, names_of(Y)), (X[:2], ["cat", "dog"])))


def test_two_classes_of_one_name_are_told_apart():
    assert load_data((items(classes=("crane", "bee", "crane")), items())).class_names == (
        "crane (0)",
        "bee",
        "crane (2)",
    )


def test_a_class_without_training_images_is_noted():
    assert load_data(((X, Y + 1), (X, Y))).notes == ("no training image has the class '0'",)
    assert load_data(((X, 3 * Y), (X, Y))).notes == ("no training image has the class '1', '2', '4' and 1 others",)


def test_images_of_the_users_own_record_have_their_classes():
    images = TensorImages(X, Y)
    for wrong, message in ((NAMES[:2], "train labels must lie in 0..1, got 0 to 2"), ((), "train labels must lie in")):
        with pytest.raises(ValueError, match=message):
            ImageData("own", images, images, wrong, 8, (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match="test must hold images, got none"):
        ImageData("own", images, images.take(torch.arange(0)), NAMES, 8, (0.5,) * 3, (0.2,) * 3)


class Outputs(nn.Module):
    """A classifier with so many scores, which a function may wrap."""

    def __init__(self, num, wrap=lambda scores: scores):
        super().__init__()
        self.num, self.wrap = num, wrap

    def forward(self, x):
        return self.wrap(torch.zeros(len(x), self.num, *([2] if self.num == 7 else [])))


@pytest.mark.parametrize("num", [2, 1000, 7])
def test_a_network_and_the_data_have_as_many_classes(num):
    with pytest.raises(
        ValueError, match=r"^model must give scores \(N, 3\), one per class of the data, got shape \(6, "
    ):
        evaluate(Outputs(num), ((X, Y), (X, Y)), device="cpu")
    assert evaluate(Outputs(3), ((X, Y), (X, Y)), device="cpu").accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize("wrap", [lambda s: (s, s), lambda s: {"logits": s}, lambda s: [s], lambda s: None])
def test_a_network_that_returns_no_scores_is_named(wrap):
    with pytest.raises(ValueError, match=r"^model must return a tensor of scores \(N, classes\), got "):
        evaluate(Outputs(3, wrap), ((X, Y), (X, Y)), device="cpu")


def test_a_checkpoint_and_a_class_list_of_the_same_length_are_compared_by_name(tmp_path):
    config = NetworkConfig("parabolic", (2,), 2, steps=1, size=8, classes=3, class_names=NAMES)
    other = items(classes=("ant", "bee", "dog"))
    with pytest.raises(ValueError, match=r"got 3 \(ant, bee, dog\): 'cat' and 'dog' for label 2$"):
        train(config, Schedule([Level(8, 1, batch=2)]), (other, other), tmp_path / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_training_on_foreign_items_runs(tmp_path):
    part, settings = SETS["Hugging Face"], TrainSettings(device="cpu", calibration_images=2)
    net, plan = NetworkConfig("parabolic", (2,), 2, steps=1, size=8), Schedule([Level(8, 1, batch=2)])
    run = train(net, plan, (part, SETS["pictures and names"]), tmp_path / "run", settings=settings, quiet=True)
    assert run.model.config.class_names == NAMES


def test_labels_that_are_accepted_are_never_changed():
    """Every kind of number from -2 to 4 in steps of a tenth: 0, 1 and 2 are taken as they are, all others refused."""
    for kind in (torch.float64, torch.float32, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool):
        for label in (torch.arange(-20, 41) / 10).to(kind).unique():
            if label.double().item() in (0, 1, 2):
                assert whole_labels(label[None], NAMES, "train").tolist() == [label.double().item()]
            else:
                with pytest.raises(ValueError, match="^train labels must "):
                    whole_labels(label[None], NAMES, "train")


def test_names_and_numbers_as_labels_are_not_mixed():
    names, numbers = [str(k % 12) for k in range(24)], torch.arange(24) % 12
    x = torch.randint(0, 256, (24, 3, 4, 4), dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels must both be names or both be numbers .*, got names for train"):
        load_data(((x, names), (x, numbers)))
    with pytest.raises(ValueError, match="labels must both be names or both be numbers"):
        load_data(((x, names), [(image, int(k)) for image, k in zip(x, numbers, strict=True)]))
    data = load_data(((x, names), [(image, name) for image, name in zip(x, names, strict=True)]))
    assert torch.equal(data.train.labels, data.test.labels)


def test_images_that_use_little_of_the_range_are_told():
    x = 0.5 + 0.002 * torch.rand(6, 3, 4, 4)
    (note,) = load_data(((x, [0] * 6), (x, [0] * 6))).notes
    assert note.startswith("the values of 6 images lie between 128 and 128 of 255: rescale ")
    x = torch.randint(0, 2, (6, 1, 4, 4)).float()
    assert load_data(((x, [0] * 6), (x, [0] * 6))).notes == ()


def test_pictures_stand_upright_as_their_files_do(tmp_path):
    pixels = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8).numpy()
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        image.save(tmp_path / part / "a/0.png", exif=exif)
    expected = load_data("folder", root=tmp_path).train.images
    assert not torch.equal(expected[0], torch.from_numpy(pixels).permute(2, 0, 1))
    items = [(Image.open(tmp_path / "train/a/0.png"), 0)]
    assert torch.equal(load_data((items, items)).train.images, expected)
