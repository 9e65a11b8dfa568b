"""``multipde compare``: runs beside each other, in what their settings differ and how they went."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multipde.reports import run_figures as figures
from multipde.reports.page_figures import Figure
from multipde.reports.page_template import rendered
from multipde.reports.plots import COLOURS, DASHES, MARKERS
from multipde.reports.run_record import loss_name, reached, shown_value
from multipde.runtime.console import Log
from multipde.storage.files import check_own, write_file
from multipde.storage.records import flat_record
from multipde.storage.run_directory import RECORD

TEMPLATE = "comparison.html.jinja"
MARK = b": multipde comparison</title>"
"""The bytes by which a page is known to be ours."""

COMPARED = ("network", "levels", "settings", "data", "data_options", "num_train", "init", "work")
"""The parts of run.json that are compared."""


@dataclass(frozen=True)
class Compared:
    """A run, finished or not, as far as it is compared.

    Args:
        name: its directory, as short as it differs from the others.
        record: contents of run.json.
        rows: rows of metrics.jsonl.
        figures: what it has reached, by name; None where the run is not finished.
    """

    name: str
    record: dict[str, Any]
    rows: list[dict[str, Any]]
    figures: dict[str, Any]


def compare_runs(
    runs: Sequence[str | Path], out: str | Path | None = None, *, json: bool = False, log: Log | None = None
) -> dict[str, Any]:
    """Compare runs: final figures, settings that differ, and on a page the curves of all in one figure.

    A run that is not finished is compared as far as it is.

    Args:
        runs: directories of at least two runs.
        out: file for the page, which can be read without an internet connection; it is replaced if it is such a page.
        json: print the result as JSON instead of tables.

    Returns:
        ``runs``: the final figures of every run; ``differences``: by name such as ``settings.seed`` the values of the
        runs in their order.

    Raises:
        ValueError: there are fewer than two runs, one is twice there, or is no run or damaged.
        OSError: the page cannot be written, or the file exists and is no such page.
    """
    places = [Path(run) for run in runs]
    if len(places) < 2:
        raise ValueError(f"runs must be at least two, got {len(places)}; type multipde compare RUN RUN")
    if len({place.resolve() for place in places}) < len(places):
        raise ValueError(f"runs must differ, got {', '.join(map(str, places))}")
    if out is not None:
        if Path(out).is_dir():
            raise ValueError(f"out must be a file, got the directory {out}")
        check_own(Path(out), MARK, "a comparison")
    found = [_read(place, name) for place, name in zip(places, _names(places), strict=True)]
    result = {"runs": [{"name": run.name} | run.figures for run in found], "differences": differences(found)}
    if log is not None and json:
        log.json(result)
    elif log is not None:
        log.table([{"name": run.name} | shown(run.figures) for run in found], "Figures")
        if result["differences"]:
            log.table(_difference_rows(found, result["differences"]), "Settings that differ")
        else:
            log.say("all settings are equal")
    if out is not None:
        write_file(Path(out), _page(found, result["differences"]).encode(errors="backslashreplace"))
    return result


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """The entries of the records in which runs differ: by name the value of every run, None where it has none."""
    flat = [flat_record({part: run.record.get(part) for part in COMPARED}) for run in runs]
    names = dict.fromkeys(name for each in flat for name in each)
    values = {name: [each.get(name) for each in flat] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def _read(place: Path, name: str) -> Compared:
    if not (place / RECORD).exists():
        raise ValueError(f"run must be a directory with a {RECORD}, got {place}")
    found = reached(place)
    measured = {
        "state": "finished" if found.result else "not finished",
        "test_accuracy": found.result.get("test_accuracy"),
        "test_loss": found.result.get("test_loss"),
        "best_validation_accuracy": max((row["validation_accuracy"] for row in found.rows), default=None),
    }
    own = found.figures | measured | found.spent | {"epochs": len(found.rows)}
    return Compared(name, found.record, found.rows, own)


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of the directories, as many as they need to differ."""
    parts = [place.resolve().parts for place in places]
    for num in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-num:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def shown(own: dict[str, Any]) -> dict[str, str]:
    """The figures of a run as text."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    return {
        "network": str(own["network"]),
        "data": str(own["data"] or "-"),
        "sizes": own["sizes"],
        "state": own["state"],
        "test accuracy": share(own["test_accuracy"]),
        "test loss": "-" if own["test_loss"] is None else f"{own['test_loss']:.3f}",
        "best validation": share(own["best_validation_accuracy"]),
        "TFLOPs": f"{own['tflops']:.3g}",
        "minutes": f"{own['minutes']:.1f}",
        "epochs": str(own["epochs"]),
    }


def _difference_rows(runs: Sequence[Compared], found: dict[str, list[Any]]) -> list[dict[str, str]]:
    names = [run.name for run in runs]
    return [
        {"name": entry, **{name: shown_value(v) for name, v in zip(names, values, strict=True)}}
        for entry, values in found.items()
    ]


def _page(runs: Sequence[Compared], found: dict[str, list[Any]]) -> str:
    from markupsafe import Markup

    drawn = [
        Figure(
            f"{label} against {against}",
            Markup(figures.svg(lambda k=key, a=against: _curves(runs, k, a), f"{key}-{against}", f"{label}, all runs")),
        )
        for key, label in (("validation_accuracy", "Validation accuracy"), ("train_loss", "Training loss"))
        for against in ("work", "epochs")
    ]
    return rendered(
        TEMPLATE,
        title=" and ".join(run.name for run in runs),
        runs=[(run.name, shown(run.figures)) for run in runs],
        figures=drawn if any(run.rows for run in runs) else [],
        differences=[(name, [shown_value(value) for value in values]) for name, values in found.items()],
    )


def _curves(runs: Sequence[Compared], key: str, against: str) -> Any:
    """One entry of the metrics of all runs against the work or the number of epochs."""
    figure, axis = figures.panel()
    scale = 100 if key.endswith("accuracy") else 1
    for i, run in enumerate(run for run in runs if run.rows):
        x = [row["total_flops"] / 1e12 if against == "work" else k for k, row in enumerate(run.rows, start=1)]
        style: dict[str, Any] = {"color": COLOURS[1 + i % 5], "marker": MARKERS[1 + i % 5], "ms": 4, "linewidth": 1.5}
        axis.plot(x, [scale * row[key] for row in run.rows], label=run.name, linestyle=DASHES[i % len(DASHES)], **style)
    axis.set_xlabel("work (TFLOPs, forwards and backwards)" if against == "work" else "epochs, all levels")
    axis.set_ylabel("accuracy (%)" if scale == 100 else " and ".join(sorted({loss_name(run.record) for run in runs})))
    figures.legend(figure)
    return figure
