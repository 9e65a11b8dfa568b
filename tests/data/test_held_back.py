"""Data as people have them: without test images, as a CSV file, as an ImageFolder, as a DatasetDict."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from multipde import load_data
from multipde.cli.main import main
from multipde.data.held_back import split_by_class
from multipde.training.plan import recorded_split
from tests.fixtures import write_folder

CLASSES = ("disc", "ring", "square")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "mine", num_train=20, num_test=8)


def pixels(images):
    """All images as a sorted list of bytes."""
    return sorted(image.numpy().tobytes() for image in images)


def moved(place, tmp_path, **names):
    """A folder with links to the parts of another one, under other names."""
    for new, old in names.items():
        (tmp_path / new).symlink_to(place / old)
    return tmp_path


def test_of_every_class_the_same_share_is_held_back():
    labels = torch.arange(3).repeat_interleave(torch.tensor([100, 10, 2]))
    train, test = split_by_class(labels, 0.2)
    assert torch.bincount(labels[test]).tolist() == [20, 2, 1]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(112))
    again = split_by_class(labels, 0.2)
    assert torch.equal(test, again[1])


def test_a_folder_without_test_images_needs_a_share(place, tmp_path):
    alone = moved(place, tmp_path, train="train")
    with pytest.raises(ValueError, match="data must have test images, got .*train alone; type --test-share 0.2"):
        load_data("folder", root=alone)
    whole, found = load_data("folder", root=place), load_data("folder", root=alone, test_share=0.25)
    num = len(whole.train)
    assert len(found.test) == sum(round(0.25 * int(n)) for n in torch.bincount(whole.train.labels))
    assert pixels([*found.train.images, *found.test.images]) == pixels(whole.train.images)
    assert any(f"{len(found.test)} of {num} images of {alone / 'train'} are held back" in note for note in found.notes)
    flat = load_data("folder", root=place / "train", test_share=0.25)
    assert pixels(flat.test.images) == pixels(found.test.images)
    assert flat.class_names == found.class_names


def test_val_is_the_test_part_or_joins_the_training_images(place, tmp_path):
    root = moved(place, tmp_path, train="train", val="test")
    plain, shared = load_data("folder", root=root), load_data("folder", root=root, test_share=0.5)
    assert any(re.fullmatch("the test images are those in .*val", note) for note in plain.notes)
    assert len(shared.train) + len(shared.test) == len(plain.train) + len(plain.test)
    with pytest.raises(ValueError, match="test_share must be left out for data with test images, got both and"):
        load_data("folder", root=place, test_share=0.5)


def write_csv(place, file, header, with_part):
    lines = [header]
    for path in sorted(place.glob("*/*/*.png")):
        part, label, _ = path.relative_to(place).parts
        lines.append(f"{path.relative_to(place)},{label}" + (f",{part}" if with_part else ""))
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_csv_file_lists_images(place):
    whole = load_data("folder", root=place)
    parts = load_data("csv", root=write_csv(place, place / "parts.csv", "Path,Class,Split", True))
    assert parts.name == "parts"
    assert parts.class_names == whole.class_names
    assert torch.equal(parts.train.images, whole.train.images)
    assert torch.equal(parts.test.labels, whole.test.labels)
    plain = write_csv(place, place / "plain.csv", "file,label", False)
    with pytest.raises(ValueError, match=r"data must have test images, got plain.csv without a column 'split' alone"):
        load_data("csv", root=plain)
    num = len(whole.train) + len(whole.test)
    assert len(load_data("csv", root=plain, test_share=0.25).test) == pytest.approx(num / 4, abs=2)


def test_a_class_that_only_rows_of_another_part_name_is_told(place):
    file = write_csv(place, place / "third.csv", "file,label,split", True)
    path = file.read_text().splitlines()[1].split(",")[0]
    file.write_text(file.read_text() + f"{path},zebra,unlabelled\n")
    data = load_data("csv", root=file)
    assert data.class_names[-1] == "zebra"
    assert data.notes[-2:] == (
        "left out of third.csv: 1 rows of other parts",
        "no training image has the class 'zebra'",
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "must have a header with the columns file and label, got an empty file"),
        ("name,label\n", "must have a header with the columns file and label, got name, label"),
        ("file,label\n", "must list images, got none"),
        ("file,label\na.png\n", "must name a file and a label in every row, got row 2 without one"),
        ("file,label\nnone.png,disc\n", "must list files that exist, got .*none.png"),
    ],
)
def test_a_wrong_csv_file_gets_one_line(tmp_path, text, error):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        load_data("csv", root=tmp_path / "a.csv", test_share=0.2)


def test_an_image_folder_of_torchvision_alone_or_as_a_pair(place):
    whole = load_data("folder", root=place)
    train, test = ImageFolder(str(place / "train")), ImageFolder(str(place / "test"))
    pair = load_data((train, test))
    assert torch.equal(pair.train.images, whole.train.images)
    assert pair.class_names == CLASSES
    with pytest.raises(ValueError, match="data must have test images, got a ImageFolder alone"):
        load_data(train)
    alone = load_data(train, test_share=0.25)
    flat = load_data("folder", root=place / "train", test_share=0.25)
    assert pixels(alone.test.images) == pixels(flat.test.images)
    small = ImageFolder(str(place / "train"), transforms.Compose([transforms.Resize(8), transforms.ToTensor()]))
    resized = load_data(small, test_share=0.25)
    assert resized.train.images.shape[1:] == (3, 8, 8)
    assert torch.equal(resized.test.labels, alone.test.labels)


class FakeDataset:
    """The part of a Hugging Face data set that is used: columns, features, items."""

    def __init__(self, num, seed):
        random = np.random.default_rng(seed)
        self.images = [Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(num)]
        self.labels = [k % 3 for k in range(num)]
        self.column_names = ["image", "label"]
        self.features = {"label": type("ClassLabel", (), {"names": list(CLASSES)})()}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.labels
        return {"image": self.images[key], "label": self.labels[key]}


def test_a_data_set_of_hugging_face(place):
    train, test = FakeDataset(30, 0), FakeDataset(9, 1)
    found = load_data({"train": train, "validation": test, "unsupervised": test})
    assert found.class_names == CLASSES
    assert (len(found.train), len(found.test)) == (30, 9)
    assert "the test images are those of the part 'validation'; left out: unsupervised" in found.notes
    assert np.array_equal(found.test.images[4].permute(1, 2, 0).numpy(), np.asarray(test.images[4]))
    alone = load_data({"train": train}, test_share=0.2)
    assert (len(alone.train), len(alone.test)) == (24, 6)
    assert torch.bincount(alone.test.labels).tolist() == [2, 2, 2]
    assert alone.class_names == CLASSES
    assert len(load_data(train, test_share=0.2).test) == 6
    with pytest.raises(ValueError, match="test_share must be left out for data with test images, got both"):
        load_data({"train": train, "test": test}, test_share=0.2)


@pytest.mark.parametrize("share", [0, 1, -0.2])
def test_a_share_lies_between_zero_and_one(share):
    with pytest.raises(ValueError, match=r"test_share must lie in \(0, 1\), got"):
        load_data("shapes", test_share=share)


def test_the_command_line_takes_them(place, tmp_path, narrow_presets, monkeypatch, capsys):
    monkeypatch.setattr("multipde.reports.page.report_at_end", lambda *args: None)
    write_csv(place, place / "plain.csv", "file,label", False)
    given = ["--data", "csv", "--root", str(place / "plain.csv"), "--test-share", "0.25", "--device", "cpu"]
    small = ["--sizes", "8", "--epochs", "1", "--batch", "30", "--run", str(tmp_path / "run")]
    main(["train", *given, *small])
    assert "images of plain.csv are held back for the test" in capsys.readouterr().out
    main(["evaluate", str(tmp_path / "run")])
    assert "8" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "--data", "shapes", "--test-share", "0.2", "--sizes", "8"])
    assert "test_share must be left out for shapes" in capsys.readouterr().err


class Relabelled(ImageFolder):
    """Images and labels of its own, as those who use other transforms write it."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image.point(lambda value: 7), 2 - label


def test_a_subclass_of_image_folder_gives_its_own_items(place):
    data = load_data((Relabelled(str(place / "train")), Relabelled(str(place / "test"))))
    assert set(data.train.images.flatten().tolist()) == {7}
    assert data.train.labels[0] == 2


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("Training", "Testing"), r"got parts of a data set \(Testing, Training\); name them train and test, or type"),
        (("Images",), "got one, Images, with all images deeper; type --root .*/Images"),
    ],
)
def test_a_folder_one_level_too_high_is_refused(place, tmp_path, folders, message):
    for name in folders:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(place / "train")
    with pytest.raises(ValueError, match=f"root must hold a folder per class, {message}"):
        load_data("folder", root=tmp_path / "data", test_share=0.25)


def test_other_names_of_the_folder_of_test_images(place, tmp_path):
    (tmp_path / "train").symlink_to(place / "train")
    (tmp_path / "valid").symlink_to(place / "test")
    data = load_data("folder", root=tmp_path)
    assert len(data.test) == len(load_data("folder", root=place).test)
    assert any("the test images are those in" in note and note.endswith("valid") for note in data.notes)


def test_a_run_whose_images_have_changed_is_not_tested_on_those_it_was_trained_on(place, tmp_path, monkeypatch, capsys):
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(place / "train", root)
    words = f"train --data folder --root {root} --test-share 0.25 --preset shapes-parabolic --sizes 4 --epochs 1"
    monkeypatch.setattr("multipde.reports.page.report_at_end", lambda *args: None)
    main([*words.split(), "--run", str(run), "--quiet", "--device", "cpu", "--batch", "30", "--steps", "1"])
    main(["evaluate", str(run)])
    why = "the network was trained on some of these test images"
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(run), "--test-share", "0.5"])
    said = capsys.readouterr().err
    assert "data must be divided as those of the run, by test_share 0.25, got 0.5; " + why in said
    shutil.copytree(root, tmp_path / "same")
    shutil.copytree(root, tmp_path / "more")
    main(["evaluate", str(run), "--root", str(tmp_path / "same")])
    for folder in [each for place in (root, tmp_path / "more") for each in place.iterdir() if each.is_dir()]:
        shutil.copy(next(folder.glob("*.png")), folder / "zzz.png")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["evaluate", str(run), "--root", str(tmp_path / "more")])
    assert "note: the test images are drawn at random from other images than those" in capsys.readouterr().err
    named = ["--data", "folder", "--root", str(root)]
    for words in (["evaluate", str(run)], ["evaluate", str(run), *named], ["evaluate", str(run), "--robustness"]):
        with pytest.raises(SystemExit, match="2"):
            main([*words, "--test-share", "0.25"])
        assert why in capsys.readouterr().err
    main(["report", str(run)])
    assert "training images, got" in (run / "report.html").read_text()
    main(["convert", str(run), "--size", "8", "--out", str(tmp_path / "new"), "--device", "cpu"])
    assert why in capsys.readouterr().out


def test_a_converted_network_knows_the_images_of_its_training(place, tmp_path, monkeypatch, capsys):
    run, new, several = (str(tmp_path / name) for name in ("run", "new", "several"))
    data = f"--data folder --root {place}/train"
    monkeypatch.setattr("multipde.reports.page.report_at_end", lambda *args: None)
    how = "--preset shapes-parabolic --sizes 4 --epochs 1 --batch 30 --steps 1 --quiet --device cpu --seed 3"
    main(f"train {data} --test-share 0.25 {how} --validation 0.3 --run {run}".split())
    main(["convert", run, "--size", "8", "--out", new, "--finish", "none", "--device", "cpu"])
    main(["convert", new, "--sizes", "4", "8", "--out", several, "--finish", "none", "--device", "cpu"])
    for checkpoint in (new, several):
        capsys.readouterr()
        main(["evaluate", checkpoint, "--json"])
        assert json.loads(capsys.readouterr().out)["data"] == "train"
        assert recorded_split(Path(checkpoint)) == (3, 0.3)
        for words in (f"evaluate {checkpoint} --test-share 0.5", f"evaluate {checkpoint} {data} --test-share 0.5"):
            with pytest.raises(SystemExit, match="2"):
                main(words.split())
            assert "got 0.5; the network was trained on some of these test images" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(f"train --init {new} {data} --test-share 0.5 --sizes 8 --epochs 1 --run {tmp_path}/more".split())
    assert "data must be divided as those of the run, by test_share 0.25, got 0.5" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()
    assert "command" not in (tmp_path / "new/trained.json").read_text()
    (tmp_path / "new/trained.json").write_text("{}")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", new])
    assert "trained.json must have its checksum in SHA256SUMS" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["valid", "Test", "VALIDATION"])
def test_parts_of_a_csv_file_may_have_other_names_and_are_not_divided_again(part, place):
    file = write_csv(place, place / "named.csv", "file,label,split", True)
    file.write_text(file.read_text().replace(",test\n", f",{part}\n").replace(",train\n", ",Train\n"))
    data = load_data("csv", root=file)
    assert torch.equal(data.test.labels, load_data("folder", root=place).test.labels)
    with pytest.raises(ValueError, match="test_share must be left out for named.csv, which has test images, got 0.5"):
        load_data("csv", root=file, test_share=0.5)


def test_unknown_parts_of_a_csv_file_are_named(place):
    file = write_csv(place, place / "odd.csv", "file,label,split", True)
    file.write_text(file.read_text().replace(",test\n", ",evaluation\n"))
    with pytest.raises(ValueError, match="must have train and test in its column of parts, got evaluation, train"):
        load_data("csv", root=file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('train/circle/0000.png,"circle,train', "must be a readable CSV file, got unexpected end of data"),
        ('train/circle/0000.png,"cir\ncle",train', "must have entries of one line, got .* a quote may be missing"),
        ("{first},{other},train", "must list every image once, got .* with the labels"),
        ("{first},{own},test", "must list every image once, got .* twice"),
    ],
)
def test_rows_that_are_no_list_of_images_are_refused(place, line, message):
    file = write_csv(place, place / "odd.csv", "file,label,split", True)
    first, own = file.read_text().splitlines()[1].split(",")[:2]
    other = "square" if own != "square" else "circle"
    file.write_text(file.read_text() + line.format(first=first, own=own, other=other) + "\n")
    with pytest.raises(ValueError, match=message):
        load_data("csv", root=file)


def test_measured_numbers_are_no_classes(place):
    file = write_csv(place, place / "numbers.csv", "file,label", False)
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{row.split(',')[0]},{k / 7:.3f}" for k, row in enumerate(rows))]))
    with pytest.raises(ValueError, match="must have labels that name classes, got 0.143"):
        load_data("csv", root=file, test_share=0.2)


def test_a_share_divides_the_training_rows_only(place):
    file = write_csv(place, place / "ignored.csv", "file,label,split", True)
    file.write_text(file.read_text().replace(",test\n", ",ignore\n"))
    num = file.read_text().count(",train\n")
    data = load_data("csv", root=file, test_share=0.2)
    assert len(data.train) + len(data.test) == num
    assert any("rows of other parts" in note for note in data.notes)


def test_names_with_narrow_spaces_are_read(place):
    """As macOS writes them into the names of screenshots."""
    file = write_csv(place, place / "narrow.csv", "file,label", False)
    path = file.read_text().splitlines()[1].split(",")[0]
    shutil.copy(place / path, place / "at 9.41\u202fPM\u00a0(2).png")
    file.write_text(file.read_text() + "at 9.41\u202fPM\u00a0(2).png,circle\n", encoding="utf-8")
    assert len(load_data("csv", root=file, test_share=0.2).train) > 0
