"""Coarse to fine pays: the same work spent on 16 and then 32 pixels, and on 32 pixels alone.

Trains a small Hamiltonian network twice on the embedded shapes, both times with about the same number of floating point
operations. Takes about 25 seconds on two cores. What it reaches:

RESULT
"""

import tempfile
from pathlib import Path

from multipde import Level, NetworkConfig, Schedule, TrainSettings, load_data, train

NETWORK = NetworkConfig("hamiltonian", channels=(8, 16), out_channels=24, steps=2)
PLANS = {
    "coarse to fine": Schedule([Level(16, epochs=8), Level(32, epochs=2)], NETWORK),
    "fine only": Schedule([Level(32, epochs=4)], NETWORK),
}


def main() -> None:
    data = load_data("shapes", size=32, num_train=3000, num_test=1000)
    print(f"{'plan':<16}{'GFLOPs':>8}{'test accuracy':>15}")
    for name, plan in PLANS.items():
        with tempfile.TemporaryDirectory() as place:
            settings = TrainSettings(device="cpu")
            run = train(NETWORK, plan, data, Path(place) / "run", settings=settings, quiet=True)
        print(f"{name:<16}{run.result['flops'] / 1e9:>8.0f}{run.result['test_accuracy']:>15.1%}")


if __name__ == "__main__":
    main()
