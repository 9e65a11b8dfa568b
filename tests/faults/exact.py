"""Stop a training by a signal at every one of its steps and take it up: the same weights, bit for bit."""

import os
import shutil
import signal
import time
from pathlib import Path

from multipde import NetworkConfig, Schedule, TrainSettings, resume, train
from multipde.runtime.signals import Interrupted
from multipde.training.schedule import levels_from_lists
from multipde.training.step import TrainStep

NETWORK = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=16)
OPTIONS = {"num_train": 200, "num_test": 60}

RECIPES = {
    "copy": ({"epochs": [2, 1.5]}, {"transfer": "copy"}),
    "calibrated": ({"epochs": [1, 1]}, {"transfer": "calibrated_full"}),
    "finest": ({"epochs": [1, 1]}, {"coordinates": "finest"}),
    "mixed": ({"epochs": [1, 1], "mixed": True}, {}),
    "auto steps": ({"epochs": [1, 1]}, {"auto_steps": True, "transfer": "rediscretize"}),
    "auto epochs": ({"auto": True}, {"budget": "4GFLOPs"}),
    "bf16": ({"epochs": [1, 1]}, {"amp": "bf16"}),
}


def start(directory: Path, recipe: str) -> None:
    """Train by a recipe."""
    levels, settings = RECIPES[recipe]
    plan = Schedule(levels_from_lists([8, 16], batch=[40], policy="across", **levels))  # pyright: ignore
    chosen = TrainSettings(device="cpu", calibration_images=120, **settings)  # pyright: ignore[reportArgumentType]
    train(NETWORK, plan, "shapes", directory, settings=chosen, data_options=OPTIONS, quiet=True)


def campaign(place: Path, recipes: tuple[str, ...] = tuple(RECIPES), every: int = 1) -> dict[str, float]:
    """Stop at every so many-th step of every recipe.

    Returns:
        How many were tried, and how many gave other weights.
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
            expected = (place / "undisturbed/model.safetensors").read_bytes()
            for stop_at in range(1, len(calls) + 1, every):
                calls.clear()
                TrainStep.__call__ = counted(stop_at)
                try:
                    start(place / "run", recipe)
                    raise RuntimeError("the training must be stopped by the signal")
                except Interrupted:
                    resume(place / "run", quiet=True)
                counts["tried"] += 1
                counts["different"] += (place / "run/model.safetensors").read_bytes() != expected
                shutil.rmtree(place / "run")
            shutil.rmtree(place / "undisturbed")
    finally:
        TrainStep.__call__ = original
    return counts | {"seconds": round(time.perf_counter() - began, 1)}
