"""Stop a training by a signal at every one of its steps and take it up: the same run, bit for bit."""

import os
import shutil
import signal
import time
from pathlib import Path

from multipde import NetworkConfig, Run, Schedule, TrainSettings, resume, train
from multipde.runtime.signals import Interrupted
from multipde.training.schedule import levels_from_lists
from multipde.training.step import TrainStep
from tests.faults.kill import same_run

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16)
OPTIONS = {"num_train": 150, "num_test": 40}

RECIPES = {
    "copy": ({"epochs": [2, 1.5]}, {"transfer": "copy"}),
    "calibrated": ({"epochs": [1, 1]}, {"transfer": "calibrated"}),
    "calibrated_full": ({"epochs": [1, 1]}, {"transfer": "calibrated_full"}),
    "dual": ({"epochs": [1, 1]}, {"transfer": "galerkin", "momentum_rule": "dual"}),
    "reset": ({"epochs": [1, 1]}, {"transfer": "copy", "momentum_rule": "reset"}),
    "finest": ({"epochs": [1, 1]}, {"coordinates": "finest"}),
    "mixed": ({"epochs": [1, 1], "mixed": True}, {}),
    "mixed finest": ({"epochs": [1, 1], "mixed": True}, {"coordinates": "finest"}),
    "part": ({"epochs": [1.5, 0.5]}, {"transfer": "copy", "precise_images": 0}),
    "auto steps": ({"epochs": [1, 1]}, {"auto_steps": True, "transfer": "rediscretize"}),
    "auto epochs": ({"auto": True}, {"budget": "0.8GFLOPs", "transfer": "copy", "precise_images": 20}),
    "muon": ({"epochs": [1, 1]}, {"optimizer": "muon", "weight_decay": 0.1, "bias_rate": 8.0, "transfer": "galerkin"}),
    "bf16": ({"epochs": [1, 1]}, {"amp": "bf16"}),
}


def start(directory: Path, recipe: str) -> Run:
    """Train by a recipe."""
    levels, settings = RECIPES[recipe]
    plan = Schedule(levels_from_lists([8, 16], batch=[40], policy="across", **levels))  # pyright: ignore
    chosen = TrainSettings(device="cpu", calibration_images=120, **settings)  # pyright: ignore[reportArgumentType]
    return train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, quiet=True)


def campaign(place: Path, recipes: tuple[str, ...] = tuple(RECIPES), every: int = 1) -> dict[str, float]:
    """Stop at every so many-th step of every recipe.

    Returns:
        How many were tried, and how many gave other weights, momentum or metrics.
    """
    counts: dict[str, float] = {"recipes": len(recipes), "tried": 0, "different": 0}
    original, began = TrainStep.__call__, time.perf_counter()
    calls: list[int] = []

    def counted(stop_at: int):
        def step(self: TrainStep, *args, **options):
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *args, **options)

        return step

    try:
        for recipe in recipes:
            calls.clear()
            TrainStep.__call__ = counted(0)
            start(place / "undisturbed", recipe)
            for stop_at in range(1, len(calls) + 1, every):
                calls.clear()
                TrainStep.__call__ = counted(stop_at)
                try:
                    start(place / "run", recipe)
                    raise RuntimeError("the training must be stopped by the signal")
                except Interrupted:
                    resume(place / "run", quiet=True)
                counts["tried"] += 1
                counts["different"] += not same_run(place / "run", place / "undisturbed")
                shutil.rmtree(place / "run")
            shutil.rmtree(place / "undisturbed")
    finally:
        TrainStep.__call__ = original
    return counts | {"seconds": round(time.perf_counter() - began, 1)}
