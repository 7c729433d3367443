import io
import random
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageOps

from anymask.data.images import (
    find_images,
    image_suffixes,
    read_image,
    read_mask,
    write_image,
)
from anymask.types import Image
from pictures import corners_of, quarters

FORMATS = {
    "apng": {}, "avif": {"quality": 90}, "bmp": {}, "dds": {}, "dib": {}, "gif": {}, "icns": {}, "ico": {}, "j2k": {},
    "jp2": {}, "jpg": {"quality": 95}, "mpo": {}, "pcx": {}, "png": {}, "ppm": {}, "qoi": {}, "sgi": {}, "tga": {},
    "tif": {}, "webp": {"lossless": True},
}  # fmt: skip
# What EXIF says about a stored picture A B over C D, and how it is meant to look (EXIF 2.3, tag 274).
ORIENTATIONS = {1: "ABCD", 2: "BADC", 3: "DCBA", 4: "CDAB", 5: "ACBD", 6: "CADB", 7: "DBCA", 8: "BDAC"}


def saved(folder: Path, name: str, picture: PillowImage.Image, **options: object) -> Path:
    picture.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(tmp_path, suffix):
    side = 1024 if suffix == "icns" else 64
    image = read_image(saved(tmp_path, f"x.{suffix}", quarters(side, side), **FORMATS[suffix]))
    assert image.pixels.shape == (side, side, 3)
    assert corners_of(image.pixels) == "ABCD"
    assert image.name == "x"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_pictures_stand_upright(tmp_path, suffix, orientation):
    exif = PillowImage.Exif()
    exif[274] = orientation
    path = saved(tmp_path, f"x.{suffix}", quarters(24, 16), exif=exif)
    image = read_image(path)
    assert corners_of(image.pixels) == ORIENTATIONS[orientation]
    assert image.size == ((24, 16) if orientation > 4 else (16, 24))
    with PillowImage.open(path) as picture:
        np.testing.assert_array_equal(image.pixels, np.asarray(ImageOps.exif_transpose(picture).convert("RGB")))
        assert corners_of(read_image(picture).pixels) == ORIENTATIONS[orientation]


def black_and_white(mode: str) -> PillowImage.Image:
    """Left half black, right half white."""
    values = np.zeros((6, 8), np.uint8)
    values[:, 4:] = 255
    grey = PillowImage.fromarray(values)
    if mode in ("I;16", "I", "F"):
        return PillowImage.fromarray(
            (values * 13.0 + 300).astype({"I;16": "uint16", "I": "int32", "F": "float32"}[mode])
        )
    if mode == "LAB":
        neutral = PillowImage.new("L", grey.size, 128)
        return PillowImage.merge("LAB", [grey, neutral, neutral])
    for step in {"PA": ["P", "PA"], "La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "LA": ["LA"]}.get(
        mode, ["RGB", mode]
    ):
        grey = grey.convert(step)
    return grey


MODES = [
    "1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA", "La", "RGBA", "RGBa", "RGBX", "I;16", "I", "F",
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    picture = black_and_white(mode)
    assert picture.mode == mode
    pixels = read_image(picture).pixels.astype(int)
    assert pixels.shape == (6, 8, 3)
    assert pixels[:, :4].max() <= 5
    assert pixels[:, 4:].min() >= 250


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_stretched_from_the_observed_range(tmp_path, suffix):
    values = np.asarray([[1000, 1500], [2000, 3000]], np.uint16)
    pixels = read_image(saved(tmp_path, f"x.{suffix}", PillowImage.fromarray(values))).pixels
    assert pixels[..., 0].tolist() == [[0, 64], [128, 255]]
    flat = PillowImage.fromarray(np.full((2, 2), 7, np.uint16))
    assert read_image(saved(tmp_path, f"flat.{suffix}", flat)).pixels.max() == 0


def test_floats_from_0_to_1_are_taken_as_they_are(tmp_path):
    values = np.asarray([[0.25, 0.5]], np.float32)
    assert read_image(saved(tmp_path, "x.tif", PillowImage.fromarray(values))).pixels[0, :, 0].tolist() == [64, 128]
    assert read_image(values * 100).pixels[0, :, 0].tolist() == [0, 255]


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    pixels = read_image(saved(tmp_path, "x.png", PillowImage.fromarray(rgba))).pixels
    assert pixels[0, :, 0].tolist() == [255, 127, 0]
    np.testing.assert_array_equal(read_image(rgba).pixels, pixels)
    indexed = PillowImage.new("P", (2, 1))
    indexed.putpalette([0, 0, 0, 9, 9, 9])
    indexed.putpixel((1, 0), 1)
    path = saved(tmp_path, "p.png", indexed, transparency=0)
    assert read_image(path).pixels[0, :, 0].tolist() == [255, 9]
    keyed = saved(tmp_path, "rgb.png", PillowImage.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))
    assert read_image(keyed).pixels.tolist() == [[[255, 255, 255]]]


def test_arrays_of_every_shape_and_type():
    grey = np.asarray([[0, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    for array in (grey, grey[..., None], expected, grey.astype(bool), (grey / 255), grey.astype(np.int64) - 7):
        pixels = read_image(array).pixels
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.flags.c_contiguous
    changed = read_image(expected)
    changed.pixels[:] = 1
    assert expected.max() == 255


def test_open_files_and_images_are_taken(tmp_path):
    path = saved(tmp_path, "photo.one.png", quarters())
    with path.open("rb") as file:
        image = read_image(file)
    assert image.name == "photo.one"
    assert read_image(image) is image
    assert read_image(io.BytesIO(path.read_bytes())).name == "image"
    assert read_image(quarters()).name == "image"
    assert read_image(str(path)).name == "photo.one"


def test_what_is_written_is_read(tmp_path):
    image = Image(np.asarray(quarters()))
    write_image(tmp_path / "new" / "x.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "x.png").pixels, image.pixels)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "avif"])
def test_animations_and_pages_are_refused_by_name(tmp_path, suffix):
    turned = quarters().transpose(PillowImage.Transpose.ROTATE_180)
    path = saved(tmp_path, f"moving.{suffix}", quarters(), save_all=True, append_images=[turned, quarters()])
    with pytest.raises(ValueError, match=rf"moving\.{suffix} has 3 frames, but an image has one"):
        read_image(path)
    with pytest.raises(ValueError, match="has 3 frames"):
        read_mask(path)


def test_a_phones_mpo_is_its_first_picture(tmp_path):
    preview = PillowImage.new("RGB", (4, 4))
    path = saved(tmp_path, "phone.jpg", quarters(48, 32), format="MPO", save_all=True, append_images=[preview])
    with PillowImage.open(path) as picture:
        assert (picture.format, picture.n_frames) == ("MPO", 2)
    assert corners_of(read_image(path).pixels) == "ABCD"


def png_header(w: int, h: int) -> bytes:
    """A PNG that claims to be w x h and holds nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [15_000, 60_000])
def test_bombs_are_refused_before_decoding(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(
        ValueError, match=rf"bomb\.png has {side} x {side} = {side**2} pixels, more than max_pixels 200000000"
    ):
        read_image(tmp_path / "bomb.png")


def test_max_pixels_is_an_argument(tmp_path):
    path = saved(tmp_path, "x.png", quarters(24, 16))
    assert read_image(path, max_pixels=384).size == (16, 24)
    with pytest.raises(ValueError, match="24 x 16 = 384 pixels, more than max_pixels 383"):
        read_image(path, max_pixels=383)
    with pytest.raises(ValueError, match="more than max_pixels 383"):
        read_image(quarters(24, 16), max_pixels=383)


def test_pillows_own_limit_is_set_aside_and_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 50)
    path = saved(tmp_path, "x.png", quarters())
    threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_image(path).size == (16, 24)
    assert PillowImage.MAX_IMAGE_PIXELS == 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", r"empty\.jpg must be an image, but is empty \(0 bytes\)"),
        ("text.jpg", b"no picture at all", r"text\.jpg must be an image: Pillow recognises no format"),
        ("cut.png", png_header(8, 8)[:20], r"cut\.png (must be an image|cannot be read)"),
        ("hollow.png", png_header(8, 8), r"hollow\.png cannot be read as an image: "),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*x\.jpg"):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="must be an image file, but is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "jp2", "tga", "avif"])
def test_truncated_files_are_named(tmp_path, suffix):
    noise = PillowImage.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    path = saved(tmp_path, f"x.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"x\.{suffix} (cannot be read as|must be) an image"):
        read_image(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files_give_a_picture_or_a_value_error(tmp_path, suffix):
    whole = saved(tmp_path, f"x.{suffix}", quarters(64, 64), **FORMATS[suffix]).read_bytes()
    chance = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(min(len(damaged), 200 if chance.random() < 0.7 else len(damaged)))] = (
                chance.randrange(256)
            )
        (tmp_path / f"y.{suffix}").write_bytes(damaged)
        try:
            said = read_image(tmp_path / f"y.{suffix}", max_pixels=100_000).name
        except ValueError as error:
            said = str(error)
        assert said == "y" or f"y.{suffix}" in said


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"\(h, w, 4\), got \(3, 5, 7\)"),
        (np.zeros((0, 5), np.uint8), r"got \(0, 5\)"),
        (np.zeros(5, np.uint8), r"got \(5,\)"),
        (np.zeros((2, 2), complex), "real numbers, got complex128"),
        (np.asarray([["a"]]), "real numbers, got <U1"),
        (np.asarray([[np.nan, 1.0]]), "the image array must hold finite values"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_image(array)


def test_nan_in_a_file_is_named(tmp_path):
    path = saved(tmp_path, "x.tif", PillowImage.fromarray(np.asarray([[np.nan, 1]], np.float32)))
    with pytest.raises(ValueError, match=r"x\.tif must hold finite values"):
        read_image(path)


@given(st.lists(st.lists(st.integers(0, 65535), min_size=3, max_size=3), min_size=1, max_size=4))
def test_stretching_keeps_the_order(rows):
    values = np.asarray(rows, np.uint16)
    grey = read_image(values).pixels[..., 0].reshape(-1).astype(int)
    order = np.argsort(values.reshape(-1), kind="stable")
    assert (np.diff(grey[order]) >= 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16", "LA", "F", "CMYK"])
def test_a_mask_is_what_is_not_black(tmp_path, mode):
    expected = np.zeros((6, 8), bool)
    expected[2:5, 3:7] = True
    base = PillowImage.fromarray(expected.astype(np.uint8) * 3)
    picture = base.convert("RGB").convert("CMYK") if mode == "CMYK" else base.convert(mode)
    if mode == "1":
        picture = PillowImage.fromarray(expected)
    if mode == "I;16":
        picture = PillowImage.fromarray(expected.astype(np.uint16))
    path = saved(tmp_path, "x.tif", picture)
    np.testing.assert_array_equal(read_mask(path), expected)


def test_a_mask_drawn_in_a_palette_goes_by_colour(tmp_path):
    picture = PillowImage.new("P", (2, 1))
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.putpixel((1, 0), 1)
    assert read_mask(saved(tmp_path, "x.png", picture)).tolist() == [[True, False]]


def test_a_mask_is_off_where_it_is_transparent(tmp_path):
    rgba = np.full((1, 2, 4), 255, np.uint8)
    rgba[0, 0, 3] = 0
    assert read_mask(saved(tmp_path, "x.png", PillowImage.fromarray(rgba))).tolist() == [[False, True]]


def test_a_mask_kept_as_jpeg_is_free_of_its_noise(tmp_path):
    y, x = np.mgrid[:64, :64]
    disk = (x - 30) ** 2 + (y - 30) ** 2 < 400
    mask = read_mask(saved(tmp_path, "x.jpg", PillowImage.fromarray(disk.astype(np.uint8) * 255), quality=30))
    assert (mask != disk).mean() < 0.01


def test_a_mask_stands_upright_too(tmp_path):
    mask = np.zeros((2, 3), np.uint8)
    mask[0, 0] = 255
    exif = PillowImage.Exif()
    exif[274] = 6
    path = saved(tmp_path, "x.png", PillowImage.fromarray(mask), exif=exif)
    assert read_mask(path).tolist() == [[False, True], [False, False], [False, False]]


def test_an_empty_mask_is_named(tmp_path):
    for name, picture in {"black": PillowImage.new("L", (3, 3)), "clear": PillowImage.new("RGBA", (3, 3))}.items():
        with pytest.raises(ValueError, match=rf"{name}\.png must hold a mask, but is black or transparent all over"):
            read_mask(saved(tmp_path, f"{name}.png", picture))


@pytest.fixture
def album(tmp_path):
    for name in (
        "b.jpg",
        "a.PNG",
        ".hidden.png",
        "notes.txt",
        "deep/c.tif",
        "deep/er/d.webp",
        "odd[1].png",
        "x.unknown",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "text.md").write_bytes(b"")
    return tmp_path


def test_inputs_are_expanded_in_their_order(album):
    def names(*inputs: str) -> list[str]:
        return [path.relative_to(album).as_posix() for path in find_images([str(album / one) for one in inputs])]

    assert names(".") == ["a.PNG", "b.jpg", "odd[1].png"]
    assert names("deep", "b.jpg", ".") == ["deep/c.tif", "b.jpg", "a.PNG", "odd[1].png"]
    assert names("*.jpg", "*") == ["b.jpg", "a.PNG", "odd[1].png"]
    assert names("**/*") == ["a.PNG", "b.jpg", "deep/c.tif", "deep/er/d.webp", "odd[1].png"]
    assert names("odd[1].png") == ["odd[1].png"]
    assert names("x.unknown", "notes.txt") == ["x.unknown", "notes.txt"]
    assert names("folder.png", "*.gif") == []
    assert find_images([]) == []


def test_a_file_named_twice_comes_once(album, monkeypatch):
    monkeypatch.chdir(album)
    (album / "link.jpg").symlink_to(album / "b.jpg")
    assert find_images(["b.jpg", album / "b.jpg", "./deep/../b.jpg", "link.jpg"]) == [Path("b.jpg")]


def test_a_missing_input_is_named(album):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*none\.jpg"):
        find_images([album / "b.jpg", album / "none.jpg"])


def test_suffixes_are_those_of_pictures():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".avif", ".gif"} <= image_suffixes()
    assert not {".txt", ".json", ".pdf", ".mpg", ".h5", ".eps", ".mp4"} & image_suffixes()
