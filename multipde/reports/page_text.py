"""The text and numbers of a report as plain data for the template of its page."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from multipde.evaluation.errors import Examination, Mistake
from multipde.evaluation.pictures import MANY_NAMES
from multipde.networks.cost import num_weights
from multipde.networks.model_spec import spec_of
from multipde.reports.run_record import RunRecord, data_of, loss_name, move_sizes, shown_value
from multipde.training.level import steps_text

MOST = 12
"""Number of confusions that are listed."""

TIME_SETTINGS = ("alpha1", "box", "auto_steps")
"""Settings without effect on a network that has no time steps."""


def page_text(run: RunRecord, seen: Examination | None, names: Sequence[str]) -> dict[str, Any]:
    """Everything on the page but its figures, under the names of the template; arguments as for `page_figures`."""
    return {
        "title": run.directory.resolve().name,
        "summary": _summary(run),
        "numbers": _numbers(run),
        "levels": _levels(run),
        "moves": [_move(move, spec_of(run.net).has_step_bounds) for move in run.result["moves"]],
        "rollbacks": [str(r.get("error")) for r in run.result.get("rollbacks", ())],
        "seen": None if seen is None else _seen(run, seen, names),
        "mistakes": [] if seen is None else [_mistake(m, names) for m in seen.mistakes],
        "settings": _settings(run),
    }


def _seen(run: RunRecord, seen: Examination, names: Sequence[str]) -> dict[str, Any]:
    metrics, confusion = seen.metrics, seen.metrics.confusion.tolist()
    most = sorted(
        ((int(n), i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n and i != j), reverse=True
    )
    shares = [*zip(names, metrics.precision.tolist(), metrics.recall.tolist(), map(sum, confusion), strict=True)]
    if is_part := len(names) > MANY_NAMES:
        shares = sorted(shares, key=lambda row: (math.isnan(row[2]), row[2]))[:MANY_NAMES]
    return {
        "num_images": f"{metrics.num_images:,}",
        "accuracy": _percent(metrics.accuracy, 2),
        "top5": _percent(metrics.top5, 2) if len(names) > 5 else None,
        "calibration_error": _percent(metrics.calibration_error, 2),
        "is_part": is_part,
        "classes": [(name, _percent(p, 1), _percent(r, 1), f"{num:,}") for name, p, r, num in shares],
        "recorded": _percent(run.result["test_accuracy"], 2),
        "most": [(names[i], names[j], n) for n, i, j in most[:MOST]],
    }


def _summary(run: RunRecord) -> str:
    data, sizes = data_of(run.record) or "data without a name", [level.label for level in run.plan.levels]
    way = f"coarse to fine at {', '.join(sizes[:-1])} and {sizes[-1]} pixels" if sizes[1:] else f"at {sizes[0]} pixels"
    return f"A {spec_of(run.net).label} network trained on {data}, {way}."


def _numbers(run: RunRecord) -> list[tuple[str, str]]:
    result, size = run.result, run.plan.levels[-1].label
    return [
        (_percent(result["test_accuracy"], 2), f"test accuracy at {size} pixels"),
        (f"{result['test_loss']:.3f}", f"test {loss_name(run.record)}"),
        (f"{result['flops'] / 1e12:.3g}", "TFLOPs of work"),
        (_duration(result["seconds"]), "of training"),
        (f"{num_weights(run.net):,}", "weights"),
    ]


def _percent(share: float, digits: int) -> str:
    """The share in per cent; a dash for one that is not known, such as the precision of a class never named."""
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f}\u202f%"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _levels(run: RunRecord) -> list[dict[str, Any]]:
    """The levels of the schedule, with the time that each took and the accuracy that it reached."""
    found, flops, seconds, last = [], 0.0, 0.0, run.levels[-1][-1]
    for planned, rows in zip(run.plan.rows(), run.levels, strict=True):
        end, kept = rows[-1], ("level", "size", "h", "batch", "learning rate", "MFLOPs/image")
        work = (end["total_flops"] - flops) / last["total_flops"]
        time = (end["total_seconds"] - seconds) / (last["total_seconds"] or 1)
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


def _move(move: Mapping[str, Any], has_step_bounds: bool) -> dict[str, str]:
    ratios, stable = move.get("step_ratios"), move.get("stable_steps")
    bounds = {
        "largest dt over its bound": f"{max(ratios):.1f}" if ratios else "-",
        "steps that meet it": steps_text(tuple(stable)) if stable else "-",
    }
    return {"switch": f"{' → '.join(move_sizes(move))} pixels", "map of the stencils": str(move.get("method", "-"))} | (
        bounds if has_step_bounds else {}
    )


def _mistake(mistake: Mistake, names: Sequence[str]) -> dict[str, str]:
    picture = base64.b64encode(mistake.picture).decode()
    return {
        "source": f"data:image/png;base64,{picture}",
        "true": names[mistake.true],
        "taken": names[mistake.taken],
        "probability": _percent(mistake.probability, 0),
    }


def _settings(run: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Configuration, data, versions and machine, as recorded with the run."""
    record = run.record
    origin = record.get("provenance") or {"versions": record.get("versions")}
    data = {"data": record.get("data"), **(record.get("data_options") or {})}
    start = record.get("init") or (record.get("weights") or {}).get("file")
    data |= {"training images": record.get("num_train"), "started from": start} | (origin.get("data") or {})
    hidden = () if spec_of(run.net).block_steps else TIME_SETTINGS
    parts = {
        "Network": {k: list(v) if isinstance(v, tuple) else v for k, v in spec_of(run.net).record().items()},
        "Training": {k: v for k, v in (record.get("settings") or {}).items() if k not in hidden},
        "Data": data,
        "Versions": origin.get("versions"),
        "Machine": origin.get("machine"),
        "Command": {"command": origin.get("command")},
    }
    shown = {title: part for title, part in parts.items() if isinstance(part, dict)}
    return [
        (title, [(str(k), shown_value(v)) for k, v in part.items() if v not in (None, [])])
        for title, part in shown.items()
        if any(v is not None for v in part.values())
    ]
