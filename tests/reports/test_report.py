"""Reports: every number is that of the run, strangers' names stay text, and nothing comes from elsewhere."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import base64
import io
import json
import re
import shutil

import pytest
import torch
from PIL import Image

from multipde import Level, NetworkConfig, Schedule, TrainSettings, evaluate, load, load_data, report, train
from multipde.cli.main import main
from multipde.data.decode import decode_image
from multipde.evaluation.errors import examine
from multipde.evaluation.pictures import stencil_mosaic
from multipde.reports.page import report_at_end
from multipde.reports.plots import COLOURS
from multipde.reports.run_figures import svg
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.storage.rows import read_metrics
from tests.fixtures import as_format_1, write_folder

CLASSES = ("disc", '<i>&"ring', "$square$")
SCHEDULE = Schedule([Level(8, 2), Level(16, 1, steps=3)])
SETTINGS = TrainSettings(calibration_images=30, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("report") / "data", classes=CLASSES)
    config = NetworkConfig("second_order", (4, 6), 8, steps=2, size=16)
    options = {"root": root}
    done = train(
        config, SCHEDULE, "folder", root.parent / "run", settings=SETTINGS, data_options=options, quiet=True
    ).directory
    report(done)
    return done


@pytest.fixture
def copied(run, tmp_path):
    return as_format_1(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def undrawn(monkeypatch, run):
    """Pages without figures, where no figure is asked for; that of `run` has them."""
    monkeypatch.setattr("multipde.reports.run_figures.svg", lambda make, name, alt: "")


def page(directory):
    return (directory / "report.html").read_text()


def per_cent(share, digits):
    return f"{100 * share:.{digits}f}\u202f%"


def test_numbers_are_those_of_the_run(run):
    text, result, rows = page(run), json.loads((run / "result.json").read_text()), read_metrics(run / "metrics.jsonl")
    assert per_cent(result["test_accuracy"], 2) in text
    assert f"{result['test_loss']:.3f}" in text
    coarse, fine = rows[1], rows[2]
    shares = re.findall(r'<td>([\d.]+) %<span class="share">', text)
    work, time = coarse["total_flops"] / fine["total_flops"], coarse["total_seconds"] / fine["total_seconds"]
    assert shares == [f"{100 * s:.1f}" for s in (work, time, 1 - work, 1 - time)]
    assert f"<td>{per_cent(max(r['validation_accuracy'] for r in rows[:2]), 1)}</td>" in text
    for key in ("accuracy_before", "accuracy_moved", "accuracy_recalibrated"):
        assert f">{100 * result['moves'][0][key]:.1f}</text>" in text
    provenance = json.loads((run / "run.json").read_text())["provenance"]
    for value in (*provenance["versions"].values(), provenance["data"]["sha256"]):
        assert f"<dd>{value}</dd>" in text


def test_the_test_images_are_judged_as_the_run_was(run):
    net, images = load(run), load_data("folder", root=run.parent / "data", size=16)
    seen = examine(net, images, Compute.of("cpu"))
    result = json.loads((run / "result.json").read_text())
    assert seen.metrics.accuracy == pytest.approx(result["test_accuracy"])
    assert torch.equal(seen.metrics.confusion.sum(1), torch.tensor([20, 20, 20]))
    files = sorted((run.parent / "data/test").rglob("*.png"), key=lambda f: (f.parent.name, f.name))
    scale = [torch.tensor(v).view(3, 1, 1) for v in (net.config.mean, net.config.std)]
    with torch.no_grad():
        x = torch.stack([(decode_image(f).float() / 255 - scale[0]) / scale[1] for f in files])
        probability = net(x).softmax(1)
    true = torch.tensor([net.config.class_names.index(f.parent.name) for f in files])
    loss = -probability[range(60), true].log()
    loss[probability.argmax(1) == true] = -1
    order = loss.argsort(descending=True)[: len(seen.mistakes)]
    assert len(seen.mistakes) == min(24, round(60 * (1 - seen.metrics.accuracy)))
    for mistake, i in zip(seen.mistakes, order.tolist(), strict=True):
        assert (mistake.true, mistake.taken) == (true[i], probability[i].argmax())
        assert mistake.probability == pytest.approx(probability[i].max().item(), abs=1e-5)
        shown = torch.tensor(list(Image.open(io.BytesIO(mistake.picture)).tobytes())).view(16, 16, 3)
        assert torch.equal(shown.permute(2, 0, 1), decode_image(files[i]).long())
        assert base64.b64encode(mistake.picture).decode() in page(run)
    assert examine(net, images, Compute.of("cpu"), num_images=7).metrics.num_images == 7


def test_the_figures_of_a_classifier_are_those_of_evaluate(run):
    text = page(run)
    found = evaluate(load(run), "folder", device="cpu", data_options={"root": run.parent / "data"})
    seen = examine(load(run), load_data("folder", root=run.parent / "data", size=16), Compute.of("cpu")).metrics
    assert torch.equal(seen.confusion, found.confusion)
    torch.testing.assert_close(seen.reliability, found.reliability)
    assert (seen.top5, seen.loss) == (found.top5, pytest.approx(found.loss))
    rows = re.findall(r'<td class="word">([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td><td>20</td>', text)
    assert [row[0] for row in rows] == ["$square$", "&lt;i&gt;&amp;&#34;ring", "disc"]
    order = [load(run).config.class_names.index(name) for name in ("$square$", CLASSES[1], "disc")]
    for row, k in zip(rows, order, strict=True):
        precision = found.precision[k].item()
        assert row[1:] == (
            "-" if precision != precision else per_cent(precision, 1),
            per_cent(found.recall[k].item(), 1),
        )
    assert f"is\n{per_cent(found.calibration_error, 2)}." in text
    assert "among the five" not in text  # of three classes
    assert 'id="reliability-' in text


def test_names_of_strangers_stay_text_and_nothing_is_fetched(run):
    text = page(run)
    assert "<i>&" not in text
    assert "&lt;i&gt;&amp;" in text
    assert "$square$" in text
    assert "<script" not in text
    for target in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text):
        assert target.startswith(("data:", "#")), target
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)", text)


def test_every_mark_in_the_figures_has_a_name_of_its_own(run):
    names = re.findall(r'\bid="([^"]+)"', page(run))
    assert len(names) == len(set(names)) > 100
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', page(run)))
    assert used <= set(names)


def test_stencils_lie_in_the_mosaic_as_they_are():
    stencils = torch.randn(20, 3, 3, 3)
    mosaic = stencil_mosaic(stencils)
    assert mosaic.isfinite().sum() == stencils.numel()
    assert torch.equal(mosaic[4:7, 8:11], stencils[2, 1])
    assert torch.equal(mosaic[-3:, 12:15], stencils[19, 2])


def test_what_needs_images_or_a_checkpoint_of_a_level_is_left_out_where_there_is_none(run, copied, request):
    assert page(run).count('id="stencils-0-figure_1"') == page(run).count('id="stencils-1-figure_1"') == 1
    assert "did not keep" not in page(run)
    assert "Worst mistakes" in page(run)
    record = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(record | {"data_options": {"root": str(copied / "gone")}}))
    (copied / "level-1-8px.safetensors").unlink()
    (copied / "level-2-16px.safetensors").unlink()
    report(copied)
    assert "did not keep" in page(copied)
    assert 'id="stencils-0-figure_1"' not in page(copied)
    assert 'id="stencils-1-figure_1"' in page(copied)
    assert "Left out, with the energy: the data of the run cannot be read: root must be a directory" in page(copied)
    assert "Worst mistakes" not in page(copied)
    (copied / "run.json").write_text(json.dumps(record | {"data": None}))
    request.getfixturevalue("undrawn")
    report(copied)
    assert "the run was trained on data without a name" in page(copied)
    with pytest.raises(ValueError, match="data must have the 3 classes of the network"):
        report(copied, data="shapes", data_options={"num_train": 20, "num_test": 20})


def test_a_run_of_one_level_has_no_switches(tmp_path):
    data = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8), torch.arange(60) % 2
    config = NetworkConfig("resnet", (4,), 4, size=8, width=1)
    train(config, Schedule([Level(8, 1)]), (data, data), tmp_path / "run", settings=SETTINGS, quiet=True)
    report(tmp_path / "run", data=(data, data))
    assert "None: the run has one level." in page(tmp_path / "run")
    assert "Derivatives" not in page(tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_the_report_at_the_end_never_fails_the_run(copied, capsys):
    report_at_end(copied, Log())
    assert capsys.readouterr().out == ""  # there is one
    (copied / "report.html").unlink()
    report_at_end(copied, Log())
    assert capsys.readouterr().out == f"report: {copied}/report.html\n"
    (copied / "report.html").unlink()
    (copied / "metrics.jsonl").unlink()
    report_at_end(copied, Log())
    out = capsys.readouterr().out
    assert out.startswith("warning: no report (")
    assert out.endswith(f"; type multipde report {copied}\n")
    assert load(copied).config.size == 16


def damage(directory, what):
    file = directory / ("result.json" if what in ("moves", "result", "total") else "metrics.jsonl")
    rows = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    result = json.loads((directory / "result.json").read_text())
    if what in ("moves", "total"):
        file.write_text(json.dumps(result | ({"moves": []} if what == "moves" else {"test_loss": "small"})))
    elif what in ("result", "metrics"):
        file.unlink()
    else:
        texts = {"levels": rows[:2], "row": ["[1]\n", *rows], "nan": [rows[0].replace('"size": 8', '"size": NaN')]}
        file.write_text("".join(texts[what]))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("result", "run must be finished, got {run}; type multipde train --run {run} --resume first"),
        ("metrics", "{run}/metrics.jsonl must hold the epochs of 2 levels, got no metrics"),
        ("levels", "{run}/metrics.jsonl must hold the epochs of 2 levels, got 1"),
        ("row", "row must be a record, got [1] in line 1 of {run}/metrics.jsonl"),
        ("nan", "size must be a whole number from 1 to 32768, got nan in line 1 of {run}/metrics.jsonl"),
        ("total", "test_loss must be a number, got 'small' in {run}/result.json"),
        ("moves", "{run}/result.json must hold 1 moves between levels, got others"),
    ],
)
def test_runs_that_are_not_whole_are_refused_in_one_line(what, message, copied, capsys):
    (copied / "report.html").unlink()
    damage(copied, what)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(copied)])
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert errors == f"multipde: {message.format(run=copied)}\n"
    assert not (copied / "report.html").exists()


def test_the_command_writes_where_it_is_told_and_equal_runs_give_equal_pages(run, tmp_path, capsys, request):
    main(["report", str(run), "--out", str(tmp_path / "b.html"), "--root", str(run.parent / "data")])
    assert (tmp_path / "b.html").read_bytes() == (run / "report.html").read_bytes()
    assert capsys.readouterr().out == f"written to {tmp_path}/b.html\n"
    request.getfixturevalue("undrawn")
    main(["report", str(run), "--out", str(tmp_path / "a.html"), "--num-images", "9", "--device", "cpu"])
    assert capsys.readouterr().out == f"written to {tmp_path}/a.html\n"
    assert "9 test images" in (tmp_path / "a.html").read_text()
    with pytest.raises(ValueError, match="out must be a file, got the directory"):
        report(run, tmp_path)
    with pytest.raises(ValueError, match="run must be a directory with a run.json, got"):
        report(tmp_path)


def test_figures_take_the_colours_of_the_page():
    from matplotlib.figure import Figure

    def make():
        figure = Figure()
        figure.subplots().plot([0, 1], color=COLOURS[1], label="a")
        return figure

    text = svg(make, "one", 'say "<hm>"')
    assert "var(--colour-1)" in text
    assert "currentColor" in text
    assert COLOURS[1].lower() not in text
    assert 'aria-label="say &quot;&lt;hm>&quot;"' in text
