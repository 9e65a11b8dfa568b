"""``multipde report``: the report of a finished run as one HTML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from multipde.evaluation.errors import Examination, examine
from multipde.evaluation.sizes import images_for
from multipde.networks.model_spec import spec_of
from multipde.reports.page_figures import page_figures
from multipde.reports.page_template import rendered
from multipde.reports.page_text import page_text
from multipde.reports.run_record import RunRecord, read_run
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.launch import is_rank_zero_launched
from multipde.runtime.text import shell_line
from multipde.storage.files import check_own, write_file
from multipde.storage.opening import clear_stale
from multipde.storage.records import brief
from multipde.storage.run_directory import PAGE, PAGE_MARK, recorded_data
from multipde.storage.stored_network import Given

TEMPLATE = "report.html.jinja"


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
    """Write the report of a finished run as one HTML file that contains all figures, and return its path.

    The confusion matrix, the worst mistakes and the energy need the test images. If the run does not name its data, or
    they cannot be read, the report says so and leaves these out.

    Args:
        run_dir: the run directory.
        out: the file, which is replaced if it is such a report; report.html in the run directory if left out.
        data: the data of the run, as in `load_data`; None for the data that the run names.
        model: for a network that was given in Python or by an import path, the same again, as in `load`.
        data_options: keyword arguments of `load_data`, where data is a name.
        num_images: use only this many test images, a fixed random subset; None for all.
        device: device for the test images, as in `evaluate`.

    Raises:
        ValueError: there is no finished run in run_dir, or it is damaged; the data do not suit the network.
        OSError: the file cannot be written, or exists and is no report.
    """
    run = read_run(run_dir, model)
    out = Path(out) if out is not None else run.directory / PAGE
    if out.is_dir():
        raise ValueError(f"out must be a file, got the directory {out}")
    check_own(out, PAGE_MARK, "a report")
    Compute.of(device)  # raises for a missing device before images are read
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be positive, got {num_images}")
    seen, missing = _examined(run, data, dict(data_options or {}), num_images, device)
    clear_stale(out)
    write_file(out, _page(run, seen, missing).encode(errors="backslashreplace"))
    return out


def report_at_end(run_dir: Path, log: Log, model: Given = None) -> None:
    """Write the report of a run that has just finished, unless there is one, and print a line about it.

    An error becomes a warning. Of several processes, only rank zero writes.
    """
    if (run_dir / PAGE).exists() or not is_rank_zero_launched():
        return
    try:
        log.say(f"report: {report(run_dir, model=model)}")
    except Exception as error:  # the run is finished and must not fail for its report
        again = shell_line("multipde", "report", run_dir, *(("--arch", model) if isinstance(model, str) else ()))
        log.say(f"warning: no report ({brief(error)}); type {again}")


def _examined(
    run: RunRecord, data: Any, options: dict[str, Any], num_images: int | None, device: str
) -> tuple[Examination | None, str]:
    """The errors of the network on the test images, or None and the reason why they cannot be measured."""
    source = (data, options) if data is not None else recorded_data(run.directory)
    if source is None:
        return None, "the run was trained on data without a name; multipde.report(run, data=...) takes them"
    try:
        spec = spec_of(run.net)
        images = images_for(spec, run.directory, source, spec.image_sizes[0])
        return examine(run.net, images, Compute.of(device, run.settings.amp), num_images=num_images), ""
    except (ValueError, OSError) as error:
        if data is not None:
            raise
        return None, f"the data of the run cannot be read: {brief(error)}"


def _page(run: RunRecord, seen: Examination | None, missing: str) -> str:
    spec = spec_of(run.net)
    names = spec.class_names or tuple(str(k) for k in range(spec.classes))
    return rendered(
        TEMPLATE,
        sections=page_figures(run, seen, names),
        missing=missing,
        has_steps=bool(spec.block_steps),
        has_energy=spec.has_energy,
        has_batchnorm=any(isinstance(m, _BatchNorm) for m in run.net.modules()),
        **page_text(run, seen, names),
    )
