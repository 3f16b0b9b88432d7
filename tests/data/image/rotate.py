"""Writes rotate.txt: FNV-1a hashes of pictures that Pillow has turned (nearest, same size).

    python3 rotate.py > rotate.txt

A line is height, width, channels, degrees, hash of the bytes row by row. Pixels of the picture before: see `picture`; image_rotate_test.cpp
makes the same. Made with Pillow 9.4.0; to be met to the bit.
"""
import numpy
from PIL import Image


def picture(height, width, channels):
    y, x, c = numpy.ogrid[:height, :width, :channels]
    return ((y * 37 + x * 11 + c * 101 + (x * y) % 251) % 255 + 1).astype(numpy.uint8)  # never black


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


SIZES = [(1, 1), (1, 9), (2, 2), (8, 8), (33, 33), (48, 48), (31, 20), (20, 31), (64, 17)]
ANGLES = [0, 360, -360, 90, -90, 180, -180, 270, 450, 5.625, 39.375, 30, 45, 60, -45, 135, 0.001, -0.5, 12.3, 89.999, 179.75, -133.33, 301.0625, 1234.5]
for height, width in SIZES:
    for channels in (1, 3):
        pixels = picture(height, width, channels)
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        for angle in ANGLES:
            print(height, width, channels, angle, fnv(image.rotate(angle, Image.NEAREST, expand=False).tobytes()))
