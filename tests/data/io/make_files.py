#!/usr/bin/env python3
"""Makes the small files that tests/unit/io_*_test.cpp read: PyTorch checkpoints of both layouts, deflate streams, zip archives, and float TIFFs in all variants.

Made with Python 3.11, torch 1.13.0, numpy 1.24, libtiff 6.0 (libtiff.so.6 called directly, so that the TIFFs come from another
implementation). Values are exact: the tests compare bit for bit. No randomness, but the older checkpoint layout names storages by
memory addresses, so its bytes differ from run to run. Run in this folder; it overwrites
    torch_zip.pt torch_legacy.pt torch_nested.pt torch_object.pt torch_expected.safetensors
    deflate_streams.safetensors wheel.whl zip64.zip tiff_variants.safetensors
"""
import collections
import ctypes
import json
import os
import struct
import tempfile
import zipfile
import zlib

import numpy as np
import torch

TYPES = {np.dtype("float32"): "F32", np.dtype("float64"): "F64", np.dtype("float16"): "F16", np.dtype("int64"): "I64",
         np.dtype("int32"): "I32", np.dtype("int16"): "I16", np.dtype("int8"): "I8", np.dtype("uint8"): "U8", np.dtype("bool"): "BOOL"}


def write_safetensors(path, arrays, metadata):
    header, data = {"__metadata__": metadata}, b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": TYPES[array.dtype], "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def checkpoints():
    base = torch.arange(24, dtype=torch.float32)
    weight = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(4, 5, 3, 2).permute(3, 2, 0, 1)  # transposed, as converted networks are
    state = collections.OrderedDict()
    state["conv.weight"] = weight
    state["conv.bias"] = torch.tensor([0.5, -1.5], dtype=torch.float32)
    state["half"] = torch.tensor([[1.0, -2.5], [65504.0, 6e-8]], dtype=torch.float16)
    state["double"] = torch.tensor([1.0 / 3.0], dtype=torch.float64)
    state["bn.num_batches_tracked"] = torch.tensor(7, dtype=torch.int64)
    state["view.a"] = base[4:10]            # two views of one storage
    state["view.b"] = base.reshape(4, 6)[:, 1::2]
    state["expanded"] = torch.tensor([3.0, 4.0]).reshape(2, 1).expand(2, 3)
    state["empty"] = torch.zeros(0, 3)
    state["bytes"] = torch.arange(5, dtype=torch.uint8)
    state["flags"] = torch.tensor([True, False, True])
    state["short"] = torch.tensor([-3, 300], dtype=torch.int16)
    state["int"] = torch.tensor([-70000], dtype=torch.int32)
    state["char"] = torch.tensor([-128, 127], dtype=torch.int8)
    state._metadata = {"": {"version": 1}}
    torch.save(state, "torch_zip.pt")
    torch.save(state, "torch_legacy.pt", _use_new_zipfile_serialization=False)
    parameter = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t())
    nested = {"epoch": 3, "loss": 0.25, "arch": "tiny", "huge": 2 ** 100, "shape": torch.Size([1, 2]), "device": torch.device("cpu"),
              "state_dict": {"module.fc.weight": parameter, "module.fc.bias": torch.tensor([9.0])},
              "optimizer": {"state": {0: {"momentum": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}}
    torch.save(nested, "torch_nested.pt", pickle_protocol=4)
    torch.save({"weight": torch.ones(1), "when": __import__("datetime").date(2020, 1, 2)}, "torch_object.pt")
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    expected["fc.weight"] = parameter.detach().numpy()
    expected["fc.bias"] = np.array([9.0], np.float32)
    write_safetensors("torch_expected.safetensors", expected, {"made_by": "make_files.py, torch " + torch.__version__})


def skewed():
    """2^k times the byte k, k = 0 .. 13, in an order that spreads them: Huffman codes of up to 13 bits."""
    values = np.repeat(np.arange(14, dtype=np.uint8), 2 ** np.arange(14))
    return values[(np.arange(values.size) * 7919) % values.size]  # 7919 is prime and no divisor of 16383


def deflate_streams():
    def pack(data, level, strategy=zlib.Z_DEFAULT_STRATEGY, wbits=-15):
        stream = zlib.compressobj(level, zlib.DEFLATED, wbits, 9, strategy)
        return np.frombuffer(stream.compress(data) + stream.flush(), np.uint8)

    text = b"".join(b"patch %d of %d; " % (i, i * i) for i in range(300))
    run = b"a" * 1000 + b"ab" * 500 + b"xyz" * 300
    plain = {"text": text, "run": run, "skewed": skewed().tobytes(), "nothing": b""}
    arrays = {"plain." + name: np.frombuffer(data, np.uint8) for name, data in plain.items()}
    for name, data in plain.items():
        arrays["dynamic." + name] = pack(data, 9)
        arrays["zlib." + name] = pack(data, 6, wbits=15)
    for name in ("text", "run", "nothing"):
        arrays["fixed." + name] = pack(plain[name], 9, zlib.Z_FIXED)
        arrays["stored." + name] = pack(plain[name], 0)
    arrays["huffman.skewed"] = pack(plain["skewed"], 9, zlib.Z_HUFFMAN_ONLY)
    write_safetensors("deflate_streams.safetensors", arrays, {"made_by": "make_files.py, zlib " + zlib.ZLIB_RUNTIME_VERSION})


def archives():
    def info(name):
        return zipfile.ZipInfo(name, (2020, 1, 2, 3, 4, 6))

    with zipfile.ZipFile("wheel.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(info("tiny/__init__.py"), "version = 1\n" * 20, zipfile.ZIP_DEFLATED)
        with open("torch_legacy.pt", "rb") as checkpoint:
            wheel.writestr(info("tiny/models/tiny-01234567.pth"), checkpoint.read(), zipfile.ZIP_DEFLATED)
        wheel.writestr(info("tiny-1.0.dist-info/METADATA"), "Name: tiny\n", zipfile.ZIP_STORED)
    with zipfile.ZipFile("zip64.zip", "w") as archive:  # a zip64 field without need, and a comment
        with archive.open(info("large.txt"), "w", force_zip64=True) as file:
            file.write(b"large in name only\n")
        archive.writestr(info("folder/"), b"")
        archive.writestr(info("folder/small.txt"), b"small\n")
        archive.comment = b"PK\x05\x06 is not the end record"


LIB = ctypes.CDLL("libtiff.so.6")
LIB.TIFFOpen.restype = ctypes.c_void_p
LIB.TIFFOpen.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
LIB.TIFFClose.argtypes = [ctypes.c_void_p]
LIB.TIFFWriteEncodedStrip.argtypes = LIB.TIFFWriteEncodedTile.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_ssize_t]
LIB.TIFFWriteEncodedStrip.restype = LIB.TIFFWriteEncodedTile.restype = ctypes.c_ssize_t
LIB.TIFFReadEncodedStrip.argtypes = LIB.TIFFReadEncodedTile.argtypes = LIB.TIFFWriteEncodedStrip.argtypes
LIB.TIFFReadEncodedStrip.restype = LIB.TIFFReadEncodedTile.restype = ctypes.c_ssize_t
LIB.TIFFSetWarningHandler.argtypes = [ctypes.c_void_p]
LIB.TIFFSetWarningHandler.restype = ctypes.c_void_p
LIB.TIFFSetWarningHandler(None)


def tiff(image, order, tiles, planar, compression, predictor, rows=3):
    height, width, channels = image.shape
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.tif").encode()
        file = LIB.TIFFOpen(path, {"little": b"wl", "big": b"wb"}[order])
        fields = [(256, width), (257, height), (258, 32), (259, compression), (262, 2 if channels == 3 else 1), (277, channels), (284, planar), (339, 3)]
        if compression != 1:
            fields.append((317, predictor))
        fields += [(322, 16), (323, 16)] if tiles else [(278, rows)]
        for tag, value in fields:
            assert LIB.TIFFSetField(ctypes.c_void_p(file), ctypes.c_uint32(tag), ctypes.c_uint32(value)) == 1
        planes = [image] if planar == 1 else [image[:, :, c:c + 1] for c in range(channels)]
        parts = []
        for plane in planes:
            tops, lefts = (range(0, height, 16), range(0, width, 16)) if tiles else (range(0, height, rows), [0])
            for top in tops:
                for left in lefts:
                    part = plane[top:top + (16 if tiles else rows), left:left + (16 if tiles else width)]
                    if tiles:
                        whole = np.zeros((16, 16, plane.shape[2]), np.float32)
                        whole[:part.shape[0], :part.shape[1]] = part
                        part = whole
                    # libtiff 6 swaps bytes before the floating-point predictor in big-endian files, which its own reader rightly does not undo.
                    stored = part.byteswap() if order == "big" and predictor == 3 else part
                    raw = ctypes.create_string_buffer(np.ascontiguousarray(stored).tobytes(), part.nbytes)
                    write = LIB.TIFFWriteEncodedTile if tiles else LIB.TIFFWriteEncodedStrip
                    assert write(file, len(parts), raw, part.nbytes) == part.nbytes
                    parts.append(np.ascontiguousarray(part).tobytes())
        LIB.TIFFClose(file)
        file = LIB.TIFFOpen(path, b"r")
        for index, part in enumerate(parts):
            raw = ctypes.create_string_buffer(len(part))
            read = LIB.TIFFReadEncodedTile if tiles else LIB.TIFFReadEncodedStrip
            assert read(file, index, raw, len(part)) == len(part) and raw.raw == part, (order, tiles, planar, compression, predictor)
        LIB.TIFFClose(file)
        with open(path, "rb") as written:
            return np.frombuffer(written.read(), np.uint8)


def tiffs():
    # 7 x 5 x 3 with every kind of float: what is not a number must survive with its payload.
    image = (np.arange(7 * 5 * 3, dtype=np.float32).reshape(7, 5, 3) - 40) * np.float32(0.37)
    flat = image.reshape(-1).view(np.uint32)
    flat[:8] = [0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000, 0x7FC12345, 0xFFC54321, 0x3F800000]
    # 20 x 18: more than one tile in both directions, and enough LZW codes to change their width.
    wide = (np.add.outer(np.arange(20) ** 2, np.arange(18) * 3) % 101).astype(np.float32).reshape(20, 18, 1) * np.float32(0.01)
    arrays = {"expected.small": image.view(np.int32), "expected.wide": wide.view(np.int32)}
    packed = [(5, 1), (5, 2), (5, 3), (8, 1), (8, 2), (8, 3), (32946, 2)]
    for order in ("little", "big"):
        for planar in (1, 2):
            for compression, predictor in [(1, 1)] + packed:
                arrays[f"small.{order}.strips.planar{planar}.compression{compression}.predictor{predictor}"] = tiff(image, order, False, planar, compression, predictor)
        for planar, compression, predictor in [(1, 5, 3), (2, 8, 3), (1, 8, 2), (2, 5, 2)]:
            arrays[f"small.{order}.tiles.planar{planar}.compression{compression}.predictor{predictor}"] = tiff(image, order, True, planar, compression, predictor)
        arrays[f"wide.{order}.tiles.planar1.compression8.predictor1"] = tiff(wide, order, True, 1, 8, 1)
        arrays[f"wide.{order}.strips.planar1.compression5.predictor1"] = tiff(wide, order, False, 1, 5, 1, rows=20)
    write_safetensors("tiff_variants.safetensors", arrays, {"made_by": "make_files.py, libtiff 6"})


if __name__ == "__main__":
    checkpoints()
    deflate_streams()
    archives()
    tiffs()
