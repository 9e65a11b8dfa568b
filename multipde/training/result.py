"""The files that a run writes at its end, the network and its test result, and a table of its levels."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from multipde.evaluation.metrics import Metrics
from multipde.runtime.processes import on_rank_zero
from multipde.storage.files import SUMS, checksums, write_file
from multipde.storage.records import json_bytes
from multipde.storage.run_directory import METRICS, RECORD, RESULT
from multipde.storage.schema import FORMAT
from multipde.storage.stored_network import network_files
from multipde.training.level import steps_text
from multipde.training.schedule import Schedule
from multipde.training.trainer import Trainer


def write_result(trainer: Trainer, model: nn.Module, test: Metrics) -> dict[str, Any]:
    """Write the best network of a run, the checksums of its files, and the record of its result, which is returned."""
    state = trainer.state
    result = {
        "format": FORMAT,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        **({} if test.metric is None else {"test_metric": test.metric}),
        "seconds": state.seconds,
        "flops": state.flops,
        "levels": state.levels,
        "moves": state.moves,
        "rollbacks": state.rollbacks,
    }

    def write() -> None:
        run, last = trainer.run_dir, json_bytes(result)
        for name, data in (files := network_files(model)).items():
            write_file(run / name, data)
        written = [run / name for name in (RECORD, METRICS)] + sorted(run.glob("level-*.safetensors"))
        sums = checksums(files | {RESULT: last} | {file.name: file.read_bytes() for file in written})
        write_file(run / SUMS, sums)
        write_file(run / RESULT, last)

    on_rank_zero(write)
    return result


def level_rows(schedule: Schedule, levels: list[dict[str, Any]]) -> list[Mapping[str, str]]:
    """A table with the share of work and time and the best validation accuracy of each level, as text."""
    rows, flops, seconds = [], 0.0, 0.0
    total_flops, total_seconds = levels[-1]["total_flops"], levels[-1]["total_seconds"] or 1
    for planned, reached in zip(schedule.rows(), levels, strict=True):
        rows.append(
            {
                **{key: planned[key] for key in ("level", "size")},
                "steps": steps_text(tuple(reached["steps"])),
                "epochs": f"{reached['epochs']:g}",
                "share of work": f"{(reached['total_flops'] - flops) / total_flops:.0%}",
                "share of time": f"{(reached['total_seconds'] - seconds) / total_seconds:.0%}",
                "best validation": f"{reached['validation_accuracy']:.1%}",
            }
            | ({"metric": f"{reached['validation_metric']:.4g}"} if "validation_metric" in reached else {})
        )
        flops, seconds = reached["total_flops"], reached["total_seconds"]
    return rows
