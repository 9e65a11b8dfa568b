"""The end of a training: the rest of its epochs, its test, and what is written and returned then."""

import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multipde.data.datasets import ImageData
from multipde.networks.model_spec import spec_of
from multipde.runtime.signals import pending_signals
from multipde.storage.provenance import ChecksumWriter
from multipde.storage.rows import read_metrics
from multipde.storage.run_directory import METRICS, RECORD
from multipde.training.result import level_rows, write_result
from multipde.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        directory: the run directory; `load` reads the network from it.
        model: the network of the last level, with the weights that were best on the validation images.
        result: ``test_accuracy`` in [0, 1], ``test_loss``, ``test_metric`` where a metric was given, ``seconds``,
            ``flops``, and a list of records for the ``levels``, the ``moves`` between them and the ``rollbacks``.
        metrics: a record per epoch, with losses, accuracies, seconds and FLOPs.
    """

    directory: Path
    model: Any
    result: Mapping[str, Any]
    metrics: list[dict[str, Any]]


def finish_run(trainer: Trainer, images: ImageData) -> Run:
    """Train the remaining epochs, test the best weights, and write them with the result."""
    log, run_dir = trainer.log, trainer.run_dir
    sizes = [level.size for level in trainer.schedule.levels]
    falling = [f"sizes go from large to small, {' '.join(map(str, sizes))}; coarse to fine is the other way round"]
    enlarged = images.enlarged(level.image_size for level in trainer.schedule.levels)
    for note in (*images.notes, *enlarged, *falling * (sizes != sorted(sizes))):
        log.say(f"note: {note}")
    log.log.table(trainer.schedule.rows(), f"{images.name}, {spec_of(trainer.net).label}")
    with closing(ChecksumWriter(images, run_dir / RECORD)) as checksum:
        with pending_signals() as trainer.signals, closing(log):
            trainer.after_epoch = checksum.update
            model = trainer.run()
            test = trainer.test()
            log.tested(test.confusion)
        checksum.update(wait=True)
    result, state = write_result(trainer, model, test), trainer.state
    log.log.table(level_rows(trainer.schedule, state.levels), "Cost and accuracy of each level")
    loss, size = "loss" if trainer.objective.loss else "cross entropy", trainer.schedule.levels[-1].label
    metric = "" if test.metric is None else f"metric {test.metric:.4g}, "
    log.say(
        f"test accuracy {test.accuracy:.2%}, {metric}{loss} {test.loss:.3f} at size {size} "
        f"after {state.seconds / 60:.1f} min; written to {run_dir}"
    )
    if trainer.signals.stop:  # received after the last step: the training is complete, the caller is interrupted
        signal.raise_signal(trainer.signals.stop)
    return Run(run_dir, model, result, read_metrics(run_dir / METRICS))
