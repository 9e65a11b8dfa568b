"""Budgets, and the rule by which a level is left."""

import pytest

from multipde import Level, Schedule, TrainSettings
from multipde.training.schedule import levels_from_lists
from multipde.training.stopping import SHARE_REMOVED, Budget, StoppingRule, parse_budget, stopping_rule


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [("10min", 600, "seconds"), ("1.5 h", 5400, "seconds"), ("40TFLOPs", 4e13, "flops"), ("2e3gflops", 2e12, "flops")],
)
def test_budgets_as_users_type_them(text, amount, unit):
    assert parse_budget(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["10", "min", "-3min", "5 apples", "", "1.2.3min"])
def test_other_budgets_are_refused(text):
    with pytest.raises(ValueError, match="budget must be a number with min, h, GFLOPs or TFLOPs, such as 10min"):
        parse_budget(text)


def test_a_level_is_left_when_it_gains_less_per_work_than_the_next_is_expected_to():
    rule = StoppingRule(Budget(1000, "flops"))
    state = rule.begin({}, 0, 0, epoch_flops=1, accuracy=0.1, is_last=False)
    accuracy, smoothed = 0.1, None
    for epoch, reached in enumerate((0.4, 0.5, 0.51, 0.515, 0.516, 0.516, 0.516), start=1):
        state = rule.after_epoch(state, epoch, epoch, 0, reached, next_flops=4)
        gain, accuracy = reached - accuracy, reached
        smoothed = gain if smoothed is None else (gain + smoothed) / 2
        assert state["gain"] == pytest.approx(smoothed)
        assert state["leave"] == (smoothed < SHARE_REMOVED * (1 - reached) / 4)
    assert state["leave"]


def test_bounds_on_the_epochs_and_on_the_share_of_the_budget():
    def leave(rule, epochs, gains=0.5, budget_spent=1.0):
        state = rule.begin({}, 0, 0, 1, 0.0, False)
        return rule.after_epoch(state, epochs, budget_spent, 0, gains, 4)["leave"]

    assert not leave(StoppingRule(Budget(1000, "flops")), 1)
    assert leave(StoppingRule(Budget(1000, "flops"), max_epochs=3), 3)
    assert leave(StoppingRule(Budget(1000, "flops")), 1, gains=0.0)
    assert not leave(StoppingRule(Budget(1000, "flops"), min_epochs=2), 1, gains=0.0)
    assert leave(StoppingRule(Budget(3, "flops")), 1)  # a second epoch would go beyond half of the budget
    assert not leave(StoppingRule(Budget(4, "flops")), 1)


def test_the_last_level_has_what_remains():
    rule = StoppingRule(Budget(10, "flops"))
    assert rule.begin({}, 4, 0, epoch_flops=4, accuracy=0.5, is_last=True)["planned"] == pytest.approx(1.5)
    assert rule.begin({}, 11, 0, epoch_flops=4, accuracy=0.5, is_last=True)["planned"] == 0.05
    timed = StoppingRule(Budget(100, "seconds"))
    state = timed.begin({}, 0, 0, 1, 0.1, False)
    state = timed.after_epoch(state, 1, flops=5, seconds=20, accuracy=0.3, next_flops=20)
    assert state["price"] == 4
    assert timed.begin(state, 5, 20, epoch_flops=20, accuracy=0.3, is_last=True)["planned"] == pytest.approx(1)


def test_learning_rates_rise_on_the_first_level_and_fall_on_the_last():
    levels = levels_from_lists([8, 16, 32], auto=True)
    assert [level.policy for level in levels] == ["warm_up", "constant", "cool_down"]
    plan = Schedule(levels)
    rates = [plan.rate(0, 0), plan.rate(0, 0.5), plan.rate(1, 0), plan.rate(2, 0)]
    assert rates == pytest.approx([0.01, 0.1, 0.1, 0.1])
    assert plan.rate(2, 1) == pytest.approx(0)
    assert [row["epochs"] for row in plan.rows()] == ["auto"] * 3
    assert {row["share"] for row in plan.rows()} == {"-"}


@pytest.mark.parametrize(
    ("levels", "settings", "message"),
    [
        ([Level(8, None), Level(16, 1)], {"budget": "1min"}, "epochs must be given for all levels or for none"),
        ([Level(8, 1)], {"budget": "1min"}, "budget must be left out where epochs are given, got 1min"),
        ([Level(8, None), Level(16, None)], {}, "budget must be given where epochs are auto; type --budget 10min"),
        (
            [Level(8, None)],
            {"budget": "1min"},
            "policy must be warm_up, constant, cool_down or one_cycle where epochs are auto, got across",
        ),
        (
            [Level(8, None, policy="one_cycle")],
            {"budget": "1min"},
            "budget must be in FLOPs for a single level, got 1min",
        ),
    ],
)
def test_what_does_not_fit_is_named(levels, settings, message):
    with pytest.raises(ValueError, match=message):
        stopping_rule(Schedule(levels), TrainSettings(**settings))
    with pytest.raises(ValueError, match="min_epochs must lie between 1 and max_epochs, got 3 and 2"):
        TrainSettings(min_epochs=3, max_epochs=2)
