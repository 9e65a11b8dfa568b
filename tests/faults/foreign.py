"""Images, labels and containers of every kind: the right value by a second computation, or one clear line."""

import colorsys
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from multipde import load_data
from multipde.data.decode import decode_image
from multipde.data.labels import whole_labels
from multipde.data.pixels import batch_pixels, picture_pixels

FORMATS = ("png", "jpg", "ppm", "bmp", "tif", "webp")
LOSSY = 12
"""Largest error of uniform pictures in lossy files, in grey values."""
ROUNDED = 2
"""Largest error of colours that are computed in 8 bits."""
KEPT = {
    ("I;16L", "I;16"),
    ("I;16N", "I;16"),
    ("I;16B", "I;16"),
    ("RGBA", "RGB"),
    ("LA", "RGBA"),
    ("L", "RGB"),
    ("I;16", "I"),
}
"""Modes that change when they are written, but not in what they show."""
NAMES = ("ant", "bee", "cat")
KINDS = ("float64", "float32", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool")


def campaign(num: int, seed: int, place: Path) -> dict[str, int | float]:
    """Read ``num`` cases.

    Returns:
        Counts: cases by kind, those with the right value and those refused.

    Raises:
        AssertionError: a wrong value, an error that is not one line of ours, or a refusal of what is accepted.
    """
    rng, counts, started = random.Random(seed), Counter(), time.perf_counter()
    for number in range(num):
        kind = (_picture, _file, _labels, _container)[number % 4]
        name = kind.__name__.strip("_")
        where = f"seed {seed}, number {number}, {name}"
        what, found, expected, tolerance = kind(rng, place)
        where = f"{where} {what}"
        try:
            value, refusal = found(), ""
        except ValueError as error:
            value, refusal = None, str(error)
        if value is None:
            assert "\n" not in refusal, where
            assert 0 < len(refusal) < 600, where
            assert expected is None, f"{where}: refused by {refusal}"
        else:
            assert expected is not None, f"{where}: taken as {value}"
            assert np.shape(value) == np.shape(expected), where
            error = np.abs(np.asarray(value, dtype=float) - np.asarray(expected, dtype=float)).max()
            assert error <= tolerance, f"{where}: wrong by {error:g}"
        counts["refused" if value is None else "right"] += 1
        counts[name] += 1
    return {**counts, "num": num, "seconds": round(time.perf_counter() - started, 1)}


def _drawn(rng: random.Random, is_uniform: bool) -> tuple[Image.Image, np.ndarray | None, int]:
    """A picture of any mode, the colours (H, W, 3) that it means, and how exact they are; None for no meaning."""
    numpy = np.random.default_rng(rng.randrange(2**32))
    mode, (h, w) = rng.choice(Image.MODES), (rng.randrange(1, 9), rng.randrange(1, 9))
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = numpy.integers(0, 256, (1, 1, bands) if is_uniform else (h, w, bands), dtype=np.uint8)
    values = np.broadcast_to(values, (h, w, bands)).copy()
    first, tolerance = values[..., :1].astype(float), 0
    if mode == "1":
        return (
            Image.fromarray(values[..., 0]).point(lambda v: 255 * (v > 127), "1"),
            255 * (first > 127) + np.zeros(3),
            0,
        )
    if mode == "F":
        scale = rng.choice((1, 1, 255, -1, float("nan")))
        image = Image.fromarray((first[..., 0] / 255 * scale).astype(np.float32))
        low, high = image.getextrema()
        return (
            image,
            (np.round(np.array(image, dtype=float) * 255)[..., None] + np.zeros(3)) if 0 <= low <= high <= 1 else None,
            0,
        )
    if mode == "I":
        return Image.fromarray(values[..., 0].astype(np.int32)), None, 0
    if mode.startswith("I;16"):
        deep = numpy.integers(0, 65536, (h, w), dtype=np.uint16)
        image = Image.frombytes(mode, (w, h), deep.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
        return image, np.round(deep / 257)[..., None] + np.zeros(3), 0
    if mode in ("P", "PA"):
        palette = numpy.integers(0, 256, (256, 3), dtype=np.uint8)
        image = Image.fromarray(values[..., 0], "L" if mode == "P" else None)
        image.putpalette(palette.tobytes())
        image = image if mode == "P" else image.convert("PA")
        return image, palette[values[..., 0]].astype(float), 0
    image = Image.frombytes(mode, (w, h), values.tobytes())
    if mode in ("L", "LA"):
        return image, first + np.zeros(3), 0
    if mode in ("La", "RGBa"):
        alpha = values[..., -1:].astype(float)
        colours = values[..., :-1].astype(float)
        colours = np.where(alpha > 0, np.minimum(255, colours * 255 / np.maximum(alpha, 1)), colours)
        return image, colours + np.zeros(3), 1
    if mode == "CMYK":
        return image, (255.0 - values[..., :3]) * (255.0 - values[..., 3:]) / 255, ROUNDED
    if mode == "YCbCr":
        y, b, r = (values[..., i].astype(float) - (128 if i else 0) for i in range(3))
        rgb = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], -1)
        return image, rgb.clip(0, 255), ROUNDED
    if mode == "HSV":
        flat = [colorsys.hsv_to_rgb(*(v / 255)) for v in values.reshape(-1, 3).astype(float)]
        return image, 255 * np.array(flat).reshape(h, w, 3), ROUNDED + 2
    return image, values[..., :3].astype(float) if mode in ("RGB", "RGBA", "RGBX") else None, tolerance


def _picture(rng: random.Random, place: Path) -> tuple[str, Any, Any, float]:
    image, expected, tolerance = _drawn(rng, False)
    expected = None if expected is None else expected.transpose(2, 0, 1)
    return image.mode, lambda: picture_pixels(image).expand(3, -1, -1), expected, tolerance


def _file(rng: random.Random, place: Path) -> tuple[str, Any, Any, float]:
    """In a file, with an orientation."""
    ending, orientation = rng.choice(FORMATS), rng.randrange(1, 9)
    image, expected, tolerance = _drawn(rng, ending in ("jpg", "webp"))
    file, exif = place / f"case.{ending}", Image.Exif()
    exif[0x0112] = orientation
    tagged = ending in ("png", "jpg", "webp", "tif")
    options: dict[str, Any] = {"exif": exif} if tagged else {}
    if ending == "jpg":
        options |= {"quality": 100, "subsampling": 0}
    try:
        image.save(file, **options)
        with Image.open(file) as stored:
            mode = stored.mode
        is_kept = mode == image.mode or (image.mode, mode) in KEPT
    except (OSError, ValueError, KeyError, SystemError):
        is_kept = False
    if not is_kept:  # Pillow writes no such file, or other pixels
        return _picture(rng, place)
    if expected is not None and tagged:
        turned = Image.fromarray(expected.round().astype(np.uint8))
        turned.getexif()[0x0112] = orientation
        expected = np.asarray(ImageOps.exif_transpose(turned), dtype=float)
    if mode == "I" and ending == "ppm" and expected is None:  # written as 16 bits, whose white is known
        expected = np.round(np.asarray(image, dtype=float) / 257)[..., None] + np.zeros(3)
    expected = None if expected is None else expected.transpose(2, 0, 1)
    is_lossy = ending in ("jpg", "webp") or mode != image.mode
    return (
        f"{image.mode} {ending} {orientation}",
        lambda: decode_image(file),
        expected,
        LOSSY if is_lossy else tolerance,
    )


def _labels(rng: random.Random, place: Path) -> tuple[str, Any, Any, float]:
    num, dtype = rng.randrange(1, 6), getattr(torch, rng.choice(KINDS))
    plain = [rng.choice((0, 1, 2, rng.choice((0, 1, 2, 3, -1, 1.4, 0.5, 2.6, 300)))) for _ in range(num)]
    tensor = torch.tensor(plain, dtype=torch.float64).to(dtype)
    values = tensor.double().tolist()
    is_right = all(v in (0, 1, 2) for v in values)
    form = rng.choice(
        ("tensor", "array", "list", "column", "one-hot", "matrix", "numbers", "names", "mixed", "nothing")
    )
    given: Any = tensor
    if form == "array":
        given = tensor.double().numpy() if dtype == torch.bfloat16 else tensor.numpy()
    elif form == "list":
        given = list(tensor)
    elif form == "column":
        given = tensor[:, None]
    elif form == "one-hot":
        given, is_right = torch.eye(3)[[int(v) % 3 for v in values]], False
    elif form == "matrix":
        given, is_right = tensor[:, None].expand(-1, 2), False
    elif form == "numbers":
        given = values = plain
        is_right = all(v in (0, 1, 2) for v in plain)
    elif form == "names":
        values = [rng.randrange(3 + (rng.random() < 0.2)) for _ in plain]
        given = [(*NAMES, "dog")[v] for v in values]
        is_right = max(values) < 3
        given = np.array(given) if rng.random() < 0.5 else given
    elif form == "mixed":
        given, is_right = [0, "bee", *plain], False
    elif form == "nothing":
        given, is_right = [rng.choice((None, {}, 1j, "", b"a", object())), *plain], False
    return f"{form} {dtype} {given}", lambda: whole_labels(given, NAMES, "train"), values if is_right else None, 0


def _container(rng: random.Random, place: Path) -> tuple[str, Any, Any, float]:
    """Images in a tensor, an array or a list, also as both parts of a data set."""
    num, channels, side = rng.randrange(2, 5), rng.choice((1, 3)), rng.randrange(4, 8)
    x = torch.randint(256, (num, channels, side, side), generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    x, expected = x.to(torch.uint8), x
    kind = rng.choice(("uint8", "unit", "bool", "values", "normalised", "int", "half"))
    if kind == "unit":
        x = (x / 255).to(rng.choice((torch.float32, torch.float64)))
    elif kind == "bool":
        x, expected = x > 127, 255 * (x > 127)
    elif kind == "values":
        x, expected = x.float() + 1.5, None
    elif kind == "normalised":
        x, expected = x / 255 - 0.5 - 1e-3, None
    elif kind == "int":
        x, expected = x.to(rng.choice((torch.int16, torch.int32, torch.int64))), None
    tolerance = 1 if kind == "half" else 0
    x = (x / 255).half() if kind == "half" else x
    form = rng.choice(
        ("tensor", "channels last", "array", "array first", "list", "grey", "pairs", "dictionary", "no axis")
    )
    given: Any = {
        "tensor": x,
        "channels last": x.permute(0, 2, 3, 1),
        "array": x.permute(0, 2, 3, 1).numpy(),
        "array first": x.numpy(),
        "list": [
            array if rng.random() < 0.5 else image
            for image, array in zip(x, x.permute(0, 2, 3, 1).numpy(), strict=True)
        ],
        "grey": x[:, 0].numpy(),
        "no axis": x[:, 0],
    }.get(form)
    if form in ("channels last", "no axis"):
        expected = None
    elif form == "grey":
        expected = None if expected is None else expected[:, :1]
    if form in ("pairs", "dictionary"):
        items: Any = [(image, 0) if form == "pairs" else {"img": image, "label": 0} for image in x]
        return f"{form} {kind}", lambda: load_data((items, items)).train.images, expected, tolerance  # pyright: ignore
    return f"{form} {kind} {tuple(x.shape)}", lambda: batch_pixels(given, "train images"), expected, tolerance
