"""``multipde report``: a finished run as one page that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from multipde.data.datasets import data_label, load_data
from multipde.evaluation.errors import Examination, Mistake, examine
from multipde.evaluation.pictures import MANY_NUMBERS, confusion_figure, stencil_figure
from multipde.mesh.reparametrize import stencil_layers
from multipde.networks.cost import num_weights
from multipde.networks.model_spec import spec_of, with_meshes
from multipde.reports import run_figures as figures
from multipde.reports.run_record import RunRecord, read_run
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.launch import is_rank_zero_launched
from multipde.storage.files import write_file
from multipde.storage.records import brief
from multipde.storage.run_directory import recorded_data
from multipde.storage.stored_network import Given
from multipde.training.level import steps_text
from multipde.training.snapshot import opening_stencils

PAGE, TEMPLATE = "report.html", "report.html.jinja"
MOST = 12
"""Confusions that are named."""


@dataclass(frozen=True)
class Figure:
    """A picture with what is to be seen on it.

    Args:
        svg: an element of the page.
        is_wide: takes the whole width.
    """

    title: str
    svg: str
    is_wide: bool = False


def report(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    data: Any = None,
    model: Given = None,
    data_options: Mapping[str, Any] | None = None,
    num_images: int | None = 10_000,
    device: str = "auto",
) -> Path:
    """Write the report of a finished run: one HTML file with all pictures in it.

    The confusion matrix, the worst mistakes and the energy need the test images. Where the run does not name its data,
    or they cannot be read, the report says so and leaves these out.

    Args:
        out: the file; report.html in the run if left out. One that is there is replaced.
        data: what `load_data` takes; None for the data that the run names.
        model: a network that has to be given again, see `load`.
        data_options: for `load_data`, where data is a name.
        num_images: only so many test images, drawn at random but always the same; None for all.

    Raises:
        ValueError: no run, one that is not finished or is damaged; data given here that do not suit it; no images.
        OSError: the file cannot be written.
    """
    run = read_run(run_dir, model)
    out = Path(out) if out is not None else run.directory / PAGE
    if out.is_dir():
        raise ValueError(f"out must be a file, got the directory {out}")
    Compute.of(device)  # a device that is not there is told before images are read
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be positive, got {num_images}")
    seen, missing = _examined(run, data, dict(data_options or {}), num_images, device)
    write_file(out, _page(run, seen, missing).encode())
    return out


def report_at_end(run_dir: Path, log: Log, model: Given = None) -> None:
    """The report of a run that has just been finished, and a line about it; whatever goes wrong is only told.

    A run that has a report keeps it. Of several processes the first one writes.
    """
    if (run_dir / PAGE).exists() or not is_rank_zero_launched():
        return
    try:
        log.say(f"report: {report(run_dir, model=model)}")
    except Exception as error:  # the run is finished and must not fail for its report
        log.say(f"warning: no report ({brief(error)}); type multipde report {run_dir}")


def _examined(
    run: RunRecord, data: Any, options: dict[str, Any], num_images: int | None, device: str
) -> tuple[Examination | None, str]:
    """What the test images tell, or why there are none."""
    source = (data, options) if data is not None else recorded_data(run.directory)
    if source is None:
        return None, "the run was trained on data without a name; multipde.report(run, data=...) takes them"
    try:
        images = load_data(source[0], size=spec_of(run.net).sizes[0], **source[1])
        return examine(run.net, images, Compute.of(device, run.settings.amp), num_images=num_images), ""
    except (ValueError, OSError) as error:
        if data is not None:
            raise
        return None, f"the data of the run cannot be read: {brief(error)}"


def _page(run: RunRecord, seen: Examination | None, missing: str) -> str:
    import jinja2

    template = resources.files("multipde.reports").joinpath(TEMPLATE).read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    spec = spec_of(run.net)
    names = spec.class_names or tuple(str(k) for k in range(spec.classes))
    sections = {
        "curves": _curves(run),
        "switches": _switches(run),
        "confusion": [] if seen is None else [_confusion(seen, names)],
        "stencils": _stencils(run),
        "derivatives": _derivatives(run),
        "energy": [_energy(seen)] if seen is not None and seen.energies else [],
    }
    return environment.from_string(template).render(
        title=run.directory.resolve().name,
        summary=_summary(run),
        numbers=_numbers(run),
        levels=_levels(run),
        moves=[_move(move) for move in run.result["moves"]],
        rollbacks=[str(r.get("error")) for r in run.result.get("rollbacks", ()) if isinstance(r, dict)],
        sections=sections,
        seen=None if seen is None else _seen(run, seen, names),
        missing=missing,
        mistakes=[] if seen is None else [_mistake(m, names) for m in seen.mistakes],
        settings=_settings(run),
    )


def _seen(run: RunRecord, seen: Examination, names: Sequence[str]) -> dict[str, Any]:
    most = sorted(
        ((int(n), i, j) for i, row in enumerate(seen.confusion.tolist()) for j, n in enumerate(row) if n and i != j),
        reverse=True,
    )
    return {
        "num_images": f"{seen.num_images:,}",
        "accuracy": _percent(seen.accuracy, 2),
        "recorded": _percent(run.result["test_accuracy"], 2),
        "most": [(names[i], names[j], n) for n, i, j in most[:MOST]],
    }


def _summary(run: RunRecord) -> str:
    options = run.record.get("data_options") or {}
    name, sizes = run.record.get("data"), [str(level.size) for level in run.plan.levels]
    data = "data without a name" if name is None else data_label(str(name), options.get("root"))
    way = f"coarse to fine at {', '.join(sizes[:-1])} and {sizes[-1]} pixels" if sizes[1:] else f"at {sizes[0]} pixels"
    return f"A {spec_of(run.net).label} network trained on {data}, {way}."


def _numbers(run: RunRecord) -> list[tuple[str, str]]:
    result, size = run.result, run.plan.levels[-1].size
    return [
        (_percent(result["test_accuracy"], 2), f"test accuracy at {size} pixels"),
        (f"{result['test_loss']:.3f}", "test cross entropy"),
        (f"{result['flops'] / 1e12:.3g}", "TFLOPs of work"),
        (_duration(result["seconds"]), "of training"),
        (f"{num_weights(run.net):,}", "weights"),
    ]


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f}\u202f%"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _levels(run: RunRecord) -> list[dict[str, Any]]:
    """The plan with what each level took and reached."""
    found, flops, seconds, last = [], 0.0, 0.0, run.levels[-1][-1]
    for planned, rows in zip(run.plan.rows(), run.levels, strict=True):
        end, kept = rows[-1], ("level", "size", "h", "batch", "learning rate", "MFLOPs/image")
        work = (end["total_flops"] - flops) / last["total_flops"]
        time = (end["total_seconds"] - seconds) / last["total_seconds"]
        steps = end.get("steps")
        found.append(
            {
                "plan": {name: planned[name] for name in kept},
                "steps": steps_text(tuple(steps)) if isinstance(steps, list) else planned["steps"],
                "epochs": planned["epochs"] if planned["epochs"] != "auto" else str(len(rows)),
                "shares": [("work", f"{100 * work:.1f}"), ("time", f"{100 * time:.1f}")],
                "accuracy": _percent(max(row["validation_accuracy"] for row in rows), 1),
                "loss": f"{min(row['validation_loss'] for row in rows):.3f}",
            }
        )
        flops, seconds = end["total_flops"], end["total_seconds"]
    return found


def _move(move: Mapping[str, Any]) -> dict[str, str]:
    ratios = move.get("step_ratios")
    return {
        "switch": f"{move['from']} → {move['to']} pixels",
        "map of the stencils": str(move.get("method", "-")),
        "largest dt over its bound": f"{max(ratios):.1f}" if ratios else "-",
    }


def _curves(run: RunRecord) -> list[Figure]:
    return [
        _drawn(
            lambda q=quantity, a=against: figures.curve(run.levels, q, a),
            f"{quantity.capitalize()} against {against}",
            f"curve-{quantity}-{against}",
        )
        for quantity in ("accuracy", "loss")
        for against in ("epochs", "work")
    ]


def _switches(run: RunRecord) -> list[Figure]:
    moves = run.result["moves"]
    return [_drawn(lambda: figures.switches(moves), "Validation accuracy at each switch", "switches")] if moves else []


def _confusion(seen: Examination, names: Sequence[str]) -> Figure:
    title = "Per cent of the images of each true class"
    return _drawn(
        lambda: confusion_figure(seen.confusion, names), title, "confusion", len(seen.confusion) > MANY_NUMBERS
    )


def _stencils(run: RunRecord) -> list[Figure]:
    """Of every level that is kept; of a run of an older version those that it has ended with."""
    kept = {index: snapshot.stencils for index, snapshot in run.snapshots.items()}
    kept.setdefault(len(run.plan.levels) - 1, opening_stencils(run.net, run.net.state_dict()))
    return [
        _drawn(lambda s=stencils: stencil_figure(s), f"{run.plan.levels[index].size} pixels", f"stencils-{index}")
        for index, stencils in sorted(kept.items())
        if stencils.numel() and stencils.dim() == 4
    ]


def _derivatives(run: RunRecord) -> list[Figure]:
    if not stencil_layers(run.net):
        return []
    net, title = with_meshes(run.net), "Size of the coefficients β by order of the derivative"
    found = [_drawn(lambda: figures.spectrum(net), title, "spectrum")]
    if spec_of(net).block_steps:
        found.append(_drawn(lambda: figures.controls_in_time(net), "The controls θ along time", "controls"))
    return found


def _energy(seen: Examination) -> Figure:
    return _drawn(lambda: figures.energy_along(seen.energies), "Features and energy along the time steps", "energy")


def _drawn(make: Any, title: str, name: str, is_wide: bool = False) -> Figure:
    from markupsafe import Markup

    return Figure(title, Markup(figures.svg(make, name, title)), is_wide)


def _mistake(mistake: Mistake, names: Sequence[str]) -> dict[str, str]:
    picture = base64.b64encode(mistake.picture).decode()
    return {
        "source": f"data:image/png;base64,{picture}",
        "true": names[mistake.true],
        "taken": names[mistake.taken],
        "probability": _percent(mistake.probability, 0),
    }


def _settings(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Configuration, data, versions and machine, as the run has recorded them."""
    record = run.record
    origin = record.get("provenance") or {"versions": record.get("versions")}
    data = {"data": record.get("data"), **(record.get("data_options") or {})}
    data |= {"training images": record.get("num_train"), "started from": record.get("init")} | (
        origin.get("data") or {}
    )
    parts = {
        "Network": record.get("network"),
        "Training": record.get("settings"),
        "Data": data,
        "Versions": origin.get("versions"),
        "Machine": origin.get("machine"),
        "Command": {"command": origin.get("command")},
    }
    shown = {title: part for title, part in parts.items() if isinstance(part, dict)}
    return [
        (title, [(str(k), _value(v)) for k, v in part.items() if v is not None])
        for title, part in shown.items()
        if any(v is not None for v in part.values())
    ]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_value(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
