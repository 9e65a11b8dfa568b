"""The tables of ``multipde bench transfer`` from its rows."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from multipde.networks.dynamics import DYNAMICS
from multipde.runtime.table import Row, Table
from multipde.studies.bench.equal_work import Budget, work_text
from multipde.studies.bench.transfer_arms import ALL, OWN, RECIPES
from multipde.studies.study import matching, mean_and_spread

MOMENTS = ("before", "moved", "recalibrated")
"""The moments at a change of level at which accuracy is measured."""


class Group(NamedTuple):
    """What the rows of all seeds of one kind of training have in common."""

    dynamics: str
    budget: Budget
    arm: str
    recipe: str


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """The tables of accuracy at equal work, of work at equal accuracy, and of the loss at the last change of level."""
    result: dict[str, Table] = {}
    groups = list(dict.fromkeys((g.dynamics, g.budget) for g in _groups(rows)))
    for dynamics, budget in groups:
        text = budget if isinstance(budget, str) else f"{budget:g} epochs at full size"
        result[f"{dynamics}, work of {text}"] = _accuracy_table(matching(rows, dynamics=dynamics, budget=budget))
    for dynamics in dict.fromkeys(dynamics for dynamics, _ in groups):
        for recipe in RECIPES:
            result |= _reach_table(matching(rows, dynamics=dynamics), recipe)
    return result | _switch_table(rows)


def _groups(rows: Sequence[Row]) -> list[Group]:
    """The distinct groups, sorted by dynamics, then by work, then by recipe and arm."""
    dynamics, arms, recipes = [*DYNAMICS], [*ALL], [*RECIPES, OWN]
    found = {Group(*(row[key] for key in Group._fields)) for row in rows}
    work = {b: min(r["flops"] for r in rows if r["budget"] == b) for b in {g.budget for g in found}}
    order = lambda g: (dynamics.index(g.dynamics), work[g.budget], recipes.index(g.recipe), arms.index(g.arm))  # noqa: E731
    return sorted(found, key=order)


def _accuracy_table(rows: Sequence[Row]) -> Table:
    """For one dynamics and budget, mean and spread over the seeds, and the gain over copy with the same seed."""
    table = []
    for group in _groups(rows):
        own = matching(rows, **group._asdict())
        copied = {r["seed"]: r["test_accuracy"] for r in matching(rows, arm="copy", recipe=group.recipe)}
        gains = [100 * (r["test_accuracy"] - copied[r["seed"]]) for r in own if r["seed"] in copied]
        diverged = sum("diverged" in r for r in own)
        note = f" ({diverged} of {len(own)} diverged)" if diverged else ""
        line = {"arm": group.arm, "recipe": group.recipe, "seeds": str(len(own))}
        line["accuracy %"] = mean_and_spread([100 * r["test_accuracy"] for r in own]) + note
        line["gain over copy"] = "-" if group.arm == "copy" or not gains else mean_and_spread(gains, sign=True)
        line["cross entropy"] = f"{_mean(own, 'test_loss'):.3f}"
        line |= {"TFLOPs": f"{_mean(own, 'flops') / 1e12:.1f}", "minutes": f"{_mean(own, 'seconds') / 60:.1f}"}
        table.append(line)
    return table


def _switch_table(rows: Sequence[Row]) -> dict[str, Table]:
    """The loss of accuracy at the last change of level, and the part that recalibration regains: means over seeds."""
    table = []
    moved = [row for row in rows if row["moves"]]
    for group in _groups(moved):
        moves = [row["moves"][-1] for row in matching(moved, **group._asdict())]
        means = {when: f"{100 * _mean(moves, f'accuracy_{when}'):.1f}" for when in MOMENTS}
        switch = {"switch": f"{moves[0]['from']} to {moves[0]['to']}", "seeds": str(len(moves))}
        names = {"dynamics": group.dynamics, "arm": group.arm, "recipe": group.recipe}
        table.append(names | {"work": work_text(group.budget)} | switch | means)
    return {"validation accuracy % around the last switch": table} if table else {}


def _reach_table(rows: Sequence[Row], recipe: str) -> dict[str, Table]:
    """The work that each arm needs to reach the accuracy of fine only with its largest budget, if there are several."""
    fine = matching(rows, arm="fine only", recipe=recipe)
    if not fine or len({row["budget"] for row in rows}) < 2:
        return {}
    dynamics, budget = fine[0]["dynamics"], max(fine, key=lambda row: row["flops"])["budget"]
    last = matching(fine, budget=budget)
    accuracy, work = _mean(last, "test_accuracy"), _mean(last, "flops")
    table = []
    for (arm, own), found in work_to_reach(rows, accuracy).items():
        most = max(row["flops"] for row in matching(rows, arm=arm, recipe=own))
        line = {"arm": arm, "recipe": own, "trained with at most": f"{most / 1e12:.1f}"}
        line["TFLOPs"] = "not reached" if found is None else f"{found / 1e12:.1f}"
        table.append(line | {"share": "-" if found is None else f"{found / work:.2f}"})
    text = work_text(budget).removesuffix(" of work")
    return {f"{dynamics}, work to reach {accuracy:.1%}, fine only with {recipe} after {text}": table}


def work_to_reach(rows: Sequence[Row], accuracy: float) -> dict[tuple[str, str], float | None]:
    """The work in FLOPs with which each arm and recipe reaches a test accuracy, from the rows of one dynamics.

    It is interpolated in its logarithm between trainings; None where even the largest budget does not suffice, and the
    work of the smallest budget where that suffices.
    """
    result: dict[tuple[str, str], float | None] = {}
    pairs = dict.fromkeys((g.arm, g.recipe) for g in sorted(_groups(rows), key=lambda g: [*ALL].index(g.arm)))
    for arm, recipe in pairs:
        own = matching(rows, arm=arm, recipe=recipe)
        groups = [matching(own, budget=budget) for budget in {row["budget"] for row in own}]
        points = sorted((_mean(group, "flops"), _mean(group, "test_accuracy")) for group in groups)
        result[arm, recipe] = points[0][0] if points[0][1] >= accuracy else None
        for (w0, a0), (w1, a1) in itertools.pairwise(points):
            if a0 < accuracy <= a1:
                t = (accuracy - a0) / (a1 - a0)
                result[arm, recipe] = math.exp((1 - t) * math.log(w0) + t * math.log(w1))
                break
    return result


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.mean(row[name] for row in rows)
