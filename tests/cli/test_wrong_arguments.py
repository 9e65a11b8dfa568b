"""Wrong arguments of every command: one line, exit status 2, and nothing is written."""

import pytest
from PIL import Image

from multipde import report
from multipde.cli.main import main

WRONG = [
    ("train --sizes 8 16 --epochs 1", "epochs must have one entry per size (2), got 1: (1.0,); type --epochs 1 1"),
    ("train --root {place}", "root must be left out for data 'shapes', got {place}; type --data folder"),
    ("train --sizes 8 16 --steps 1", "steps must have one entry per size"),
    ("train --sizes 8 16 --batch 1 2 3", "batch must have one entry per size"),
    ("train --sizes 8 --learning-rate 1 2", "learning_rate must have one entry per size"),
    ("train --sizes 6", "size must be a positive multiple of 4"),
    ("train --sizes 0", "size must be positive, and an image a whole multiple of its mesh, got 0"),
    ("train --sizes", "sizes must name at least one, got none; type --sizes VALUE or leave --sizes out"),
    ("train --all-sizes --quiet", "all_sizes must name at least one, got none"),
    ("train --freeze", "freeze must name at least one, got none"),
    ("convert {place}/net --sizes --out new", "sizes must name at least one, got none"),
    ("evaluate {place}/net --method --data shapes", "method must name at least one, got none"),
    ("reproduce table1 --dynamics --budget smoke", "dynamics must name at least one, got none"),
    ("reproduce table1 --data", "data must name at least one, got none"),
    ("bench transfer --arms --budget 1GFLOPs", "arms must name at least one, got none"),
    ("train --epochs 0 1 1", "epochs must be positive, got 0"),
    ("train --preset nothing", "preset must be one of"),
    ("train --preset cifar10-resnet --dynamics parabolic", "dynamics must be that of the preset"),
    ("train --data folder", "root must be given for data 'folder'; type --root DIR"),
    ("train --data folder --root missing", "root must be a directory, got missing"),
    ("train --data cifar10 --root {place}", "type --download to fetch it"),
    ("train --data folder --root {place}", "root must hold train/CLASS/* and test/CLASS/*"),
    ("train --run {place}/run", "directory must be new or empty"),
    ("train --resume", "run must be given with --resume; type --run DIR --resume"),
    ("train --resume --run {place}/net", "run must be a directory with a run.json"),
    ("train --resume --run {place}/run --sizes 8", "sizes must be that of the run, 8 16, got --sizes 8"),
    ("train --init {place}/data", "checkpoint must hold model.safetensors"),
    ("train --init {place}/net --dynamics resnet", "dynamics must be that of the checkpoint"),
    ("train --device gpu9", "device must be one that torch has here, got 'gpu9'"),
    ("train --keep 0", "keep must be positive, got 0"),
    ("train --checkpoint-every 0", "checkpoint_every must be positive, got 0.0"),
    ("train --batch 0", "batch must be positive, got 0"),
    ("train --learning-rate 0", "learning_rate must be positive, got 0.0"),
    ("train --sizes 100000", "size must be at most 32,768, got 100000"),
    ("train --run {place}/net/config.json", "directory must be new or empty, got {place}/net/config.json"),
    ("train --run {place}/net/config.json/run", "{place}/net/config.json/run must be writable, got: Not a directory"),
    ("train --resume --run {place}/data/train", "run must be a directory with a run.json"),
    ("evaluate {place}/net/config.json", "checkpoint must be a directory, got {place}/net/config.json"),
    ("evaluate {place}/damaged --data shapes", "must have its checksum in SHA256SUMS, got another: it is damaged"),
    ("inspect {place}/damaged", "must have its checksum in SHA256SUMS, got another: it is damaged"),
    ("convert {place}/damaged --size 8 --out new", "must have its checksum in SHA256SUMS, got another: it is damaged"),
    ("train --init {place}/damaged --data shapes", "must have its checksum in SHA256SUMS, got another: it is damaged"),
    ("convert {place}/net --size 8 --out {place}/net/config.json/x", "must be writable, got: Not a directory"),
    ("train --momentum 2", "momentum must lie in [0, 1), got 2.0"),
    ("train --validation 1.5", "validation must lie in (0, 1), got 1.5"),
    ("train --alpha1 -1", "alpha1 must not be negative, got -1.0"),
    ("train --box -1", "box must not be negative"),
    (f"train --seed {2**63}", f"seed must be one of the whole numbers below 2^63, got {2**63}"),
    ("evaluate {place}/net", "data must be given for {place}/net, which does not name its own"),
    ("evaluate {place}/nothing", "checkpoint must be a directory"),
    ("evaluate {place}/run --root {place}", "root must hold train/CLASS/* and test/CLASS/*"),
    ("evaluate {place}/run --num-images 0", "num_images must be positive, got 0"),
    ("evaluate {place}/run --num-images -5", "num_images must be positive, got -5"),
    ("evaluate {place}/run --robustness --sizes 8", "sizes must be left out with --robustness, got --sizes"),
    ("evaluate {place}/run --plot figure.png", "plot must come with --robustness, got --plot"),
    ("evaluate {place}/run --robustness --plot figure.txt", "plot must end in one of .png, .svg, .pdf"),
    ("evaluate {place}/net --robustness", "data must be given for {place}/net, which does not name its own"),
    ("evaluate {place}/run {place}/net --robustness --num-images 2", "data must have the 10 classes of the network"),
    ("evaluate {place}/run --robustness --num-images 0", "num_images must be positive, got 0"),
    ("train --init {place}/net --data shapes --epochs 0 1 1", "epochs must be positive"),
    ("train --init {place}/net --data folder --root {place}/data --sizes 8", "data must have the 10 classes"),
    ("convert {place}/run --size 8 --root {place} --out new", "root must hold train/CLASS/*"),
    ("evaluate {place}/run --sizes 7", "size must be a positive multiple of 4"),
    ("evaluate {place}/net --data shapes --sizes -8", "size must be a positive multiple of 2"),
    (
        "evaluate {place}/run --data shapes",
        "the 3 classes of the network (disc, ring, square), got 10 (disc, ring, square, ...)",
    ),
    ("train --epochs auto", "budget must be given where epochs are auto; type --budget 10min"),
    ("train --budget 10min", "budget must be left out where epochs are given"),
    ("train --epochs auto --budget ten", "budget must be a number with min, h, GFLOPs or TFLOPs"),
    ("train --epochs auto --budget 1min --mixed", "epochs must be given for mixed levels, got auto"),
    ("train --epochs -1 1 1", "epochs must be positive, got -1.0"),
    ("train --mixed --batch 10 20 30", "levels must have the same steps, batch and learning rate to be mixed"),
    ("train --conditioning 3", "conditioning must lie in [0, 1], got 3.0"),
    ("convert {place}/net --size 8 --rivals --out new", "rivals must have images, got none; type --data NAME"),
    ("convert {place}/run --size 8 --rivals --finish none --out new", "rivals must come with a finish on labelled"),
    ("convert {place}/run --size 8 --rivals --images {place} --out new", "rivals must come with a finish on labelled"),
    ("convert {place}/net --size 8 --finish 2min --out new", "finish 2min must have images, got none"),
    ("convert {place}/run --size 8 --finish 2apples --out new", "budget must be a number with s, min or images"),
    ("convert {place}/run --size 8 --images {place}/none --out new", "images must be a directory"),
    ("convert --size 8 --out new", "checkpoint or --arch must be given, got neither"),
    ("convert {place}/net --arch resnet18 --size 8 --out new", "model must be left out for"),
    ("convert {place}/net --weights w.pt --size 8 --out new", "weights must come with --arch"),
    (
        "convert --arch squeezenet1_1 --out new",
        "size, factor, steps or detail must be given, got none of them; type --size N",
    ),
    ("convert --arch resnet81 --size 8 --out new", "arch must be a classifier of torchvision (resnet18"),
    ("convert --arch squeezenet1_1 --weights w.pt --size 8 --out new", "weights must be a file, got w.pt"),
    ("convert --arch squeezenet1_1 --size 0 --out new", "size must be positive, got 0"),
    ("convert --arch squeezenet1_1 --size 32 --steps 4 --out new", "steps must be left out for squeezenet1_1, which"),
    (
        "convert --arch squeezenet1_1 --from-size 32 --size 32 --data shapes --out new",
        "data must have the 1000 classes of the network",
    ),
    ("convert {place}/net/config.json --size 8 --out new", "weights must be a state dict in .safetensors or .pt"),
    ("convert {place}/net/model.safetensors --out new", "size, factor, steps or detail must be given"),
    ("convert {place}/net/model.safetensors --size 8 --method calibrated --out new", "where there are no images"),
    ("train --sizes 6 32 --mixed --epochs 1 1", "size must be a positive multiple of 4"),
    ("train --steps auto --coordinates finest", "steps must be given where the parameter stays on the finest mesh"),
    ("train --steps auto --dynamics resnet", "steps must be given where resnet has no bound, got auto"),
    (
        "train --momentum-rule dual --steps 3 3 6",
        "momentum_rule must be map or reset where the number of steps changes",
    ),
    ("convert {place}/net/model.safetensors --size 8 --from-size 0 --out new", "from_size must be positive, got 0"),
    (
        "convert {place}/net/model.safetensors --size 8 --steps 4 --out new",
        "steps must be left out without a network",
    ),
    ("convert {place}/net --size 8 --steps auto --out new", "steps must be a number without images"),
    (
        "convert --arch squeezenet1_0 --size 16 --out new",
        "size must be one that squeezenet1_0 can take with 3 channels, got 16",
    ),
    ("bench step --dynamics", "dynamics must name at least one, got none"),
    ("bench scaling --processes", "processes must name at least one, got none"),
    ("bench step --compile --batch 0", "batch must be positive, got 0"),
    ("bench step --device cpu --vectors avx3", "vectors must be one of widest, avx512, avx2, got 'avx3'"),
    ("bench step --device cpu --vectors avx2 --amp bf16", "amp must be off with vectors avx2, which have no bf16"),
    ("bench scaling --batch -4", "batch must be positive, got -4"),
    ("bench step --batch 2147483648", "batch must be at most 1,000,000, got 2147483648"),
    ("train --sizes 8 --batch 99999999999999999999999", "batch must be at most 1,000,000, got 99999999999999999999999"),
    ("bench step --dynamics hamiltonian --out {place}/net", "{place}/net must be writable, got: Is a directory"),
    (
        "bench input --out {place}/net/config.json/rows",
        "/rows must be writable, got: File exists",
    ),
    ("bench scaling --batch 5 --processes 1 2", "batch must be a multiple of the number of processes (2), got 5"),
    ("bench scaling --processes 0", "processes must be positive, got 0"),
    ("train --batch auto --mixed --sizes 8 16", "batch must be given for mixed levels, got auto"),
    ("bench memory --dynamics hamiltonian --device gpu9", "device must be one that torch has here, got 'gpu9'"),
    ("train --memory reversible --dynamics parabolic", "memory must be store or checkpoint for parabolic"),
    ("bench transfer --size 16", "size must be a positive multiple of 4 (halved between 3 blocks), got 6"),
    ("bench transfer --arms magic", "arms must be among fine only, copy"),
    ("bench transfer --budget -1", "budget must be positive, got -1.0"),
    ("bench finetune --checkpoint {place}/net --size 8", "data must be given for {place}/net"),
    ("bench finetune --checkpoint {place}/net --size 9", "size must be a positive multiple of 2"),
    ("bench transfer --workers 0", "workers must be positive, got 0"),
    ("bench transfer --data folder --arms copy", "root must be given for data 'folder'; type --root DIR"),
    ("convert {place}/net --size 8", "out must be given; type --out DIR"),
    ("convert {place}/net --out new", "size, factor, steps or detail must be given"),
    ("convert {place}/net --size 9 --out new", "size must be a positive multiple of 2"),
    ("convert {place}/net --size 8 --steps 0 --out new", "steps must be positive"),
    ("convert {place}/net --size 8 --out {place}/run", "directory must be new or empty"),
    ("convert {place}/data --size 8 --out new", "checkpoint must hold model.safetensors"),
    ("inspect nowhere", "checkpoint must be a directory, got nowhere"),
    ("report nowhere", "run must be a directory with a run.json, got nowhere"),
    ("report {place}/net", "run must be a directory with a run.json, got {place}/net"),
    ("report {place}/run --out {place}", "out must be a file, got the directory {place}"),
    ("report {place}/run --num-images 0", "num_images must be positive, got 0"),
    ("report {place}/run --device gpu9", "device must be one that torch has here, got 'gpu9'"),
    ("report {place}/run --root {place}", "root must hold train/CLASS/* and test/CLASS/*"),
]


@pytest.mark.usefixtures("few_shapes")
@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_give_one_line_status_2_and_leave_nothing(
    arguments, message, capsys, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = sorted(p for p in place.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(arguments.format(place=place).split())
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("multipde: ")
    assert message.format(place=place) in captured.err
    assert list(tmp_path.iterdir()) == []
    assert sorted(p for p in place.rglob("*")) == before


USAGE = ["", "fly", "train --sice 8", "train --data mnist", "evaluate", "train --seed x", "bench", "bench fly"]
USAGE += ["bench finetune", "bench scaling --batch auto", "bench transfer --checkpoint net", "bench step --size 64"]
USAGE += ["bench memory --batch 10", "bench input --amp bf16", "bench regimes --small", "bench step --processes 2"]


@pytest.mark.parametrize("arguments", USAGE)
def test_usage_errors_are_the_parsers_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in captured.out + captured.err


def test_commands_leave_the_files_of_others(tmp_path, place, capsys):
    precious = tmp_path / "precious.txt"
    precious.write_text("of the user")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (16, 16)).save(picture)
    before = picture.read_bytes()
    (tmp_path / "link.svg").symlink_to(precious)
    for command in (
        f"evaluate {place}/run --robustness --device cpu --out {precious}",
        f"report {place}/run --device cpu --out {precious}",
        f"predict {place}/run {picture} --device cpu --plot {picture}",
        f"predict {place}/run {picture} --device cpu --plot {tmp_path}/link.svg",
        f"evaluate {place}/run --robustness --device cpu --plot {picture}",
        f"bench input --device cpu --out {precious}",
        f"convert {place}/run --size 8 --out {precious}",
    ):
        with pytest.raises(SystemExit) as stop:
            main(command.split())
        assert stop.value.code == 2, command
        assert capsys.readouterr().err.count("\n") == 1, command
    assert picture.read_bytes() == before
    assert precious.read_text() == "of the user"


def test_a_report_replaces_one_of_ours(tmp_path, place, monkeypatch):
    monkeypatch.setattr("multipde.reports.page._page", lambda *args: "<title>a: multipde report</title>")
    monkeypatch.setattr("multipde.reports.page._examined", lambda *args: (None, ""))
    for _ in range(2):
        report(place / "run", tmp_path / "page.html", device="cpu")
