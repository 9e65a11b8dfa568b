"""``multipde bench transfer``: which trainings make up the study, and what comes out as tables and a figure."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipde.networks.dynamics import DYNAMICS
from multipde.runtime.console import Log
from multipde.studies.bench.transfer import ARMS, IDEAS, Task, all_arms, arm_of, finalists, run_tasks
from multipde.training.settings import TrainSettings


def transfer_study(
    data: str,
    options: Mapping[str, Any],
    out: Path,
    *,
    size: int = 32,
    small: bool = False,
    arms: Sequence[str] | None = None,
    dynamics: Sequence[str] = ("hamiltonian",),
    seeds: Sequence[int] = (0, 1, 2),
    budget: float = 2.0,
    run_dir: Path = Path("runs/bench-transfer"),
    workers: int = 1,
    device: str = "auto",
    amp: str = "off",
    log: Log | None = None,
) -> list[dict[str, Any]]:
    """All arms once on the Hamiltonian network, then the best against fine only and copy, with tables and a figure.

    Args:
        data: name for `load_data`, with its options.
        out: file of rows, appended to; the figure lies beside it.
        small: a quarter of the work, two seeds.
        arms: only these, with the dynamics and seeds given.
        budget: work of every training in epochs at the full size; half of it for other dynamics than hamiltonian.

    Returns:
        The rows of the file that belong to these data and this size.

    Raises:
        ValueError: an unknown arm or dynamics, a budget or number of workers that is not positive.
    """
    log = log or Log(quiet=True)
    for arm in arms or ():
        arm_of(arm)
    for name in dynamics:
        if name not in DYNAMICS:
            raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}, got {name!r}")
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget must be positive, got {budget}")
    if workers < 1:
        raise ValueError(f"workers must be positive, got {workers}")
    if small:
        budget, seeds = budget / 4, seeds[:2]
    settings = TrainSettings(device=device, amp=amp)

    def run(tasks: Sequence[Task]) -> list[dict[str, Any]]:
        return run_tasks(
            tasks, data, options, out, size=size, run_dir=run_dir, settings=settings, workers=workers, log=log
        )

    if arms is None:
        rows = run(finalists(run(all_arms(budget, seeds[0])), budget, seeds))
    else:
        own = {name: budget if name == "hamiltonian" else budget / 2 for name in dynamics}
        rows = run([Task(arm, name, own[name], seed) for seed in seeds for name in dynamics for arm in arms])
    for title, table in tables(rows).items():
        log.table(table, title)
    if rows:
        from multipde.reports.plots import accuracy_against_work

        figure = out.with_suffix(".svg")
        accuracy_against_work(rows, figure)
        log.say(f"rows in {out}, figure in {figure}")
    return rows


def tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """Accuracy at equal work by dynamics: mean and spread over the seeds, and the gain over copy with the same seed."""
    result = {}
    groups = sorted({(r["dynamics"], r["budget"]) for r in rows}, key=lambda g: (list(DYNAMICS).index(g[0]), g[1]))
    for dynamics, budget in groups:
        table = []
        mine = [r for r in rows if (r["dynamics"], r["budget"]) == (dynamics, budget)]
        copied = {r["seed"]: r["test_accuracy"] for r in mine if r["arm"] == "copy"}
        for arm in [arm for arm in (*ARMS, *IDEAS) if any(r["arm"] == arm for r in mine)]:
            own = [r for r in mine if r["arm"] == arm]
            accuracies = [100 * r["test_accuracy"] for r in own]
            gains = [100 * (r["test_accuracy"] - copied[r["seed"]]) for r in own if r["seed"] in copied]
            table.append(
                {
                    "arm": arm,
                    "seeds": str(len(own)),
                    "accuracy %": mean_and_spread(accuracies) + _note(own),
                    "gain over copy": "-" if arm == "copy" or not gains else mean_and_spread(gains, sign=True),
                    "cross entropy": f"{statistics.mean(r['test_loss'] for r in own):.3f}",
                    "TFLOPs": f"{statistics.mean(r['flops'] for r in own) / 1e12:.1f}",
                    "minutes": f"{statistics.mean(r['seconds'] for r in own) / 60:.1f}",
                }
            )
        result[f"{dynamics}, work of {budget:g} epochs at full size"] = table
    for dynamics in dict.fromkeys(group[0] for group in groups):
        result |= _reach_table(rows, dynamics)
    return result | _switch_table(rows)


def _switch_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """What the last switch costs, and how much of that BatchNorm measured anew gives back: means over the seeds."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for r in rows:
        if r["moves"]:
            found.setdefault((r["dynamics"], r["arm"], r["budget"]), []).append(r["moves"][-1])
    order = [*DYNAMICS], [*ARMS, *IDEAS]
    table = []
    for dynamics, arm, budget in sorted(found, key=lambda k: (order[0].index(k[0]), order[1].index(k[1]), k[2])):
        moves = found[dynamics, arm, budget]
        means = [100 * statistics.mean(m[f"accuracy_{when}"] for m in moves) for when in MOMENTS]
        table.append(
            {
                "dynamics": dynamics,
                "arm": arm,
                "epochs of work": f"{budget:g}",
                "switch": f"{moves[0]['from']} to {moves[0]['to']}",
                "seeds": str(len(moves)),
                **{when: f"{mean:.1f}" for when, mean in zip(MOMENTS, means, strict=True)},
            }
        )
    return {"validation accuracy % around the last switch": table} if table else {}


def _note(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of them diverged, if any did: they count as chance."""
    num = sum("diverged" in r for r in rows)
    return f" ({num} of {len(rows)} diverged)" if num else ""


MOMENTS = ("before", "moved", "recalibrated")
"""When accuracy is measured at a switch."""


def _reach_table(rows: Sequence[Mapping[str, Any]], dynamics: str) -> dict[str, list[dict[str, str]]]:
    """Work to reach what fine only has after its largest budget, where it has had several."""
    fine = [r for r in rows if (r["arm"], r["dynamics"]) == ("fine only", dynamics)]
    budgets = {r["budget"] for r in fine}
    if len(budgets) < 2:
        return {}
    last = [r for r in fine if r["budget"] == max(budgets)]
    accuracy, work = (statistics.mean(r[key] for r in last) for key in ("test_accuracy", "flops"))
    table = [
        {
            "arm": arm,
            "trained with at most": f"{_most(rows, arm, dynamics) / 1e12:.1f}",
            "TFLOPs": "not reached" if found is None else f"{found / 1e12:.1f}",
            "share": "-" if found is None else f"{found / work:.2f}",
        }
        for arm, found in work_to_reach(rows, accuracy, dynamics).items()
    ]
    title = f"{dynamics}, work to reach {accuracy:.1%}, fine only after {max(budgets):g} epochs"
    return {title: table}


def _most(rows: Sequence[Mapping[str, Any]], arm: str, dynamics: str) -> float:
    return max(r["flops"] for r in rows if (r["arm"], r["dynamics"]) == (arm, dynamics))


def work_to_reach(
    rows: Sequence[Mapping[str, Any]], accuracy: float, dynamics: str = "hamiltonian"
) -> dict[str, float | None]:
    """Work by which each arm reaches a test accuracy, as FLOPs between the two trainings around it (log work, linear).

    Args:
        rows: with several budgets of each arm.

    Returns:
        None where even the largest budget falls short; the smallest budget's work where that already suffices.
    """
    result: dict[str, float | None] = {}
    for arm in ARMS:
        budgets = sorted({r["budget"] for r in rows if r["arm"] == arm and r["dynamics"] == dynamics})
        points = []
        for budget in budgets:
            own = [r for r in rows if (r["arm"], r["dynamics"], r["budget"]) == (arm, dynamics, budget)]
            points.append((statistics.mean(r["flops"] for r in own), statistics.mean(r["test_accuracy"] for r in own)))
        if not points:
            continue
        result[arm] = points[0][0] if points[0][1] >= accuracy else None
        for (w0, a0), (w1, a1) in itertools.pairwise(points):
            if a0 < accuracy <= a1:
                t = (accuracy - a0) / (a1 - a0)
                result[arm] = math.exp((1 - t) * math.log(w0) + t * math.log(w1))
                break
    return result


def mean_and_spread(values: Sequence[float], sign: bool = False) -> str:
    """Mean ± standard deviation over the seeds, the mean alone for one seed."""
    mean = f"{statistics.mean(values):{'+' if sign else ''}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
