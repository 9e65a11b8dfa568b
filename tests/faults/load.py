"""A long training on very many small files, or on shards of them: memory and open files stay as they are."""

import io
import os
import time
from pathlib import Path

from PIL import Image

from multipde import Level, NetworkConfig, Schedule, TrainSettings, train, write_shards
from multipde.data.shapes import render_shapes
from multipde.training.step import TrainStep

CLASSES = 10


def write_images(root: Path, num: int, size: int = 8) -> None:
    """A folder data set of shapes, a twentieth of it for testing."""
    for part, count, seed in (("train", num, 0), ("test", max(CLASSES, num // 20), 1)):
        for c in range(CLASSES):
            (root / part / f"class{c}").mkdir(parents=True)
        for start in range(0, count, 10_000):
            images, labels = render_shapes(min(10_000, count - start), size, seed + 2 * start)
            for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), start):
                stream = io.BytesIO()
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "PNG", compress_level=1)
                (root / part / f"class{label}" / f"{i:06d}.png").write_bytes(stream.getvalue())


def campaign(num: int, place: Path, epochs: int = 1, shards: bool = False) -> dict[str, float]:
    """Train a small network on ``num`` streamed images, watching the memory of this process and its workers.

    Args:
        epochs: epochs on each of the two levels.
        shards: stream the images from shards.

    Returns:
        Resident MiB of trainer and workers and open files, after the first tenth of the steps and after the last, the
        largest in between, images per second.
    """
    started = time.perf_counter()
    write_images(place / "images", num)
    data, root, options = "folder", place / "images", {"stream_files": True}
    if shards:
        data, root, options = "webdataset", place / "shards", {}
        write_shards(place / "images", root)
    written = time.perf_counter()
    plan = Schedule([Level(4, epochs, batch=250), Level(8, epochs, batch=250)])
    network = NetworkConfig("hamiltonian", (4, 6), 8, steps=2, size=8)
    settings = TrainSettings(device="cpu", calibration_images=500)
    seen: list[tuple[float, float, int]] = []
    original = TrainStep.__call__

    def step(self: TrainStep, *args, **options):
        result = original(self, *args, **options)
        if len(seen) < 200 or len(seen) % 20 == 0:
            seen.append((_resident(os.getpid()), sum(map(_resident, _children())), len(os.listdir("/proc/self/fd"))))
        else:
            seen.append(seen[-1])
        return result

    TrainStep.__call__ = step
    try:
        done = train(
            network,
            plan,
            data,
            place / "run",
            settings=settings,
            data_options={"root": root, **options},
            quiet=True,
        )
    finally:
        TrainStep.__call__ = original
    early, last = seen[len(seen) // 10], seen[-1]
    images = sum(row["images_per_second"] * row["seconds"] for row in done.metrics)
    return {
        "num": num,
        "images": round(images),
        "steps": len(seen),
        "trainer_mib_early": round(early[0], 1),
        "trainer_mib_late": round(last[0], 1),
        "trainer_mib_most": round(max(s[0] for s in seen), 1),
        "workers_mib_early": round(early[1], 1),
        "workers_mib_late": round(last[1], 1),
        "open_files_early": early[2],
        "open_files_late": last[2],
        "images_per_second": round(images / sum(row["seconds"] for row in done.metrics)),
        "test_accuracy": done.result["test_accuracy"],
        "seconds_to_write": round(written - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def _children() -> list[int]:
    pid = os.getpid()
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
