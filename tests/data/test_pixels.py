"""Every kind of pixel: white stays white and black black, or the mode and the file are named."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from multipde import load_data
from multipde.data.decode import decode_image, image_sizes
from multipde.data.pixels import COLOUR, GREY, batch_pixels, image_pixels, picture_pixels

STEPS = np.array([[0, 100], [200, 255]])
FLOATS = np.array([[0, 0.5], [0.25, 1]])


def tiff(values, photometric, bits, kind, order="<"):
    """A TIFF file of one strip: kind is 1 for unsigned values, 2 for signed ones and 3 for floats."""
    data, (height, width) = values.astype(values.dtype.newbyteorder(order)).tobytes(), values.shape
    short = {256: 8 * values.itemsize * width // bits, 257: height, 258: bits, 259: 1, 262: photometric}
    tags = {**short, 273: 8, 277: 1, 278: height, 279: len(data), 339: kind}
    data += b"\0" * (len(data) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, 1)
        + (struct.pack(f"{order}I", v) if tag in (273, 279) else struct.pack(f"{order}HH", v, 0))
        for tag, v in tags.items()
    )
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def pnm(magic, white, values):
    return f"{magic} {values.shape[1]} {values.shape[0]} {white}\n".encode() + values.tobytes()


SIXTEEN = (257 * STEPS).astype(np.uint16)
GREY_FILES = {
    "8.pgm": pnm("P5", 255, STEPS.astype(np.uint8)),
    "16.pgm": pnm("P5", 65535, SIXTEEN.astype(">u2")),
    "16.tif": tiff(SIXTEEN, 1, 16, 1),
    "16 big-endian.tif": tiff(SIXTEEN, 1, 16, 1, ">"),
    "16 white is zero.tif": tiff(65535 - SIXTEEN, 0, 16, 1),
    "8 white is zero.tif": tiff(255 - STEPS.astype(np.uint8), 0, 8, 1),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_grey_of_any_depth_is_the_grey_it_shows(tmp_path, name):
    (tmp_path / name).write_bytes(GREY_FILES[name])
    assert decode_image(tmp_path / name).tolist() == [STEPS.tolist()] * 3


def test_sixteen_bits_in_a_png_are_not_clipped(tmp_path):
    Image.fromarray(SIXTEEN).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png").tolist() == [STEPS.tolist()] * 3
    assert decode_image(tmp_path / "a.png", 1).flatten().tolist() == [139] * 3


def test_twelve_bits_and_odd_whites_are_scaled(tmp_path):
    (tmp_path / "12.tif").write_bytes(tiff(np.array([[0x00, 0x0F, 0xFF]], dtype=np.uint8), 1, 12, 1))
    (tmp_path / "10.pgm").write_bytes(pnm("P5", 1023, np.array([[0, 1023]], dtype=">u2")))
    (tmp_path / "7.pgm").write_bytes(pnm("P5", 127, np.array([[0, 127]], dtype=np.uint8)))
    for name in ("12.tif", "10.pgm", "7.pgm"):
        assert decode_image(tmp_path / name)[0].tolist() == [[0, 255]], name


def test_colours_of_sixteen_bits_err_by_at_most_one_grey_value(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 6), dtype=np.uint16).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6 2 5 65535\n" + values.tobytes())
    exact = torch.from_numpy(values.astype(float) / 257).reshape(5, 2, 3).permute(2, 0, 1)
    assert (decode_image(tmp_path / "a.ppm") - exact).abs().max() <= 1


def test_floats_on_0_to_1_are_those_greys_in_tiff_and_pfm(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(FLOATS.astype(np.float32), 1, 32, 3))
    (tmp_path / "negative.tif").write_bytes(tiff(1 - FLOATS.astype(np.float32), 0, 32, 3))
    (tmp_path / "a.ppm").write_bytes(b"Pf 2 2 -1.0\n" + FLOATS[::-1].astype("<f4").tobytes())
    for name in ("a.tif", "negative.tif", "a.ppm"):
        assert decode_image(tmp_path / name)[0].tolist() == [[0, 128], [64, 255]], name


@pytest.mark.parametrize(
    ("values", "photometric", "bits", "kind", "message"),
    [
        (FLOATS.astype(np.float32) * 255, 1, 32, 3, r"mode F must have values in \[0, 1\], got 0 to 255; convert"),
        (FLOATS.astype(np.float32) - 1, 1, 32, 3, r"mode F must have values in \[0, 1\], got -1 to 0; convert"),
        (np.full((2, 2), np.nan, np.float32), 1, 32, 3, "mode F must have values in"),
        (STEPS.astype(np.int8), 1, 8, 2, "mode L must have unsigned values, got signed ones"),
        (SIXTEEN.astype(np.int16), 1, 16, 2, "mode I must have unsigned values, got signed ones"),
        (STEPS.astype(np.uint32), 1, 32, 1, "mode must be one with a known white, got I; convert the image to 8 bits"),
        (FLOATS, 1, 64, 3, "cannot identify image file"),
    ],
)
def test_pixels_whose_white_is_unknown_are_refused_with_mode_and_file(
    tmp_path, values, photometric, bits, kind, message
):
    (tmp_path / "a.tif").write_bytes(tiff(values, photometric, bits, kind))
    with pytest.raises(ValueError, match=f"^image must be readable, got .*a.tif: {message}"):
        decode_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_has_a_rule_or_is_refused_by_name(mode):
    image = Image.new(mode, (3, 2))
    if mode in ("I", "LAB"):
        with pytest.raises(ValueError, match=f"known white, got {mode};"):
            picture_pixels(image)
        return
    assert mode in GREY + COLOUR or mode.startswith("I;16") or mode == "F"
    pixels = picture_pixels(image)
    assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (2, 3))
    assert len(pixels) == (3 if mode in COLOUR else 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "F"])
def test_white_is_white_in_every_mode(mode):
    white = {"1": 1, "P": 1, "CMYK": (0,) * 4, "YCbCr": (255, 128, 128), "HSV": (0, 0, 255), "F": 1.0, "LA": (255, 0)}
    white = white | {"I;16": 65535, "I;16B": 65535, "RGBA": (255, 255, 255, 0)}
    image = Image.new(mode, (2, 2), white.get(mode, "white"))
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    assert picture_pixels(image).unique().tolist() == [255]


def test_transparency_is_dropped_and_changes_no_colour(tmp_path):
    red, palette = Image.new("RGBA", (2, 1), (200, 100, 50, 128)), Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=b"\xff\x80")
    Image.new("RGB", (2, 1), (200, 100, 50)).save(tmp_path / "rgb.png", transparency=(200, 100, 50))
    found = [decode_image(tmp_path / name) for name in ("p.png", "rgb.png")]
    found += [picture_pixels(red), picture_pixels(red.convert("RGBa"))]
    for pixels in found:
        assert (pixels[:, 0, 0].int() - torch.tensor([200, 100, 50])).abs().max() <= 1  # premultiplied in 8 bits


def test_files_of_several_frames_are_counted(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    paths = [tmp_path / name for name in ("a.webp", "a.png", "a.tif")]
    for path in paths:
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(path)[:, 0, 0].tolist() == [255, 0, 0]
    assert image_sizes(paths) == ({(2, 2): 3}, 3)


class Pictures(list):
    """A data set of Pillow images with the labels 0, 1, 0, ..."""

    def __getitem__(self, index):
        return super().__getitem__(index), index % 2


def test_a_data_set_of_palette_images_gives_colours_and_not_indices():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    data = load_data((Pictures([palette] * 4), Pictures([palette.convert("RGB")] * 2)))
    assert data.train.images[0, :, 0, 0].tolist() == [200, 100, 50]
    grey = load_data((Pictures([Image.fromarray(SIXTEEN)] * 4), Pictures([Image.new("1", (2, 2), 1)] * 2)))
    assert (grey.train.images[0, 0].tolist(), grey.test.images.unique().tolist()) == (STEPS.tolist(), [255])
    with pytest.raises(ValueError, match="train item 0: mode must be one with a known white, got LAB"):
        load_data((Pictures([Image.new("LAB", (4, 4))] * 4), Pictures([palette] * 2)))


def test_arrays_and_lists_are_the_same_images():
    x = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    arrays = x.permute(0, 2, 3, 1).numpy()
    for images in (arrays, x.numpy(), list(arrays), list(x), [Image.fromarray(array) for array in arrays]):
        assert torch.equal(batch_pixels(images, "images"), x)
    assert torch.equal(batch_pixels(arrays[..., 0], "images"), x[:, :1])
    assert torch.equal(batch_pixels(x.double() / 255, "images"), x)
    assert torch.equal(batch_pixels(np.asfortranarray(arrays[:, ::-1]), "images"), x.flip(2))
    assert image_pixels(x[0, 0].numpy() > 127, "image").tolist() == (255 * (x[:1, 0] > 127)).tolist()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 8, 8), r"must be \(N, C, H, W\), got \(4, 8, 8\); type images\[:, None\] for grey ones"),
        (torch.zeros(4, 8, 8, 3), r"got \(4, 8, 8, 3\); type images.permute\(0, 3, 1, 2\)"),
        (np.zeros((4, 8, 8, 4)), r"\(C, H, W\) with C = 1 or 3, got \(4, 8, 8, 4\); give a tensor"),
        (np.zeros((4, 3, 8, 3)), r"\(C, H, W\) with C = 1 or 3, got \(4, 3, 8, 3\); give a tensor"),
        (torch.full((1, 3, 2, 2), 200.0), r"lie in \[0, 1\], got 200 to 200; divide by 255"),
        (np.zeros((4, 8, 8), dtype=np.uint16), r"must be uint8 or lie in \[0, 1\], got torch.uint16"),
        (np.array([["a"]]), r"got an array of <U1"),
        (
            [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)],
            "must have one number of channels, got 1 and 3; type image.conv",
        ),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)], "must have one shape, got .*; add a Resize transform"),
        ([], "must hold images, got none"),
        (["a.png"], "images, number 0, must be a Pillow image, a tensor or an array, got str"),
        ([torch.zeros(8)], r"images, number 0, must have pixels and channels, \(C, H, W\), got shape \(8,\)"),
        (torch.zeros(1, 3, 2, 2).to_sparse(), "must be a plain tensor of uint8 or floats, got torch.float32, torch.sp"),
        (
            torch.zeros(1, 3, 2, 2, dtype=torch.complex64),
            "must be a plain tensor of uint8 or floats, got torch.complex",
        ),
    ],
)
def test_images_that_may_mean_something_else_are_named(images, message):
    with pytest.raises(ValueError, match=f"^images.* {message}|^{message}"):
        batch_pixels(images, "images")
