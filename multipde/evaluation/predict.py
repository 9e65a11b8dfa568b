"""``multipde predict``: a trained network classifies image files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from multipde.conversions.convert import convert
from multipde.data.decode import decode_image
from multipde.data.folder import image_files, left_out_text
from multipde.evaluation.views import with_views
from multipde.mesh.modes import cpu_by_default
from multipde.mesh.pyramid import resize_images
from multipde.networks.all_sizes import AllSizes
from multipde.networks.compiled_network import for_use
from multipde.networks.inputs import Normalize
from multipde.networks.model_spec import spec_of
from multipde.runtime.console import Log
from multipde.runtime.device import Compute
from multipde.runtime.file_names import shown_name
from multipde.storage.stored_network import Given, load

FITS = ("image", "net")
BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The classification of one image file.

    Args:
        file: the image.
        size: image side in pixels at which the network saw it.
        probabilities: probability of every class by its name, in the order of the network's scores.
        true: name of the true class, if the folder of the file is named like one of the classes; None otherwise.
    """

    file: Path
    size: int
    probabilities: dict[str, float]
    true: str | None = None

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """Pairs of class name and probability, the most probable class first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])

    def record(self) -> dict[str, object]:
        """The prediction as plain data for JSON."""
        name, probability = self.ranking[0]
        own = {"file": str(self.file), "class": name, "probability": probability, "true": self.true}
        return own | {"size": self.size, "probabilities": self.probabilities}


@cpu_by_default()
def predict(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    *,
    model: Given = None,
    fit: str = "image",
    device: str = "auto",
    amp: str = "off",
    views: int = 1,
    log: Log | None = None,
) -> list[Prediction]:
    """Classify image files with a trained network.

    Args:
        checkpoint: a directory with a network, as in `load`.
        images: files, or folders with image files at any depth.
        model: for a network that was given in Python or by an import path, the same again, as in `load`.
        fit: how images of another size are handled: ``"image"`` averages them to the size of the network; ``"net"``
            converts the network, by copying its stencils, to the largest size that it can have within the image, and
            averages the image to that size; BatchNorm then keeps its running statistics of the old size. Of a
            checkpoint for several sizes ``"image"`` takes the largest size, and ``"net"`` the largest one within the
            image. In all cases images that are not square are resized to squares.
        device, amp, views: device, precision and views of every image, as in `evaluate`.
        log: is told which files of a folder are left out.

    Returns:
        One `Prediction` per image, in their order.

    Raises:
        ValueError: there is no image, an image cannot be read, fit is unknown, or `load` fails.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    loaded, compute, files = load(checkpoint, model), Compute.of(device, amp), _files(images, log or Log(quiet=True))
    trained = loaded.networks if isinstance(loaded, AllSizes) else (loaded,)
    net, spec = trained[-1], spec_of(trained[-1])
    if spec.dim != 2 or spec.in_channels != 3:
        raise ValueError(f"checkpoint must be for pictures, got {spec.in_channels} channels, {spec.dim} axes")
    names = spec.class_names or tuple(str(k) for k in range(spec.classes))
    normalize, found = Normalize.of(spec), []
    num = len(files)
    nets: dict[int, nn.Module] = {spec_of(each).image_sizes[0]: _for_use(each, views, compute, num) for each in trained}
    sides = tuple(nets) if isinstance(loaded, AllSizes) else ()
    for start in range(0, len(files), BATCH):
        chosen = files[start : start + BATCH]
        pictures = [_picture(path, net, fit, sides) for path in chosen]
        sizes, scores = [p.shape[-1] for p in pictures], {}
        for size in sorted(set(sizes)):
            if size not in nets:
                converted = convert(net, size=spec.for_images(size).size, method="copy")
                nets[size] = _for_use(converted, views, compute, len(files))
            scores[size] = _scores(nets[size], [p for p in pictures if p.shape[-1] == size], normalize, compute)
        rows = {size: iter(values.tolist()) for size, values in scores.items()}
        for path, size in zip(chosen, sizes, strict=True):
            true = shown_name(path.resolve().parent)
            values = dict(zip(names, next(rows[size]), strict=True))
            found.append(Prediction(path, size, values, true if true in names else None))
    return found


def _for_use(net: nn.Module, views: int, compute: Compute, num: int) -> nn.Module:
    """The network with everything done that is the same for all images; in bf16 its own norm sums in float32."""
    return compute.place(with_views(net if compute.amp != "off" else for_use(net, num), views))


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


def _files(images: Sequence[str | Path], log: Log) -> list[Path]:
    files: list[Path] = []
    for image in map(Path, images):
        inside, left_out = image_files(image) if image.is_dir() else ([image], None)
        if not inside:
            raise ValueError(f"image folder must hold images, got none in {image}")
        if left_out:
            log.say(f"note: {left_out_text(image, left_out)}")
        files += inside
    if not files:
        raise ValueError("images must name at least one file or folder, got none")
    return files


def _picture(path: Path, net: nn.Module, fit: str, sides: Sequence[int]) -> Tensor:
    """The image as a square uint8 tensor: of the network's size, or with "net" of a size that the network can have.

    The latter is one of the sides, if there are any.
    """
    spec = spec_of(net)
    size = spec.image_sizes[0]
    if fit == "image":
        return decode_image(path, size)
    image = decode_image(path)
    multiple = spec.size_multiple * spec.detail
    side = min(image.shape[1:]) // multiple * multiple
    if sides:
        multiple, side = sides[0], max((s for s in sides if s <= side), default=0)
    if not side:
        raise ValueError(f"image must have at least {multiple} pixels each way, got {path}; type --fit image")
    if image.shape[1:] == (side, side):
        return image
    return resize_images(image[None].float(), (side, side))[0].round().to(torch.uint8)


@torch.no_grad()
def _scores(net: nn.Module, pictures: Sequence[Tensor], normalize: Normalize, compute: Compute) -> Tensor:
    """Probabilities of all classes, (len(pictures), classes)."""
    x = normalize(torch.stack(list(pictures)).to(compute.device).float())
    with compute.autocast():
        return net(x.contiguous(memory_format=torch.channels_last)).float().softmax(1)


def _row(p: Prediction) -> dict[str, str]:
    (first, probability), *others = p.ranking
    second = f"{others[0][0]} {others[0][1]:.1%}" if others else "-"
    row = {"name": str(p.file), "class": first, "probability": f"{probability:.1%}", "second": second}
    return row | {"size": str(p.size), "true": p.true or "-"}
