"""The response to divergence: a training returns to its last checkpoint with half the learning rate, or gives up."""

from pathlib import Path
from typing import Any

from multipde.training.level import Level
from multipde.training.monitor import DivergedError, DivergenceError
from multipde.training.state import TrainState

MANY_ROLLBACKS = 3
"""Number of rollbacks after which a training gives up."""


def rollback_record(
    error: DivergenceError, state: TrainState, level: Level, on_divergence: str, checkpoint: Path | None
) -> dict[str, Any]:
    """The record of a rollback to a checkpoint; DivergedError if none is wanted or possible, or after too many."""
    text = f"{error} at size {level.label}, epoch {state.epoch + 1}, step {state.batch + 1}"
    rate = state.rate_scale * level.learning_rate
    if on_divergence == "stop" or len(state.rollbacks) == MANY_ROLLBACKS or checkpoint is None:
        advice = f"type a smaller --learning-rate than {rate:g}"
        if on_divergence == "stop":
            advice += ", or --on-divergence rollback"
        tried = f" after {len(state.rollbacks)} rollbacks" if state.rollbacks else ""
        raise DivergedError(f"{text}{tried}; {advice}. What was saved before is in {checkpoint}") from None
    return {"error": text, "learning_rate": rate / 2}
