"""Every example runs, and prints what its docstring says where that does not depend on the machine.

That for Lightning is in `tests/integrations/test_lightning.py`, where Lightning is imported.
"""

import pytest

import multipde
from tests.fixtures import EXAMPLES, run_example

pytestmark = pytest.mark.usefixtures("small_examples")


@pytest.mark.parametrize("name", ["01_stencil.py", "04_your_own_model.py"])
def test_what_the_docstring_promises_is_printed(name, capsys):
    run_example(name)
    printed = capsys.readouterr().out
    promised = [line.strip() for line in (EXAMPLES / name).read_text().split('"""')[1].splitlines()]
    table = [line for line in promised[promised.index("") :] if line][1 if name.startswith("01") else 0 :]
    found = [" ".join(line.split()) for line in printed.splitlines()]
    assert sum(" ".join(line.split()) in found for line in table) >= 5


@pytest.mark.parametrize(
    ("name", "arguments", "num"),
    [
        ("02_coarse_to_fine.py", {"num_train": 63}, 2),
        ("05_grow_at_the_front.py", {"num_train": 500, "size": 8, "budget": 2}, 3),
    ],
)
def test_all_plans_have_the_same_work(name, arguments, num, capsys, monkeypatch):
    train, runs = multipde.train, []
    monkeypatch.setattr(multipde, "train", lambda *args, **options: runs.append(train(*args, **options)) or runs[-1])
    run_example(name, **arguments)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    work = [each.result["flops"] for each in runs]
    if len(runs) > num:  # the first of these plans are two trainings
        work = [sum(work[: len(work) - num + 1]), *work[len(work) - num + 1 :]]
    assert [float(row[-2]) for row in rows] == [round(flops / 1e9) for flops in work]
    assert work == [pytest.approx(work[0], rel=0.04)] * num  # few batches, whole ones


def test_convert_tries_every_method(capsys):
    run_example("03_convert.py", num_train=63)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["copy", "rediscretize", "galerkin"]


def test_a_learned_operator_keeps_its_equation_on_a_finer_mesh(capsys):
    run_example("07_operator.py", meshes=(32, 64), smoothness=(4,))
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    (given, learned, _, _), (finer, kept, copied, interpolated) = [[float(v) for v in row[1:]] for row in table[1:3]]
    assert given / finer == pytest.approx(4, rel=0.1)  # the order of the discretisation
    assert learned < given
    assert given / 2 < kept < 2 * given  # the error that was absorbed
    assert copied > 20 * kept
    assert interpolated > kept


def test_a_plain_loop_grows(capsys):
    run_example("06_your_own_loop.py", num_train=100, num_test=50)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-3] for row in rows[1:]] == ["8", "4"]


def test_fine_tuning_is_compared_for_the_same_work(capsys):
    run_example("08_fine_tune.py", data="shapes", root=None, epochs=0.1, budgets=(0.3,), widths=(4, 8), num_train=700)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("random", "fine-tuned"))]
    assert [row[0] for row in rows] == ["random", "random", "fine-tuned", "fine-tuned"]
    work = [float(row[-3]) for row in rows]
    assert work == [pytest.approx(work[0], rel=0.25)] * 4  # few batches, whole ones


def test_a_loop_of_timm_grows(capsys):
    pytest.importorskip("timm")
    run_example("09_timm.py", num_train=100, num_test=30, passes=1)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-3] for row in rows[1:]] == ["2", "1"]
