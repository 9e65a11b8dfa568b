"""The commands with a network whose images are finer than its mesh."""

import json

import pytest
from PIL import Image

from multipde import load, render_shapes, with_detail
from multipde.cli.main import main
from multipde.networks.model_spec import spec_of
from tests.fixtures import write_folder


def call(capsys, *arguments):
    main([str(a) for a in arguments])
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory, narrow_presets):
    """A run at 8 and then 8:16 on a folder of images."""
    place = tmp_path_factory.mktemp("detail")
    write_folder(place / "data")
    arguments = "--data folder --sizes 8 8:16 --epochs 1 1 --batch 30 --quiet --device cpu"
    main(["train", *arguments.split(), "--root", str(place / "data"), "--run", str(place / "run")])
    return place


def test_train_and_report(capsys, place):
    run = place / "run"
    record = json.loads((run / "config.json").read_text())["network"]
    assert (record["size"], record["detail"]) == (8, 2)
    page = (run / "report.html").read_text()
    assert "coarse to fine at 8 and 8:16 pixels" in page
    assert "8 → 8:16 pixels" in page
    assert "composing the opening" in page


def test_inspect(capsys, place):
    shown = call(capsys, "inspect", place / "run")
    assert "3 channels of 16x16 pixels to 3 classes" in shown
    assert "0 8x8 0.12500" in shown
    assert "detail 2: the mesh has 8x8 pixels; below, the opening is averaged back to it" in shown
    assert "opening.0" in shown


def test_evaluate_names_sides_of_images(capsys, place):
    shown = call(capsys, "evaluate", place / "run", "--sizes", 16, 32, "--num-images", 40)
    assert "16 - " in shown
    assert "32 copy" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(place / "run"), "--sizes", "16", "15"])
    assert stopped.value.code == 2
    assert "size of the images must be a multiple of the detail 2, got 15" in capsys.readouterr().err


@pytest.mark.parametrize("fit", ["image", "net"])
def test_predict(fit, capsys, place, tmp_path):
    for i, image in enumerate(render_shapes(2, 40, 0)[0]):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    lines = [json.loads(line) for line in _lines(capsys, "predict", place / "run", tmp_path, "--fit", fit, "--json")]
    assert [line["size"] for line in lines] == [{"image": 16, "net": 40}[fit]] * 2


def _lines(capsys, *arguments):
    main([str(a) for a in arguments])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("options", "size", "detail"), [((8, 1), 8, 1), ((16, 1), 16, 1), ((None, 4), 8, 4), ((16, None), 16, 2)]
)
@pytest.mark.usefixtures("without_figure")
def test_convert_moves_mesh_and_opening_together(options, size, detail, capsys, place, tmp_path):
    given = [a for name, v in zip(("--size", "--detail"), options, strict=True) if v is not None for a in (name, v)]
    out = ["--method", "copy", "--out", tmp_path / "new", "--num-images", 20, "--finish", "none"]
    shown = call(capsys, "convert", place / "run", *given, *out)
    new, old = load(tmp_path / "new"), load(place / "run")
    assert (spec_of(new).size, spec_of(new).detail) == (size, detail)
    wanted = with_detail(old, detail)
    assert all((a == b).all() for a, b in zip(new.parameters(), wanted.parameters(), strict=True))
    assert "opening.0" in shown
    assert "not converted: opening.0" not in shown
    text = "8:16 -> " + (str(size) if detail == 1 else f"{size}:{size * detail}")
    assert f"size {text}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --sizes 8 8:12", "size must be positive, and an image a whole multiple of its mesh, got 8:12"),
        ("train --sizes 8 16:8", "size must be positive, and an image a whole multiple of its mesh, got 16:8"),
        ("train --sizes 8 a", "sizes must be SIZE or MESH:IMAGE such as 16 or 16:32, got 'a'"),
        ("train --sizes 8 8:16 --mixed --epochs 1 1", "detail must be 1 for mixed levels, got 2"),
        (
            "train --sizes 8 8:16 --epochs 1 1 --coordinates finest",
            "coordinates must be level for levels with a detail, got finest",
        ),
        ("train --sizes 8 8:16 --momentum-rule dual", "momentum_rule must be map or reset for levels with a detail"),
        ("convert {run} --detail 0 --out new", "detail must be a positive whole number, got 0"),
        ("convert {run}/model.safetensors --size 8 --detail 2 --out new", "detail must be left out without a network"),
    ],
)
@pytest.mark.usefixtures("few_shapes")
def test_wrong_arguments_give_one_line(arguments, message, capsys, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments.format(run=place / "run").split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
