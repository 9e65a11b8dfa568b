"""Accuracy, loss and cost of a network on images of any size."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from multipde.data.batches import drawn_indices
from multipde.data.datasets import ImageData, load_data
from multipde.data.feed import Feed
from multipde.data.images import Batch
from multipde.data.labels import difference
from multipde.evaluation.reliability import NUM_BINS, calibration_error, reliability_bins, right_among
from multipde.evaluation.views import with_views
from multipde.mesh.modes import averaged, eval_mode, ordinary_tensors, unwrapped
from multipde.networks.all_sizes import at_size
from multipde.networks.compiled_network import for_evaluation
from multipde.networks.cost import count_flops
from multipde.networks.inputs import Normalize, in_precision_of
from multipde.networks.model_spec import ModelSpec, check_outermost, find_spec
from multipde.runtime.device import Compute
from multipde.runtime.processes import largest, sum_over_processes

Score = Callable[[Tensor, Tensor], Tensor]
"""A function of (scores, labels) to one number, the mean over the images."""


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation on labelled images.

    Args:
        accuracy: share of the images whose true class has the highest score, in [0, 1].
        loss: mean loss per image, the cross entropy unless another loss was given.
        num_images: number of images.
        seconds: wall time of the evaluation.
        flops: floating point operations of the forward pass for one image; None where they are not counted.
        confusion: number of images of class i that were classified as class j.
        metric: mean of the metric that the user gave; None where none was given.
        top5: share of the images whose true class is among the five highest scores.
        reliability: sums by confidence, see `reliability_bins`.

    Shape:
        - confusion: (classes, classes), int64
        - reliability: (15, 3), float64
    """

    accuracy: float
    loss: float
    num_images: int
    seconds: float
    flops: int | None
    confusion: Tensor = field(repr=False, compare=False)
    metric: float | None
    top5: float
    reliability: Tensor = field(repr=False, compare=False)

    @property
    def calibration_error(self) -> float:
        """Mean difference of confidence and accuracy, see `multipde.evaluation.reliability.calibration_error`."""
        return calibration_error(self.reliability)

    @property
    def precision(self) -> Tensor:
        """For every class the share of the images classified as it that belong to it; nan where there are none."""
        return self.confusion.diagonal() / self.confusion.sum(0)

    @property
    def recall(self) -> Tensor:
        """For every class the share of its images that are classified as it; nan where there are none."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    def record(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Everything but time as plain data, with precision and recall by the names of the classes."""
        shares = zip(self.precision.tolist(), self.recall.tolist(), self.confusion.sum(1).tolist(), strict=True)
        classes = [{"precision": p, "recall": r, "images": n} for p, r, n in shares]
        bins = [dict(zip(("images", "confidence", "right"), row, strict=True)) for row in self.reliability.tolist()]
        return {
            "accuracy": self.accuracy,
            "top5": self.top5,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "images": self.num_images,
            "classes": dict(zip(class_names, classes, strict=True)),
            "confusion": self.confusion.tolist(),
            "reliability": bins,
        }

    @property
    def score(self) -> float:
        """The number by which networks are compared: the user's metric if there is one, else the accuracy."""
        return self.accuracy if self.metric is None else self.metric

    @property
    def images_per_second(self) -> float:
        """Images per second of wall time, in which loading the images is included."""
        return self.num_images / self.seconds


@ordinary_tensors()
def evaluate(
    model: nn.Module,
    data: Any,
    size: int | None = None,
    *,
    part: str = "test",
    batch: int = 250,
    device: str | torch.device = "auto",
    amp: str = "off",
    num_images: int | None = None,
    data_options: Mapping[str, Any] | None = None,
    views: int = 1,
) -> Metrics:
    """Measure accuracy and cross entropy of a classifier on the images of a data set, without converting the model.

    Args:
        model: a network that carries its description, by which images are normalised, or any other classifier, whose
            images are normalised with the mean and standard deviation of the data. One for several sizes is measured at
            ``size``.
        data: the name of a data set, or the data themselves, as in `load_data`.
        size: image side in pixels, to which the images are averaged; if left out, that of the model's description, or
            that of the data for a model without one.
        part: ``"test"`` or ``"train"``.
        batch: number of images per forward pass.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a torch device; the model is moved there.
        amp: ``"off"`` for float32, ``"bf16"`` for bfloat16 convolutions and matrix products, ``"auto"`` for bf16 where
            the device is faster with it.
        num_images: use only this many images, a fixed random subset; None for all.
        data_options: keyword arguments of `load_data`, where data is a name.
        views: 2 for the mean of the scores of every image and of its mirror image, see `TwoViews`; 1 for the image.

    Raises:
        ValueError: the classes or channels of the data are not those of the model, or an argument is invalid.
    """
    model = unwrapped(model)
    model = at_size(averaged(model) or model, size)
    check_outermost(model, "pass its .{inner}, or describe the whole by describe(model, ...)")
    with_views(model, views)  # raises the error of the number of views
    config = find_spec(model)
    target = config.image_sizes[0] if config and size is None else size
    images = load_data(data, size=target, **(data_options or {}))
    if config is not None:
        check_classes(config, images)
        check_square(config)
    if part not in ("test", "train"):
        raise ValueError(f"part must be test or train, got {part!r}")
    compute, chosen = Compute.of(device, amp), getattr(images, part)
    indices = None if num_images is None else drawn_indices(len(chosen), num_images, (0, part))
    side = images.size if target is None else target
    feed = Feed(chosen, Normalize.of(config or images), compute)
    batches, classes = feed.evaluation(indices, side, batch), len(images.class_names)
    num = len(chosen) if indices is None else len(indices)
    used = with_views(fastest(model, num, compute), views)
    metrics = evaluate_batches(compute.place(used), batches, compute, classes=classes)
    flops = views * count_flops(config.for_images(side)) if config else None
    return replace(metrics, flops=flops)


def fastest(model: nn.Module, num_images: int, compute: Compute) -> nn.Module:
    """The model itself, or a compiled copy, which is faster for so many images in float32 on the processor."""
    return model if compute.amp != "off" or compute.device.type != "cpu" else for_evaluation(model, num_images)


@torch.no_grad()
def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    compute: Compute,
    *,
    loss: Score | None = None,
    metric: Score | None = None,
    classes: int | None = None,
    keep: Callable[[Tensor, Tensor], None] | None = None,
) -> Metrics:
    """Measure accuracy and loss of a model over normalised batches; its training flags are restored afterwards.

    Where several processes compute, each evaluates its slice of every batch, and all return the result over all images.

    Args:
        loss: function of (scores, labels) to the mean loss of a batch; cross entropy if left out.
        metric: function of (scores, labels) to the mean of a metric, which is measured besides the accuracy.
        classes: number of classes of the images, which the scores must have.
        keep: function that is given the scores and the labels of every batch.
    """
    start, device, num = time.perf_counter(), compute.device, 0
    confusion: Tensor | int = 0
    reliability, top5 = torch.zeros(NUM_BINS, 3, dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    for scores, labels in scored_batches(model, batches, compute):
        if classes is not None and scores.shape[1:] != (classes,):
            got = tuple(scores.shape)
            raise ValueError(f"model must give scores (N, {classes}), one per class of the data, got shape {got}")
        if loss is None:
            sums[0] += functional.cross_entropy(scores, labels, reduction="sum")
        else:
            sums[0] += called("loss", loss, scores, labels) * len(labels)
        if metric is not None:
            value = torch.as_tensor(called("metric", metric, scores, labels))
            if value.numel() != 1:
                raise ValueError(f"metric must give one number for a batch, got shape {tuple(value.shape)}")
            sums[1] += value.reshape(()).to(sums) * len(labels)
        confusion = confusion + confusion_matrix(labels, scores.argmax(1), scores.shape[1])
        top5 = top5.to(device) + right_among(scores, labels, 5)
        reliability = reliability.to(device) + reliability_bins(scores, labels)
        num += len(labels)
        if keep is not None:
            keep(scores, labels)
    if compute.num_processes > 1:
        (classes,) = largest(0 if isinstance(confusion, int) else len(confusion))
        confusion = sum_over_processes(confusion + torch.zeros(classes, classes, dtype=torch.int64, device=device))
        reliability, top5 = sum_over_processes(reliability.to(device)), sum_over_processes(top5.to(device))
        sums, num = sum_over_processes(sums), int(sum_over_processes(torch.tensor([num], device=device)))
    if isinstance(confusion, int) or not num:
        raise ValueError("batches must hold at least one image, got none")
    confusion = confusion.cpu()
    mean_loss, mean_metric = (sums / num).tolist()
    return Metrics(
        int(confusion.trace()) / num,
        mean_loss,
        num,
        time.perf_counter() - start,
        flops=None,
        confusion=confusion,
        metric=None if metric is None else mean_metric,
        top5=int(top5) / num,
        reliability=reliability.cpu(),
    )


def called(name: str, function: Score, scores: Tensor, labels: Tensor) -> Any:
    """What a function of the user's gives for a batch; ValueError with its name for what it raises."""
    try:
        return function(scores, labels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        reason, shapes = " ".join(str(error).split())[:200], f"{tuple(scores.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{name} must take scores {shapes} in {labels.dtype}, got {reason}") from error


@torch.no_grad()
def scored_batches(model: nn.Module, batches: Iterable[Batch], compute: Compute) -> Iterator[Batch]:
    """Yield the scores in float32 and the labels of every normalised batch."""
    with eval_mode(model):
        for x, labels in batches:
            if not len(labels):
                continue  # fewer images than processes
            with compute.autocast():
                scores = model(in_precision_of(model, x))
            if not isinstance(scores, Tensor):
                raise ValueError(f"model must return a tensor of scores (N, classes), got {type(scores).__name__}")
            yield scores.float(), labels


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """The int64 matrix whose entry (i, j) is the number of images of class i that were classified as class j.

    >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    flat = labels.new_zeros(classes**2).index_add_(0, labels * classes + predicted, torch.ones_like(labels))
    return flat.view(classes, classes)


def check_classes(config: ModelSpec, images: ImageData) -> None:
    """Raise ValueError unless the data have the classes and channels of the network."""
    names, found = config.class_names, images.class_names
    if len(found) != config.classes or found != (names or found):
        first = f": {difference(names, found)}" if len(names) == len(found) else ""
        known, got = f" ({_some(names)})" if names else "", f"{len(found)} ({_some(found)}){first}"
        raise ValueError(f"data must have the {config.classes} classes of the network{known}, got {got}")
    if images.dim != config.dim:
        raise ValueError(f"data must have images with the network's {config.dim} axes, got {images.dim}")
    if len(images.mean) != config.in_channels:
        raise ValueError(f"data must have the network's {config.in_channels} channels, got {len(images.mean)}")


def check_square(config: ModelSpec) -> None:
    """Raise ValueError for a network for images that are not square, as those of a data set are."""
    if len(set(config.sizes)) > 1:
        shown = "x".join(map(str, config.image_sizes))
        raise ValueError(f"model must be for square images, got a network for {shown}; call the network itself")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
