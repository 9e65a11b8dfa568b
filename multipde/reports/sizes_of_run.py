"""``multipde train --all-sizes``: the finish at several sizes after a training, for a share of its work."""

from collections.abc import Sequence
from pathlib import Path

from multipde.evaluation.conversion_report import Candidate
from multipde.networks.cost import count_flops
from multipde.networks.model_spec import ModelSpec, spec_of
from multipde.reports.conversion_input import ConversionInput
from multipde.reports.converted_sizes import convert_to_sizes
from multipde.runtime.console import Log
from multipde.storage.network_record import Given
from multipde.storage.run_directory import RECORD, read_result, read_run_record, recorded_data
from multipde.storage.stored_network import load
from multipde.training.finish_settings import FinishSettings
from multipde.training.optimizers import planned_flops
from multipde.training.plan import recorded_plan

ALL_SIZES = "all-sizes"
"""Name of the directory in that of the run."""


def sizes_of_run(
    run: Path, sizes: Sequence[int], share: float, *, model: Given = None, device: str | None = None, log: Log
) -> list[Candidate]:
    """Make one checkpoint for several sizes from the network of a finished run, in the directory all-sizes inside it.

    It begins with the weights of the run, and learns the labels of its training images at all sizes together.

    Args:
        sizes: sides of the images in pixels.
        share: work of the finish / work of the training, positive.
        model: for a network from an import path, that path again.
        device: another device than that of the run.
    """
    out = run / ALL_SIZES
    if out.exists():
        log.say(f"note: {out} is there already and stays; remove it to have it made anew")
        return []
    check_share(share)
    _, settings, _ = recorded_plan(read_run_record(run), run / RECORD, model)
    spec = spec_of(load(run, model))
    num = max(FinishSettings.batch, round(share * read_result(run)["flops"] / image_flops(spec, sizes)))
    text = f"{num:,} images, each at {len(sizes)} sizes, for {100 * share:g} % of the work of the training"
    log.say(f"finish at the sizes {', '.join(map(str, sizes))}: {text}")
    given = ConversionInput(
        run,
        out,
        arch=model if isinstance(model, str) else None,
        data=recorded_data(run),
        finish=f"{num}images",
        compile=settings.compile,
        device=settings.device if device is None else device,
        amp=settings.amp,
    )
    return convert_to_sizes(given, sizes, log=log)


def image_flops(spec: ModelSpec, sizes: Sequence[int]) -> float:
    """Floating point operations of a finish on labels per image: a training step at every size."""
    learned = sum(count_flops(spec.for_images(size), training=True) for size in sizes)
    return learned + planned_flops(spec, "muon") / FinishSettings.batch


def check_share(share: float) -> None:
    """Raise ValueError unless the share of the work is positive and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"finish_share must be above 0 and at most 1, got {share:g}; type --finish-share 0.125")
