"""What the pixels of an image mean: values on 0..255 in uint8 from every kind of image that is accepted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

WITH_ALPHA = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
"""Modes of Pillow, and the mode in which their transparency can be dropped without changing a colour."""
GREY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF files: bits per value, which end is white, and whether values are unsigned (1), signed (2) or floats."""

FLIPS = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes of (C, H, W) that each orientation mirrors, after H and W have been exchanged from the fifth on."""


def picture_pixels(image: "Image.Image") -> Tensor:
    """The pixels of a Pillow image as uint8, (1, H, W) for grey and (3, H, W) for colour; transparency is dropped.

    Values of 16 bits are divided by 257, so that white stays white; floats must lie on [0, 1]. Palettes, CMYK, YCbCr
    and HSV become RGB. ValueError for a mode whose white is unknown.
    """
    tags = getattr(image, "tag_v2", {})
    if any(kind == 2 for kind in _as_tuple(tags.get(SAMPLE_FORMAT, 1))):
        raise ValueError(f"mode {image.mode} must have unsigned values, got signed ones; convert the image to 8 bits")
    if image.mode in GREY + COLOUR:
        target = "L" if image.mode in GREY else "RGB"
        if between := WITH_ALPHA.get(image.mode, "RGBA" if "transparency" in image.info else None):
            image = image.convert(between)
        pixels = np.array(image.convert(target))
        return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()
    white = _white(image, tags)
    values = np.array(image, dtype=np.float64) / white
    if not ((values >= 0) & (values <= 1)).all():
        found = f"{values.min() * white:g} to {values.max() * white:g}"
        raise ValueError(
            f"mode {image.mode} must have values in [0, {white}], got {found}; convert the image to 8 bits"
        )
    if tags.get(PHOTOMETRIC) == 0:
        values = 1 - values
    return torch.from_numpy((values * 255).round().astype(np.uint8))[None]


def orientation_of(file: "Image.Image") -> int:
    """The orientation tag of an image that is loaded, 1 to 8; 1 if there is none that can be read."""
    try:
        orientation = file.getexif().get(0x0112, 1)
    except Exception:  # damaged tags leave the pixels as they are
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright(image: Tensor, orientation: int) -> Tensor:
    """Turn and mirror an image (C, H, W) as the orientation tag of EXIF says."""
    image = image.mT if orientation >= 5 else image
    return image.flip(FLIPS[orientation]).contiguous()


def image_pixels(image: Any, name: str) -> Tensor:
    """The uint8 pixels (C, *size) of a Pillow image, a tensor (C, *size), or an array (H, W) or (H, W, C).

    A Pillow image is turned as its orientation tag says. An array may also be (C, H, W), where C is 1 or 3 and W is
    not. ValueError with the name for anything else.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        try:
            return upright(picture_pixels(image), orientation_of(image))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if not isinstance(image, Tensor):
        image = _tensor(image, name)
        image = _channels_first(image[..., None] if image.dim() == 2 else image, name)
    if image.dim() < 2 or 0 in image.shape:
        raise ValueError(f"{name} must have pixels and channels, (C, H, W), got shape {tuple(image.shape)}")
    return to_uint8(image, name)


def batch_pixels(images: Any, name: str) -> Tensor:
    """The uint8 pixels (N, C, *size) of a tensor (N, C, *size), an array (N, H, W[, C]) or a sequence of images."""
    if isinstance(images, (list, tuple)):
        return stack([image_pixels(image, f"{name}, number {i},") for i, image in enumerate(images)], name)
    if not isinstance(images, Tensor):
        images = _tensor(images, name)
        images = _channels_first(images[..., None] if images.dim() == 3 else images, name)
    if images.dim() == 3 and images.shape[1] == images.shape[2]:
        raise ValueError(f"{name} must be (N, C, H, W), got {tuple(images.shape)}; type images[:, None] for grey ones")
    if images.dim() == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        raise ValueError(f"{name} must be (N, C, H, W), got {tuple(images.shape)}; type images.permute(0, 3, 1, 2)")
    return to_uint8(images, name)


def stack(images: Sequence[Tensor], name: str) -> Tensor:
    """Images of one shape as one tensor; ValueError if their channels or sizes differ."""
    shapes = sorted({tuple(image.shape) for image in images})
    if not shapes:
        raise ValueError(f"{name} must hold images, got none")
    if len({shape[0] for shape in shapes}) > 1:
        channels = f"{shapes[0][0]} and {shapes[-1][0]}"
        raise ValueError(f"{name} must have one number of channels, got {channels}; type image.convert('RGB')")
    if len(shapes) > 1:
        raise ValueError(f"{name} must have one shape, got {shapes[:2]}; add a Resize transform")
    return torch.stack(list(images))


def to_uint8(images: Tensor, name: str) -> Tensor:
    """Convert images that are uint8, bool or lie on [0, 1] to uint8; ValueError with the name for any others."""
    if images.layout != torch.strided or images.is_quantized or images.is_complex() or images.is_meta:
        got = f"{images.dtype}, {images.layout}, on {images.device}"
        raise ValueError(f"{name} must be a plain tensor of uint8 or floats, got {got}")
    images = images.detach().cpu().as_subclass(Tensor)
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    if images.is_floating_point() and bool(((images >= 0) & (images <= 1)).all()):
        return (images.float() * 255).round().to(torch.uint8)
    if not images.is_floating_point():
        raise ValueError(f"{name} must be uint8 or lie in [0, 1], got {images.dtype}")
    low, high = images.min().item(), images.max().item()
    remedy = "divide by 255" if low >= 0 and 1 < high <= 255 else "leave out Normalize"
    raise ValueError(f"{name} must be uint8 or lie in [0, 1], got {low:g} to {high:g}; {remedy}")


def _white(image: "Image.Image", tags: Any) -> int:
    """The value of white; ValueError for a mode in which it is unknown."""
    if image.mode.startswith("I;16"):
        return 2 ** _as_tuple(tags.get(BITS, 16))[0] - 1
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # Pillow scales them to 16 bits
        return 2**16 - 1
    if image.mode == "F":
        return 1
    raise ValueError(f"mode must be one with a known white, got {image.mode}; convert the image to 8 bits")


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _tensor(image: Any, name: str) -> Tensor:
    """An array as a tensor; ValueError for what is none."""
    if not hasattr(image, "__array__"):
        raise ValueError(f"{name} must be a Pillow image, a tensor or an array, got {type(image).__name__}")
    if np.ma.is_masked(image):
        raise ValueError(f"{name} must have all their pixels, got masked ones")
    array = np.asarray(image)
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise ValueError(f"{name} must be uint8 or lie in [0, 1], got an array of {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _channels_first(images: Tensor, name: str) -> Tensor:
    """Move the last axis of (..., H, W, C) to the front of H, unless (..., C, H, W) is what the shape says."""
    if images.dim() < 3:
        return images
    first, last = images.shape[-3] in (1, 3), images.shape[-1] in (1, 3)
    if first == last:
        rule = "an array (H, W), (H, W, C) or (C, H, W) with C = 1 or 3"
        raise ValueError(f"{name} must be {rule}, got {tuple(images.shape)}; give a tensor (C, H, W)")
    return images if first else images.movedim(-1, -3).contiguous()
