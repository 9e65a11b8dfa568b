"""``multipde predict``: a trained network classifies images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from multipde.conversions.convert import convert
from multipde.evaluation.metrics import check_square
from multipde.evaluation.pictures_given import Picture, Shapes, given_pictures, square_picture
from multipde.evaluation.views import with_views
from multipde.mesh.modes import copied, ordinary_tensors, unwrapped
from multipde.networks.all_sizes import AllSizes, networks_of
from multipde.networks.compiled_network import for_use
from multipde.networks.inputs import Normalize, in_precision_of
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.file_names import shown_name
from multipde.storage.stored_network import Given, load

FITS = ("image", "net")
BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The classification of one image.

    Args:
        file: the image; None for one that was given in memory.
        size: image side in pixels at which the network saw it.
        probabilities: probability of every class by its name, in the order of the network's scores.
        true: name of the true class, if the folder of the file is named like one of the classes; None otherwise.
        number: its place among the images.
        pixels: those of an image that was given in memory, (C, H, W) in uint8.
    """

    file: Path | None
    size: int
    probabilities: dict[str, float]
    true: str | None = None
    number: int = 0
    pixels: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The path of the file, or the number of an image in memory."""
        return f"image {self.number}" if self.file is None else str(self.file)

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """Pairs of class name and probability, the most probable class first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])

    def record(self) -> dict[str, object]:
        """The prediction as plain data for JSON."""
        name, probability = self.ranking[0]
        own = {"file": self.name, "class": name, "probability": probability, "true": self.true}
        return own | {"size": self.size, "probabilities": self.probabilities}


@ordinary_tensors()
def predict(
    checkpoint: str | Path | nn.Module,
    images: Picture | Sequence[Picture],
    *,
    model: Given = None,
    fit: str = "image",
    device: str = "auto",
    amp: str = "off",
    views: int = 1,
    skip_bad: bool = False,
    log: Log | None = None,
) -> list[Prediction]:
    """Classify images with a trained network.

    Args:
        checkpoint: a directory with a network, as in `load`; or a network with a description, see `describe`.
        images: files, folders with image files at any depth, Pillow images, arrays (H, W) or (H, W, C) and tensors
            (C, H, W), in uint8 or as floats on [0, 1], one or several; or a batch of images of one size. The network's
            own normalisation is applied to them.
        model: for a network that was given in Python or by an import path, the same again, as in `load`.
        fit: how images of another size are handled: ``"image"`` averages them to the size of the network; ``"net"``
            converts the network, by copying its stencils, to the largest size that it can have within the image, and
            averages the image to that size; BatchNorm then keeps its running statistics of the old size. Of a
            checkpoint for several sizes ``"image"`` takes the largest size, and ``"net"`` the largest one within the
            image. In all cases images that are not square are resized to squares.
        device, amp, views: device, precision and views of every image, as in `evaluate`.
        skip_bad: leave out files that cannot be decoded. Each file is then decoded twice.
        log: is told which files are left out, and of pictures that are squeezed or have several frames.

    Returns:
        One `Prediction` per image that is not left out, in their order.

    Raises:
        ValueError: there is no image, an image cannot be read or has other channels than the network, fit is unknown,
            or `load` fails.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    if isinstance(checkpoint, nn.Module) and model is not None:
        raise ValueError("model must be left out where the network itself is given, got both")
    loaded = unwrapped(checkpoint) if isinstance(checkpoint, nn.Module) else load(checkpoint, model)
    log = log or Log(quiet=True)
    compute, files, shapes = Compute.of(device, amp), given_pictures(images, log, skip_bad), Shapes()
    trained = networks_of(loaded)
    net, spec = trained[-1], spec_of(trained[-1])
    if spec.dim != 2 or (spec.in_channels != 3 and any(isinstance(each, Path) for each in files)):
        raise ValueError(f"checkpoint must be for pictures, got {spec.in_channels} channels, {spec.dim} axes")
    check_square(spec)
    names = spec.class_names or tuple(str(k) for k in range(spec.classes))
    normalize, found = Normalize.of(spec), []
    num = len(files)
    nets: dict[int, nn.Module] = {spec_of(each).image_sizes[0]: _for_use(each, views, compute, num) for each in trained}
    sides = tuple(nets) if isinstance(loaded, AllSizes) else ()
    for start in range(0, len(files), BATCH):
        chosen = files[start : start + BATCH]
        pictures = [square_picture(each, spec, fit, sides, shapes) for each in chosen]
        sizes, scores = [p.shape[-1] for p in pictures], {}
        for size in sorted(set(sizes)):
            if size not in nets:
                converted = convert(net, size=spec.for_images(size).size, method="copy")
                nets[size] = _for_use(converted, views, compute, len(files))
            chosen_pictures = [p for p in pictures if p.shape[-1] == size]
            scores[size] = _scores(nets[size], chosen_pictures, normalize, compute, spec.classes)
        rows = {size: iter(values.tolist()) for size, values in scores.items()}
        for number, (each, size) in enumerate(zip(chosen, sizes, strict=True), start=start):
            path, pixels = (each, None) if isinstance(each, Path) else (None, each)
            true = shown_name(path.absolute().parent) if path else None
            values = dict(zip(names, next(rows[size]), strict=True))
            found.append(Prediction(path, size, values, true if true in names else None, number, pixels))
    for note in shapes.notes():
        log.say(f"note: {note}")
    return found


def _for_use(net: nn.Module, views: int, compute: Compute, num: int) -> nn.Module:
    """A copy with everything done that is the same for all images; in bf16 its own norm sums in float32."""
    own = for_use(net, num, compute.device) if compute.amp == "off" else copied(net).eval()
    return compute.place(with_views(own, views))


def tell_predictions(predictions: Sequence[Prediction], log: Log, as_json: bool = False) -> None:
    """Print a table with the two most probable classes of every image, or one line of JSON per image."""
    if as_json:
        for p in predictions:
            log.json(p.record())
        return
    log.table([_row(p) for p in predictions])
    known = [p for p in predictions if p.true is not None]
    if known:
        right = sum(p.ranking[0][0] == p.true for p in known)
        log.say(f"{right} of {len(known)} images whose folder names their class are classified correctly")


@torch.no_grad()
def _scores(net: nn.Module, pictures: Sequence[Tensor], normalize: Normalize, compute: Compute, classes: int) -> Tensor:
    """Probabilities of all classes, (len(pictures), classes)."""
    x = in_precision_of(net, normalize(torch.stack(list(pictures)).to(compute.device).float()))
    with compute.autocast():
        scores = net(x.contiguous(memory_format=torch.channels_last))
    if not isinstance(scores, Tensor) or scores.shape != (len(x), classes):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"model must give scores (N, {classes}), one per class of its description, got {got}")
    return scores.float().softmax(1)


def _row(p: Prediction) -> dict[str, str]:
    (first, probability), *others = p.ranking
    second = f"{others[0][0]} {others[0][1]:.1%}" if others else "-"
    row = {"name": p.name, "class": first, "probability": f"{probability:.1%}", "second": second}
    return row | {"size": str(p.size), "true": p.true or "-"}
