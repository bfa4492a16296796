import hashlib

import numpy as np
import pytest

from quantkit.codecs import slabs
from quantkit.codecs.gguf import codecs


@pytest.mark.parametrize("name", codecs())
@pytest.mark.parametrize("weighted", [False, True])
def test_bytes_do_not_depend_on_threads_or_slabs(name, weighted, monkeypatch):
    codec = codecs()[name]
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((37, 512)).astype(np.float32)
    importance = rng.chisquare(1, 512).astype(np.float32) if weighted else None
    digests = set()
    for slab in (1, 512 * 5, 1 << 19):
        monkeypatch.setattr(slabs, "SLAB", slab)
        for threads in (1, 2, 3):
            digests.add(hashlib.sha256(slabs.encode_rows(codec, rows, importance, threads).tobytes()).hexdigest())
    digests.add(hashlib.sha256(codec.encode(rows, importance).tobytes()).hexdigest())
    assert len(digests) == 1


def test_errors_come_through_threads():
    with pytest.raises(ValueError, match="Q4_K: a width of 4100"):
        slabs.encode_rows(codecs()["Q4_K"], np.zeros((999, 4100), np.float32), threads=2)
