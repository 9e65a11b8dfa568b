"""Predictions of image files: the network's own scores, at its size or at the image's."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from multipde import NetworkConfig, PDENet, convert, load, predict, save
from multipde.cli.main import main
from multipde.data.decode import decode_image
from multipde.reports.plots import check_figure_file, prediction_figure
from multipde.runtime.console import Log
from tests.fixtures import write_folder

CLASSES = ("disc", "ring", "square")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    write_folder(root / "data", num_train=3, num_test=3, size=16)
    config = NetworkConfig(
        "hamiltonian", (4, 6), 8, size=8, classes=3, class_names=CLASSES, mean=(0.4,) * 3, std=(0.2,) * 3
    )
    torch.manual_seed(0)
    save(PDENet(config), root / "net")
    Image.new("RGB", (21, 17), (10, 200, 30)).save(root / "wide.png")
    return root


def expected(net, picture):
    x = (picture.float() / 255 - 0.4) / 0.2
    with torch.no_grad():
        return net(x[None]).softmax(1)[0]


def test_probabilities_are_those_of_the_network_at_its_size(place):
    folder = place / "data/test"
    found = predict(place / "net", [folder, place / "wide.png"])
    assert [p.file for p in found] == [*sorted(folder.rglob("*.png")), place / "wide.png"]
    net = load(place / "net")
    for p in found:
        assert p.size == 8
        torch.testing.assert_close(
            torch.tensor(list(p.probabilities.values())), expected(net, decode_image(p.file, 8)), rtol=1e-4, atol=1e-6
        )
        assert tuple(p.probabilities) == CLASSES
    assert [p.true for p in found] == [*[p.file.parent.name for p in found[:-1]], None]


def test_the_network_can_be_fitted_to_each_image(place):
    files = [place / "data/test/ring/000.png", place / "wide.png"]
    found = predict(place / "net", files, fit="net")
    assert [p.size for p in found] == [16, 16]  # 17 is rounded down to an even number
    net = convert(load(place / "net"), size=16, method="copy")
    torch.testing.assert_close(
        torch.tensor(list(found[0].probabilities.values())), expected(net, decode_image(files[0])), rtol=1e-4, atol=1e-6
    )


def test_the_command_prints_a_table_json_and_a_figure(place, tmp_path, capsys):
    main(["predict", str(place / "net"), str(place / "data/test"), "--plot", str(tmp_path / "p.svg")])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 11
    assert "of 9 images whose folder names their class are classified correctly" in out
    figure = (tmp_path / "p.svg").read_text()
    assert figure.startswith("<?xml")
    main(["predict", str(place / "net"), str(place / "wide.png"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["class"] in CLASSES
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert record["true"] is None


def test_many_images_are_drawn_in_part(place, tmp_path, unwritten_figures):
    found = predict(place / "net", [place / "data"] * 2)
    assert len(found) == 36
    prediction_figure(found, tmp_path / "p.png")
    assert sum(len(axis.images) for axis in unwritten_figures[0].axes) == 24
    bars = [[bar.get_width() for bar in axis.patches] for axis in unwritten_figures[0].axes if axis.patches]
    assert bars == [[100 * value for _, value in p.ranking] for p in found[:24]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{place}/net {place}/nothing.png", "image must be readable, got {place}/nothing.png: No such file"),
        ("{place}/net {place}/net/config.json", "image must be readable, got {place}/net/config.json: cannot identify"),
        ("{place}/net {place}/net", "image folder must hold images, got none in {place}/net"),
        ("{place}/data {place}/wide.png", "checkpoint must hold model.safetensors"),
        ("{place}/net {place}/wide.png --plot p.txt", "plot must end in one of .png, .svg, .pdf, got p.txt"),
        ("{place}/net {place}/wide.png --device gpu9", "device must be one that torch has here"),
    ],
)
def test_wrong_arguments_give_one_line(arguments, message, place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments.format(place=place).split()])
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert errors.count("\n") == 1
    assert message.format(place=place) in errors.replace("[Errno 2] ", "")
    assert list(tmp_path.iterdir()) == []


def test_an_image_smaller_than_the_blocks_is_refused_by_name(place, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(
        ValueError, match=r"image must have at least 2 pixels each way, got .*dot.png; type --fit image"
    ):
        predict(place / "net", [tmp_path / "dot.png"], fit="net")
    with pytest.raises(ValueError, match="fit must be one of image, net, got 'both'"):
        predict(place / "net", [tmp_path / "dot.png"], fit="both")
    check_figure_file(tmp_path / "a.png")


def test_images_in_memory_are_predicted_as_their_files_are(place):
    net, files = load(place / "net"), sorted((place / "data/test").rglob("*.png"))[:3]
    given = [p.probabilities for p in predict(net, files)]
    pictures = [Image.open(file) for file in files]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    for images in (
        pictures,
        arrays,
        tensors,
        torch.stack(tensors),
        torch.stack(tensors).float() / 255,
        np.stack(arrays),
        [files[0], arrays[1], pictures[2]],
    ):
        assert [p.probabilities for p in predict(net, images)] == given
    (one,) = predict(place / "net", pictures[0])
    assert (one.name, one.file, one.probabilities) == ("image 0", None, given[0])
    assert one.record()["file"] == "image 0"
    (file,) = predict(net, str(files[0]))
    assert (file.true, file.probabilities) == ("disc", given[0])
    assert [p.number for p in predict(net, tensors)] == [0, 1, 2]


def test_a_picture_in_memory_is_turned_as_its_file_is(place, tmp_path):
    net, pixels = load(place / "net"), np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=tag)
    (file,), (picture,) = predict(net, tmp_path / "turned.png"), predict(net, Image.open(tmp_path / "turned.png"))
    (plain,) = predict(net, pixels)
    assert picture.probabilities == file.probabilities != plain.probabilities


def test_a_network_for_images_that_are_not_square_is_refused():
    net = PDENet(NetworkConfig("parabolic", (4,), 4, size=(8, 16)))
    with pytest.raises(ValueError, match="model must be for square images, got a network for 8x16; call the net"):
        predict(net, torch.zeros(1, 3, 8, 16))


def test_the_network_that_is_given_stays_as_it_is(place):
    net = load(place / "net").train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    predict(net, torch.zeros(2, 3, 16, 16), fit="net")
    assert net.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net.config.size == 8


def test_grey_images_and_other_channels(place, figures):
    net = load(place / "net")
    grey = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    assert predict(net, grey)[0].probabilities == predict(net, grey.expand(3, 8, 8))[0].probabilities
    with pytest.raises(ValueError, match="images must have the 3 channels of the network, got 2"):
        predict(net, torch.zeros(2, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="image 0 must"):
        predict(net, [torch.randn(3, 8, 8) * 5])
    with pytest.raises(ValueError, match="got none"):
        predict(net, [])
    with pytest.raises(ValueError, match="model must be left out where the network itself is given"):
        predict(net, grey, model="resnet18")
    two = PDENet(NetworkConfig("parabolic", (4, 6), 3, size=8, in_channels=1, classes=2)).eval()
    assert len(predict(two, grey)) == 1
    with pytest.raises(ValueError, match="checkpoint must be for pictures, got 1 channels"):
        predict(two, [place / "wide.png"])


def test_pictures_that_are_not_square_are_told(place, tmp_path, capsys):
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    frames = [Image.new("RGB", (4, 4)) for _ in range(2)]
    frames[0].save(tmp_path / "b.tif", save_all=True, append_images=frames[1:])
    given = [tmp_path / "a.png", tmp_path / "b.tif", torch.zeros(3, 5, 6, dtype=torch.uint8)]
    predict(load(place / "net"), given, log=Log())
    assert capsys.readouterr().out.splitlines() == [
        "note: 2 of 3 pictures are not square: squeezed into squares, not cropped",
        "note: 1 files hold several frames: the first is taken",
    ]
    predict(load(place / "net"), given[:1], log=Log(quiet=True))
    predict(load(place / "net"), torch.zeros(3, 5, 5, dtype=torch.uint8), log=Log())
    assert capsys.readouterr().out == ""


def test_the_folder_in_which_a_link_lies_names_the_class(place, tmp_path):
    names = load(place / "net").config.class_names
    first = next((place / "data" / "test" / names[0]).iterdir())
    (tmp_path / names[1]).mkdir()
    (tmp_path / names[1] / "link.png").symlink_to(first)
    (found,) = predict(place / "net", tmp_path, device="cpu")
    assert found.true == names[1]


def test_files_that_cannot_be_read_are_left_out_on_demand(place, tmp_path, capsys):
    shutil.copytree(place / "data/test/ring", tmp_path / "ring")
    (tmp_path / "ring/bad.png").write_text("no image")
    whole = sorted((place / "data/test/ring").iterdir())
    words = ["predict", str(place / "net"), str(tmp_path / "ring"), str(place / "wide.png"), "--json"]
    with pytest.raises(SystemExit):
        main(words)
    assert "ring/bad.png: cannot identify" in (error := capsys.readouterr().err)
    assert error.strip().endswith("; type --skip-bad to go on without such images")
    main([*words, "--skip-bad"])
    shown = capsys.readouterr()
    assert [json.loads(line)["file"] for line in shown.out.splitlines()] == [
        *(str(tmp_path / "ring" / file.name) for file in whole),
        str(place / "wide.png"),
    ]
    assert shown.err.startswith(f"note: skipped as bad: 1 image, {len(whole) + 1} images are left; the first: image ")
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert len(predict(place / "net", [pixels, tmp_path / "ring/000.png", whole[1]], skip_bad=True)) == 3
    with pytest.raises(ValueError, match="images must be readable, got none that is: image must be readable, got"):
        predict(place / "net", tmp_path / "ring/bad.png", skip_bad=True)
