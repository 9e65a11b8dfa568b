"""The stopping rule of a level whose number of epochs is not given: gain per unit of work, within a budget."""

from dataclasses import dataclass
from typing import Any

from multipde.networks.limits import EPOCHS
from multipde.training.budget import Budget, parse_budget
from multipde.training.schedule import Schedule
from multipde.training.settings import TrainSettings

SHARE_REMOVED = 0.1
"""Share of the error that an epoch on the next level is expected to remove: a run on CIFAR-10 removed 0.43 in six
epochs at 16 pixels and 0.30 in three at 32."""

LEAST_EPOCHS = 0.05
"""Number of epochs of the last level if the budget is spent before it begins."""


@dataclass(frozen=True)
class StoppingRule:
    """Ends a level when it gains less accuracy per unit of work than the next level is expected to gain.

    After every epoch e of work w with validation accuracy a_e the gain is smoothed,

        g_e = (a_e - a_{e-1})/w,    s_e = (g_e + s_{e-1})/2,    s_1 = g_1,

    and the level is left when

        s_e < 0.1 (1 - a_e)/w_next,

    since the next level is expected to remove a tenth of the error in an epoch of work w_next. A level has at least
    ``min_epochs`` and at most ``max_epochs``, and ends before it would exceed half of the budget that was left when it
    began. The last level has the rest of the budget; its number of epochs is fixed when it begins, so that its learning
    rate can fall to zero. The state of the rule is a plain dict that is saved in the checkpoints.
    """

    budget: Budget
    min_epochs: int = 1
    max_epochs: int = 100

    def begin(
        self, state: dict[str, Any], flops: float, seconds: float, epoch_flops: float, accuracy: float, is_last: bool
    ) -> dict[str, Any]:
        """State at the start of a level; FLOPs and seconds are those spent so far, the accuracy is the present one."""
        spent = flops if self.budget.unit == "flops" else seconds
        left = max(0.0, self.budget.amount - spent)
        price = 1.0 if self.budget.unit == "flops" else state.get("price")
        fresh = {"began": spent, "accuracy": accuracy, "gain": None, "price": price, "leave": False, "planned": None}
        if not is_last:
            return fresh | {"allowed": left / 2, "flops": flops, "seconds": seconds}
        assert price is not None  # stopping_rule requires two levels for a budget in time
        return fresh | {"planned": min(EPOCHS[1], max(LEAST_EPOCHS, left / (price * epoch_flops)))}

    def after_epoch(
        self, state: dict[str, Any], epochs: int, flops: float, seconds: float, accuracy: float, next_flops: float
    ) -> dict[str, Any]:
        """State after an epoch of a level that is not the last; ``leave`` tells whether the level ends.

        Args:
            epochs: number of finished epochs of this level.
            next_flops: work of an epoch of the next level.
        """
        spent = flops if self.budget.unit == "flops" else seconds
        work = flops - state["flops"] if self.budget.unit == "flops" else seconds - state["seconds"]
        price = 1.0 if self.budget.unit == "flops" else work / (flops - state["flops"])
        gain = (accuracy - state["accuracy"]) / work
        smoothed = gain if state["gain"] is None else (gain + state["gain"]) / 2
        is_poor = smoothed < SHARE_REMOVED * (1 - accuracy) / (price * next_flops)
        is_over = epochs >= self.max_epochs or spent - state["began"] + work > state["allowed"]
        return state | {
            "flops": flops,
            "seconds": seconds,
            "accuracy": accuracy,
            "gain": smoothed,
            "price": price,
            "leave": is_over or (epochs >= self.min_epochs and is_poor),
        }


def stopping_rule(schedule: Schedule, settings: TrainSettings) -> StoppingRule | None:
    """The stopping rule of a schedule, None where it gives the numbers of epochs; ValueError if both or neither do."""
    unknown = [level for level in schedule.levels if level.epochs is None]
    if not unknown:
        if settings.budget is not None:
            raise ValueError(f"budget must be left out where epochs are given, got {settings.budget}")
        return None
    if len(unknown) < len(schedule.levels):
        raise ValueError("epochs must be given for all levels or for none, got some of them")
    if settings.budget is None:
        raise ValueError("budget must be given where epochs are auto; type --budget 10min or --budget 40TFLOPs")
    if any(level.policy == "across" for level in unknown):
        raise ValueError("policy must be warm_up, constant, cool_down or one_cycle where epochs are auto, got across")
    budget = parse_budget(settings.budget)
    if budget.unit == "seconds" and len(unknown) == 1:
        raise ValueError(f"budget must be in FLOPs for a single level, got {settings.budget}")
    return StoppingRule(budget, settings.min_epochs, settings.max_epochs)
