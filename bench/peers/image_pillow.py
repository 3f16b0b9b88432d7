"""What Pillow and scipy take for the operations of bench_image, by processor time on one thread.

    python3 bench/peers/image_pillow.py
"""
import io
import time

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIDE = 900


def frame():
    """The frame of bench_image: waves with a little noise."""
    y, x, c = np.mgrid[0:SIDE, 0:SIDE, 0:3]
    wave = 128 + 80 * np.sin(0.02 * (x + 40 * c)) * np.cos(0.013 * y)
    return (wave + np.random.default_rng(1).integers(0, 8, wave.shape)).astype(np.uint8)


def best_ms(call, repeats=15):
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


image = Image.fromarray(frame())
file = io.BytesIO()
image.save(file, "png")
print(f"decode_png          {best_ms(lambda: Image.open(io.BytesIO(file.getvalue())).load()):8.2f} ms")
print(f"encode_png          {best_ms(lambda: image.save(io.BytesIO(), 'png'), 3):8.2f} ms")
for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS"):
    print(f"resize 256 {name:8s} {best_ms(lambda: image.resize((256, 256), getattr(Image, name))):8.2f} ms")
mean, deviation = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


def preprocess():
    small = image.resize((256, 256), Image.BILINEAR).crop((16, 16, 240, 240))
    return (np.asarray(small, np.float32) - mean) / deviation


print(f"preprocess BILINEAR {best_ms(preprocess):8.2f} ms")
for side in (224, 900):
    scores = np.random.default_rng(2).random((side, side), np.float32)
    print(f"gaussian {side}        {best_ms(lambda: gaussian_filter(scores, 4)):8.2f} ms")
