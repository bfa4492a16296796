"""Kernels give the same bytes in the process that compiles them and in one that loads them from the cache."""

import os
import subprocess
import sys

ENCODE = """
import hashlib
import numpy as np
from quantkit.codecs.gguf import codecs
rows = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
importance = np.abs(rows[0]) + np.float32(0.01)
for kind in ("Q4_K", "Q4_1"):
    for weights in (None, importance):
        print(kind, hashlib.sha256(codecs()[kind].encode(rows, weights).tobytes()).hexdigest())
"""


def test_compiling_and_loading_give_the_same_bytes(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ENCODE]
    compiled, loaded = (subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in "12")
    assert compiled.stdout == loaded.stdout
