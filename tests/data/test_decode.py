"""JPEG decoded at a reduced size: the cell averages of the whole image, from fewer pixels."""

from typing import Any

import pytest
import torch
from PIL import Image, ImageFile

from multipde import render_shapes, resize_images
from multipde.data.decode import decode_image, decode_images, image_sizes
from multipde.data.images import TensorImages
from multipde.data.streamed import StreamedImages
from multipde.studies.bench.consistency import band_limited

SHARP: dict[str, Any] = {"quality": 100, "subsampling": 0}
ROUNDING = 3
"""In grey values: of luminance and colour difference in the decoder (1 + 1.772 halves in blue), its results, ours."""


def smooth_picture(height, width, seed=0):
    """A picture of at most three waves each way, on 40 to 215."""
    field = band_limited(1, 3, max(height, width), 3, seed)[0, :, :height, :width]
    return (127.5 + 87.5 * field / field.abs().max()).round().to(torch.uint8)


def save(picture, file, mode="RGB", **options):
    Image.fromarray(picture.permute(1, 2, 0).numpy()).convert(mode).save(file, **options)
    return file


def whole(file, size):
    """Decoded whole, then averaged."""
    return resize_images(decode_image(file)[None].double(), size)[0]


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of pixels that decoders have put out, one per image."""
    pixels, prepare = [], ImageFile.ImageFile.load_prepare

    def counted(self):
        pixels.append(self.width * self.height)
        prepare(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", counted)
    return pixels


@pytest.mark.parametrize(
    ("shape", "size", "scale"),
    [
        ((128, 128), 64, 2),
        ((128, 128), 16, 8),
        ((128, 128), 8, 8),
        ((128, 128), 48, 1),
        ((128, 128), 40, 1),
        ((128, 128), 30, 2),
        ((128, 128), 13, 4),
        ((125, 93), 20, 2),
        ((125, 93), 11, 4),
        ((125, 93), 5, 8),
        ((120, 64), 32, 1),
        ((96, 64), 32, 1),
        ((128, 64), 32, 2),
    ],
)
def test_means_of_pixels_come_from_the_decoder(tmp_path, decoded, shape, size, scale):
    """A cell of width H whose edge cuts a reduced pixel of width w errs by at most w² |u'| / 4H per axis."""
    picture = smooth_picture(*shape)
    file = save(picture, tmp_path / "a.jpg", **SHARP)
    found = decode_image(file, size).double()
    height, width = (-(-num // scale) for num in shape)
    assert decoded == [height * width]
    error = (found - whole(file, size)).abs()
    cut = 0.0
    for axis, num in ((1, shape[0]), (2, shape[1])):
        jump = picture.double().diff(dim=axis).abs().max().item()
        cut += 0.0 if num % (scale * size) == 0 else scale**2 * jump * size / (4 * num)
    assert error.max() <= ROUNDING + cut
    if not cut:
        assert error.square().mean().sqrt() <= 0.7


@pytest.mark.parametrize("options", [SHARP, SHARP | {"progressive": True}, {"quality": 90, "subsampling": 2}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_is_reduced(tmp_path, decoded, mode, options):
    file = save(smooth_picture(64, 64), tmp_path / "a.jpg", mode, **options)
    error = (decode_image(file, 16) - whole(file, 16)).abs()
    assert decoded == [16 * 16, 64 * 64]
    assert error.square().mean().sqrt() <= (0.7 if options["subsampling"] == 0 else 1.5)


def test_all_scales_are_the_ones_asked_for(tmp_path, decoded):
    """Also for the odd sizes, where the last reduced pixel lies partly outside."""
    for num in (*range(16, 34), 63, 65):
        file = save(torch.full((3, num, num + 3), 90, dtype=torch.uint8), tmp_path / "a.jpg", **SHARP)
        for size in range(1, num // 2 + 1):
            decoded.clear()
            assert (decode_image(file, size) - 90.0).abs().max() <= 1
            least = 2 if num % size or (num + 3) % size else 1
            (pixels,) = decoded
            assert pixels >= (least * size) ** 2 or pixels == num * (num + 3)


def test_nothing_changes_above_half_the_size_and_for_other_formats(tmp_path, decoded):
    picture = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    jpeg = save(picture, tmp_path / "a.jpg")
    for size in (33, 40, 64, 100):
        expected = resize_images(decode_image(jpeg)[None].float(), size)[0].round().to(torch.uint8)
        assert torch.equal(decode_image(jpeg, size), expected)
    assert set(decoded) == {64 * 64}
    for name in ("a.png", "a.webp", "a.bmp", "a.tiff", "a.ppm"):
        file = save(picture, tmp_path / name, lossless=True)
        for size in (7, 8, 16, 32):
            expected = resize_images(picture[None].float(), size)[0].round().to(torch.uint8)
            assert torch.equal(decode_image(file, size), expected), name


TURNS = Image.Transpose
SEEN_AS = {  # orientation tag: how a viewer turns what is stored
    **{1: None, 2: TURNS.FLIP_LEFT_RIGHT, 3: TURNS.ROTATE_180, 4: TURNS.FLIP_TOP_BOTTOM, 5: TURNS.TRANSPOSE},
    **{6: TURNS.ROTATE_270, 7: TURNS.TRANSVERSE, 8: TURNS.ROTATE_90},
}


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", SEEN_AS)
def test_pictures_are_upright_at_every_size(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored, turn = Image.fromarray(smooth_picture(90, 70).permute(1, 2, 0).numpy()), SEEN_AS[orientation]
    file, seen = tmp_path / f"a{ending}", tmp_path / "seen.png"
    stored.save(file, exif=exif, **(SHARP if ending == ".jpg" else {"lossless": True}))
    (stored if turn is None else stored.transpose(turn)).save(seen)
    for size in (None, 60, 10, 7):
        a, b = decode_image(file, size).int(), decode_image(seen, size).int()
        assert a.shape == b.shape
        assert (a - b).abs().max() <= (ROUNDING + 4 if ending == ".jpg" else 0)
    if ending != ".png":  # whose tag may come after the pixels
        assert image_sizes([file]) == image_sizes([seen])


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16"])
def test_plain_tiffs_of_any_mode_are_upright(tmp_path, mode):
    """Pillow maps them into memory where it opens them by name, with height and width exchanged."""
    exif, size = Image.Exif(), (3, 2)
    exif[0x0112] = 6
    image = Image.frombytes(mode, size, bytes(range(0, 240, 10))[: 6 * {"CMYK": 4, "I;16": 2}.get(mode, 1)])
    image.save(tmp_path / "a.tif", exif=exif)
    image.save(tmp_path / "b.tif")
    stored = decode_image(tmp_path / "b.tif")
    assert torch.equal(decode_image(tmp_path / "a.tif"), stored.rot90(-1, (1, 2)))


def test_a_damaged_orientation_tag_leaves_the_pixels(tmp_path):
    picture = smooth_picture(16, 16)
    file = save(picture, tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert torch.equal(decode_image(file), picture)


def test_a_cut_jpeg_is_refused_at_every_size(tmp_path):
    file = save(torch.randint(256, (3, 64, 64), dtype=torch.uint8), tmp_path / "a.jpg")
    file.write_bytes(file.read_bytes()[:2000])
    for size in (8, 16, 32, 64, None):
        with pytest.raises(ValueError, match=r"^image must be readable, got .*a.jpg: [^\n]*$"):
            decode_image(file, size)


def test_streamed_jpegs_are_those_in_memory_at_the_finest_level_and_nearly_on_the_others(tmp_path):
    pictures, labels = render_shapes(12, 64)
    paths = [save(picture, tmp_path / f"{i}.jpg") for i, picture in enumerate(pictures)]
    kept, streamed = TensorImages(decode_images(paths, 32), labels), StreamedImages(paths, labels, num_workers=0)
    for size, rms in ((32, 0.0), (16, 1.0), (8, 1.0)):
        parts = [(size, torch.arange(12))]
        (a, _), (b, _) = (next(iter(images.batches(parts, torch.device("cpu")))) for images in (kept, streamed))
        assert (a - b).square().mean().sqrt() <= rms
