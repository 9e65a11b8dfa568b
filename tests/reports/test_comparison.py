"""Runs beside each other: figures, the settings that differ, the page."""

import json
import re
import shutil

import pytest

from multipde.cli.main import main
from multipde.reports.comparison import compare_runs
from multipde.reports.run_figures import curve
from multipde.reports.run_record import loss_name
from tests.storage.test_links import run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two finished runs of other settings, a copy of one without its result, and a damaged one."""
    found = tmp_path_factory.mktemp("runs")
    run(found / "a/one")
    run(found / "b/one", seed=1, label_smoothing=0.0)
    shutil.copytree(found / "a/one", found / "<stopped>")
    (found / "<stopped>/result.json").unlink()
    shutil.copytree(found / "a/one", found / "damaged")
    (found / "damaged/run.json").write_text('{"format": 7}\n')
    return found


def test_the_settings_that_differ_and_the_figures_of_the_results(place):
    found = compare_runs([place / "a/one", place / "b/one"])
    assert found["differences"] == {"settings.seed": [0, 1], "settings.label_smoothing": [0.1, 0.0]}
    results = [json.loads((place / name / "result.json").read_text()) for name in ("a/one", "b/one")]
    assert [row["name"] for row in found["runs"]] == ["a/one", "b/one"]
    for row, result in zip(found["runs"], results, strict=True):
        assert row["test_accuracy"] == result["test_accuracy"]
        assert row["tflops"] == result["flops"] / 1e12
        assert (row["sizes"], row["epochs"], row["state"]) == ("4 8", 2, "finished")


def test_the_page_shows_all_runs_and_is_replaced(place, tmp_path, capsys):
    both = [str(place / "a/one"), str(place / "<stopped>")]
    main(["compare", *both, "--out", str(tmp_path / "page.html")])
    text = capsys.readouterr().out
    assert "all settings are equal" in text
    assert text.endswith(f"written to {tmp_path / 'page.html'}\n")
    page = (tmp_path / "page.html").read_text()
    assert "<title>one and &lt;stopped&gt;: multipde comparison</title>" in page
    assert page.count("<svg") == 4
    assert "not finished" in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    main(["compare", *both, "--out", str(tmp_path / "page.html"), "--json"])
    assert json.loads(capsys.readouterr().out)["differences"] == {}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a/one"], "runs must be at least two, got 1; type multipde compare RUN RUN"),
        (["a/one", "a/../a/one"], "runs must differ, got "),
        (["a/one", "a"], "run must be a directory with a run.json, got "),
        (["a/one", "damaged"], "run.json"),
    ],
)
def test_what_cannot_be_compared_gets_one_line(place, names, text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["compare", *[str(place / name) for name in names]])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_another_file_is_not_written_over(place, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(FileExistsError, match="or a comparison that multipde wrote, got another"):
        compare_runs([place / "a/one", place / "b/one"], tmp_path / "mine.html")


def test_a_loss_of_the_users_is_not_called_cross_entropy():
    assert loss_name({"objective": {"loss": "torch.nn:MSELoss"}}) == "loss"
    assert loss_name({"objective": {"loss": None}}) == loss_name({}) == "cross entropy"
    levels = [[dict.fromkeys(("train_loss", "validation_loss", "total_flops"), 1.0) | {"size": 8}]]
    labels = [curve(levels, "loss", "epochs", name).axes[0].get_ylabel() for name in ("loss", "cross entropy")]
    assert labels == ["loss", "cross entropy"]
