"""Signals at chosen moments of a training."""

import os
import signal

import pytest

from multipde.training.step import TrainStep


@pytest.fixture
def signal_at_step(monkeypatch):
    """A function: this process gets a signal within the num-th step from now on; none for None."""
    original = TrainStep.__call__

    def at(num, signum=signal.SIGTERM):
        calls = []

        def step(self, *args, **options):
            calls.append(1)
            if len(calls) == num:
                os.kill(os.getpid(), signum)
            return original(self, *args, **options)

        monkeypatch.setattr(TrainStep, "__call__", step)

    return at
