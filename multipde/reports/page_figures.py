"""The figures of a report, section by section, as elements of its page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multipde.evaluation.errors import Examination
from multipde.evaluation.pictures import MANY_NUMBERS, confusion_figure, stencil_figure
from multipde.mesh.reparametrize import stencil_layers
from multipde.networks.detail import with_detail
from multipde.networks.model_spec import spec_of, with_meshes
from multipde.reports import run_figures as figures
from multipde.reports.run_record import RunRecord, loss_name
from multipde.training.snapshot import opening_stencils


@dataclass(frozen=True)
class Figure:
    """A figure of the report as an HTML element, with its title; it may take the whole width of the page."""

    title: str
    svg: str
    is_wide: bool = False


def page_figures(run: RunRecord, seen: Examination | None, names: Sequence[str]) -> dict[str, list[Figure]]:
    """The figures of every section by its name; ``seen`` holds the errors on test images, ``names`` the classes."""
    found: dict[str, list[Figure]] = {"curves": _curves(run), "stencils": _stencils(run), "energy": []}
    found["derivatives"] = _derivatives(run)
    if moves := run.result["moves"]:
        found["switches"] = [_drawn(lambda: figures.switches(moves), "Validation accuracy at each switch", "switches")]
    if seen is not None:
        confusion, reliability = seen.metrics.confusion, seen.metrics.reliability
        title, is_wide = "Per cent of the images of each true class", len(confusion) > MANY_NUMBERS
        found["confusion"] = [_drawn(lambda: confusion_figure(confusion, names), title, "confusion", is_wide)]
        title = "Accuracy by the confidence of the answer"
        found["reliability"] = [_drawn(lambda: figures.reliability_figure(reliability), title, "reliability")]
        if seen.energies:
            title = "Features and energy along the time steps"
            found["energy"] = [_drawn(lambda: figures.energy_along(seen.energies), title, "energy")]
    return found


def _curves(run: RunRecord) -> list[Figure]:
    return [
        _drawn(
            lambda q=quantity, a=against: figures.curve(run.levels, q, a, loss_name(run.record)),
            f"{quantity.capitalize()} against {against}",
            f"curve-{quantity}-{against}",
        )
        for quantity in ("accuracy", "loss")
        for against in ("epochs", "work")
    ]


def _stencils(run: RunRecord) -> list[Figure]:
    """The stencils after every level whose snapshot is kept; for runs of an older version only the last stencils."""
    kept = {index: snapshot.stencils for index, snapshot in run.snapshots.items()}
    kept.setdefault(len(run.plan.levels) - 1, opening_stencils(run.net, run.net.state_dict()))
    return [
        _drawn(lambda s=stencils: stencil_figure(s), f"{run.plan.levels[index].label} pixels", f"stencils-{index}")
        for index, stencils in sorted(kept.items())
        if stencils.numel() and stencils.dim() == 4
    ]


def _derivatives(run: RunRecord) -> list[Figure]:
    if not stencil_layers(run.net):
        return []
    net, title = with_meshes(with_detail(run.net, 1)), "Size of the coefficients β by order of the derivative"
    found = [_drawn(lambda: figures.spectrum(net), title, "spectrum")]
    if spec_of(net).block_steps:
        found.append(_drawn(lambda: figures.controls_in_time(net), "The controls θ along time", "controls"))
    return found


def _drawn(make: Callable[[], Any], title: str, name: str, is_wide: bool = False) -> Figure:
    from markupsafe import Markup

    return Figure(title, Markup(figures.svg(make, name, title)), is_wide)
