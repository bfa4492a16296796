"""What earlier downloads left in the Hub's cache. Other programs share it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path


def repositories() -> list[tuple[Path, int]]:
    """Folder and size in bytes of every repository in the cache, largest first."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        found = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return sorted(((repo.repo_path, repo.size_on_disk) for repo in found), key=lambda item: -item[1])


def remove(downloads: Sequence[tuple[Path, int]]) -> None:
    """Free what `repositories` found."""
    for path, _ in downloads:
        shutil.rmtree(path)
