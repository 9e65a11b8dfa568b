"""The tables of ``multipde bench transfer`` from its rows."""

import itertools
import math
import statistics
from collections.abc import Sequence

from multipde.networks.dynamics import DYNAMICS
from multipde.runtime.table import Row, Table
from multipde.studies.bench.transfer_arms import ARMS, IDEAS
from multipde.studies.study import matching, mean_and_spread

MOMENTS = ("before", "moved", "recalibrated")
"""The moments at a change of level at which accuracy is measured."""


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """The tables of accuracy at equal work, of work at equal accuracy, and of the loss at the last change of level."""
    result: dict[str, Table] = {}
    groups = list(dict.fromkeys((dynamics, budget) for dynamics, _, budget in _groups(rows)))
    for dynamics, budget in groups:
        mine = matching(rows, dynamics=dynamics, budget=budget)
        result[f"{dynamics}, work of {budget:g} epochs at full size"] = _accuracy_table(mine)
    for dynamics in dict.fromkeys(dynamics for dynamics, _ in groups):
        result |= _reach_table(matching(rows, dynamics=dynamics))
    return result | _switch_table(rows)


def _groups(rows: Sequence[Row]) -> list[tuple[str, str, float]]:
    """The distinct triples of dynamics, arm and budget, sorted by dynamics, then by budget, then by arm."""
    order, found = ([*DYNAMICS], [*ARMS, *IDEAS]), {(r["dynamics"], r["arm"], r["budget"]) for r in rows}
    return sorted(found, key=lambda g: (order[0].index(g[0]), g[2], order[1].index(g[1])))


def _accuracy_table(rows: Sequence[Row]) -> Table:
    """For one dynamics and budget, mean and spread over the seeds, and the gain over copy with the same seed."""
    copied = {row["seed"]: row["test_accuracy"] for row in matching(rows, arm="copy")}
    table = []
    for _, arm, _ in _groups(rows):
        own = matching(rows, arm=arm)
        gains = [100 * (r["test_accuracy"] - copied[r["seed"]]) for r in own if r["seed"] in copied]
        diverged = sum("diverged" in r for r in own)
        note = f" ({diverged} of {len(own)} diverged)" if diverged else ""
        line = {"arm": arm, "seeds": str(len(own))}
        line["accuracy %"] = mean_and_spread([100 * r["test_accuracy"] for r in own]) + note
        line["gain over copy"] = "-" if arm == "copy" or not gains else mean_and_spread(gains, sign=True)
        line["cross entropy"] = f"{_mean(own, 'test_loss'):.3f}"
        line |= {"TFLOPs": f"{_mean(own, 'flops') / 1e12:.1f}", "minutes": f"{_mean(own, 'seconds') / 60:.1f}"}
        table.append(line)
    return table


def _switch_table(rows: Sequence[Row]) -> dict[str, Table]:
    """The loss of accuracy at the last change of level, and the part that recalibration regains: means over seeds."""
    table = []
    moved = [row for row in rows if row["moves"]]
    order = {name: i for i, name in enumerate((*ARMS, *IDEAS))}
    for dynamics, arm, budget in sorted(_groups(moved), key=lambda g: ([*DYNAMICS].index(g[0]), order[g[1]], g[2])):
        moves = [row["moves"][-1] for row in matching(moved, dynamics=dynamics, arm=arm, budget=budget)]
        means = {when: f"{100 * _mean(moves, f'accuracy_{when}'):.1f}" for when in MOMENTS}
        switch = {"switch": f"{moves[0]['from']} to {moves[0]['to']}", "seeds": str(len(moves))}
        table.append({"dynamics": dynamics, "arm": arm, "epochs of work": f"{budget:g}"} | switch | means)
    return {"validation accuracy % around the last switch": table} if table else {}


def _reach_table(rows: Sequence[Row]) -> dict[str, Table]:
    """The work that each arm needs to reach the accuracy of fine only with its largest budget, if it has several."""
    fine = matching(rows, arm="fine only")
    budgets = {row["budget"] for row in fine}
    if len(budgets) < 2:
        return {}
    last, dynamics = matching(fine, budget=max(budgets)), fine[0]["dynamics"]
    accuracy, work = _mean(last, "test_accuracy"), _mean(last, "flops")
    table = [
        {
            "arm": arm,
            "trained with at most": f"{max(row['flops'] for row in matching(rows, arm=arm)) / 1e12:.1f}",
            "TFLOPs": "not reached" if found is None else f"{found / 1e12:.1f}",
            "share": "-" if found is None else f"{found / work:.2f}",
        }
        for arm, found in work_to_reach(rows, accuracy, dynamics).items()
    ]
    return {f"{dynamics}, work to reach {accuracy:.1%}, fine only after {max(budgets):g} epochs": table}


def work_to_reach(rows: Sequence[Row], accuracy: float, dynamics: str = "hamiltonian") -> dict[str, float | None]:
    """The work in FLOPs with which each arm reaches a test accuracy, interpolated in its logarithm between trainings.

    It is None where even the largest budget does not suffice, and the work of the smallest budget where that suffices.
    """
    result: dict[str, float | None] = {}
    for arm in ARMS:
        own = matching(rows, arm=arm, dynamics=dynamics)
        groups = [matching(own, budget=budget) for budget in sorted({row["budget"] for row in own})]
        points = [(_mean(group, "flops"), _mean(group, "test_accuracy")) for group in groups]
        if points:
            result[arm] = points[0][0] if points[0][1] >= accuracy else None
        for (w0, a0), (w1, a1) in itertools.pairwise(points):
            if a0 < accuracy <= a1:
                t = (accuracy - a0) / (a1 - a0)
                result[arm] = math.exp((1 - t) * math.log(w0) + t * math.log(w1))
                break
    return result


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.mean(row[name] for row in rows)
