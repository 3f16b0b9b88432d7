"""Makes the image files of this folder: sources in every format that norma reads, and what Pillow and torchvision make of them.

Made with Pillow 9.4.0, NumPy 1.24.2, torchvision 0.14.1, seed 20240601. Run it in this folder; running norma's tests needs no Python.
Tolerance: resized and preprocessed images to the bit; decoded JPEG within 3 of 255 (decoders differ in their inverse transform).
"""
import struct
import zlib

import numpy as np
from PIL import Image
from torchvision import transforms

rng = np.random.default_rng(20240601)


def picture(height, width, channels):
    """Smooth waves plus noise plus hard edges, so that every filter has something to ring at."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels].astype(np.float64)
    wave = 128 + 90 * np.sin(x * 0.31 + c) * np.cos(y * 0.23 - c)
    noise = rng.normal(0, 25, (height, width, channels))
    pixels = np.clip(wave + noise, 0, 255)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
    pixels[height // 2 : height // 2 + 2] = 0
    return pixels.round().astype(np.uint8)


FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
SIZES = [(16, 16), (11, 50), (40, 64), (23, 37), (1, 1), (5, 3), (23, 20), (9, 37)]  # height, width

rgb = Image.fromarray(picture(23, 37, 3))
gray = Image.fromarray(picture(23, 37, 1)[:, :, 0])
rgb.save("rgb.png")
gray.save("gray.png")
for name, kind in FILTERS.items():
    for height, width in SIZES:
        rgb.resize((width, height), kind).save(f"rgb_{name}_{height}x{width}.png")
    gray.resize((14, 10), kind).save(f"gray_{name}_10x14.png")

# Odd sizes, so that the longer edge is truncated and the crop falls on halves.
for height, width in [(61, 47), (40, 75), (52, 52)]:
    source = Image.fromarray(picture(height, width, 3))
    source.save(f"photo_{height}x{width}.png")
    for name, kind in FILTERS.items():
        mode = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}[name]
        cut = transforms.Compose([transforms.Resize(33, getattr(transforms.InterpolationMode, mode)), transforms.CenterCrop((24, 30))])
        cut(source).save(f"photo_{height}x{width}_{name}_33_24x30.png")

# Formats. Expected pixels stand beside each as <stem>_as_read.png where they are not those of rgb.png or gray.png.
alpha = np.linspace(0, 255, 23 * 37).reshape(23, 37).astype(np.uint8)
Image.fromarray(np.dstack([np.asarray(rgb), alpha])).save("rgba.png")
Image.merge("LA", (gray, Image.fromarray(alpha))).save("gray_alpha.png")
palette = rgb.quantize(32)
palette.save("palette.png")
palette.convert("RGB").save("palette_as_read.png")
gray.point(lambda v: 255 if v > 127 else 0).convert("1").save("one_bit.png")
gray.point(lambda v: 255 if v > 127 else 0).save("one_bit_as_read.png")
rgb.save("rgb.bmp")
gray.save("gray.bmp")
rgb.save("rgb.ppm")
gray.save("gray.pgm")
rgb.save("rgb.jpg", quality=95, subsampling=0)
rgb.save("rgb_progressive.jpg", quality=95, subsampling=0, progressive=True)
gray.save("gray.jpg", quality=95)
for stem in ("rgb", "gray"):
    Image.open(f"{stem}.jpg").save(f"{stem}_jpg_as_read.png")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def filtered(row, above, step, kind):
    """One row after PNG's filter `kind`, with its number in front."""
    left = np.concatenate([np.zeros(step, np.uint8), row])[: len(row)].astype(int)
    corner = np.concatenate([np.zeros(step, np.uint8), above])[: len(row)].astype(int)
    up = above.astype(int)
    estimate = left + up - corner
    distances = np.abs(np.stack([estimate - left, estimate - up, estimate - corner]))
    paeth = np.choose(np.argmin(distances, axis=0), [left, up, corner])  # the first of equals
    guess = [0, left, up, (left + up) // 2, paeth][kind]
    return bytes([kind]) + ((row.astype(int) - guess) % 256).astype(np.uint8).tobytes()


def write_png(path, values, depth, colour_type, interlaced=False, palette=None):
    """A PNG written by hand: Pillow writes neither every depth nor interlacing. `values` is [height, width, samples]; filters take turns."""
    height, width, samples = values.shape
    step = max(samples * depth // 8, 1)
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    stream = b""
    for top, left, down, across in adam7 if interlaced else [(0, 0, 1, 1)]:
        part = values[top::down, left::across]
        if part.size == 0:
            continue
        above = None
        for y, pixels in enumerate(part):
            bits = np.unpackbits(pixels.reshape(-1).astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - depth :]
            row = np.packbits(bits.reshape(-1))
            above = np.zeros_like(row) if above is None else above
            stream += filtered(row, above, step, y % 5)
            above = row
    body = zlib.compress(stream)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
        if palette is not None:
            file.write(chunk(b"PLTE", palette.tobytes()))
        file.write(chunk(b"IDAT", body[: len(body) // 2]) + chunk(b"IDAT", body[len(body) // 2 :]) + chunk(b"IEND", b""))


def to_8_bits(values, depth):
    return np.floor(values * 255 / (2**depth - 1) + 0.5).astype(np.uint8)


for stem, samples in (("gray_16", 1), ("rgb_16", 3)):
    values = rng.integers(0, 65536, (23, 37, samples))
    write_png(f"{stem}.png", values, 16, 0 if samples == 1 else 2)
    Image.fromarray(to_8_bits(values, 16).squeeze(2) if samples == 1 else to_8_bits(values, 16)).save(f"{stem}_as_read.png")

KINDS = {"gray": (0, 1, (1, 2, 4, 8, 16)), "rgb": (2, 3, (8, 16)), "palette": (3, 1, (1, 2, 4, 8)), "gray_alpha": (4, 2, (8, 16)), "rgb_alpha": (6, 4, (8, 16))}
for name, (colour_type, samples, depths) in KINDS.items():
    for depth in depths:
        values = rng.integers(0, 2**depth, (13, 19, samples))
        palette = rng.integers(0, 256, (2**depth, 3), np.uint8) if name == "palette" else None
        if palette is not None:
            expected = palette[values[:, :, 0]]
        else:
            expected = to_8_bits(values[:, :, : 1 if samples < 3 else 3], depth)
            expected = expected[:, :, 0] if samples < 3 else expected
        Image.fromarray(expected).save(f"png_{name}_{depth}_as_read.png")
        for interlaced in (False, True):
            path = f"png_{name}_{depth}{'_interlaced' if interlaced else ''}.png"
            write_png(path, values, depth, colour_type, interlaced, palette)
            if depth <= 8:  # another decoder agrees that these are what they are meant to be
                seen = Image.open(path)
                seen = seen.convert("L" if expected.ndim == 2 and name != "gray_alpha" else "LA" if name == "gray_alpha" else "RGBA" if name == "rgb_alpha" else "RGB")
                seen = np.asarray(seen)
                seen = seen[:, :, 0] if name == "gray_alpha" else seen[:, :, :3] if seen.ndim == 3 else seen
                assert np.array_equal(seen, expected), path
for height, width in ((1, 1), (1, 5), (5, 1), (3, 2), (8, 8)):
    values = rng.integers(0, 256, (height, width, 3))
    write_png(f"png_small_{height}x{width}.png", values, 8, 2, True)
    Image.fromarray(values.astype(np.uint8)).save(f"png_small_{height}x{width}_as_read.png")
    assert np.array_equal(np.asarray(Image.open(f"png_small_{height}x{width}.png")), values)
