"""ggml's own C library, from the llama_cpp package's folder: the quantiser that ours is measured against."""

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest


class Ggml:
    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        self._quantize = library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        self._validate = library.ggml_validate_row_data
        self._validate.restype = ctypes.c_bool
        self._validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]

    def encode(self, codec, rows, importance):
        if codec.name == "F32":
            return rows.view(np.uint8)
        out = np.zeros((len(rows), codec.row_bytes(rows.shape[1])), np.uint8)
        pointer = None if importance is None else importance.ctypes.data
        self._quantize(codec.ggml_type, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, pointer)
        return out

    def accepts(self, codec, data):
        return self._validate(codec.ggml_type, data.ctypes.data, data.nbytes)


@pytest.fixture(scope="session")
def ggml():
    spec = importlib.util.find_spec("llama_cpp")
    path = Path(spec.origin).parent / "lib" / "libggml-base.so" if spec and spec.origin else None
    if path is None or not path.exists():
        pytest.skip("llama-cpp-python with its lib/libggml-base.so is not installed")
    return Ggml(path)
