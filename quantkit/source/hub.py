"""The Hugging Face Hub: the one module of this stage that reaches the network, and only through huggingface_hub.

The token is huggingface_hub's affair (HF_TOKEN or its login); no message here repeats what a server or library said
beyond the kind of fault, so that none can carry one. With HF_HUB_OFFLINE=1 the cache alone is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError, UnresolvedError
from quantkit.progress import silent
from quantkit.source import card, documents, folder, pooling, vocabulary
from quantkit.values import F32, Progress, Snapshot, TensorInfo

_SMALL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "README.md", folder.INDEX,
    folder.PICKLED[1], *card.LICENCE_FILES, *pooling.FILES,
)  # fmt: skip


class RemoteTensors:
    """Weights whose files are still on the Hub; reading them raises SourceError."""

    def __init__(self, infos: Mapping[str, TensorInfo], names: tuple[str, ...], cache: Path | None) -> None:
        self.infos = infos
        self.names = names
        self.cache = cache

    def read(self, name: str, start: int = 0, stop: int | None = None) -> F32:
        del start, stop
        raise SourceError(f"cannot read {name}: the weights have not been fetched from the Hub")

    def close(self) -> None:
        pass


def describe(rest: str, *, cache: Path | None = None) -> Snapshot:
    """The checkpoint of "org/name@revision" (default main), pinned to its commit; small files come into the cache,
    weights stay where they are. Raises SourceError, UnsupportedError, WeightError, UnresolvedError."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    repo, _, revision = rest.partition("@")
    where = f"hf://{repo}@{revision or 'main'}"
    with _explained(where):
        # The cache keeps config.json under its commit, on line and off: that is how a branch is resolved.
        place = Path(hf_hub_download(repo, "config.json", revision=revision or "main", cache_dir=cache)).parent
        commit = place.name
        if HF_HUB_OFFLINE:
            return _pinned(folder.describe(place, where), repo, commit)
        listing = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in listing}
        wanted = _SMALL if "tokenizer.json" in sizes else (*_SMALL, *vocabulary.FILES)
        for name in sizes:
            if any(fnmatch(name, pattern) for pattern in wanted):
                hf_hub_download(repo, name, revision=commit, cache_dir=cache)
    weights = {name: sizes.get(name, 0) for name in _weight_files(place, sizes)}
    missing = {name: size for name, size in weights.items() if not (place / name).is_file()}
    if not missing:
        return _pinned(folder.describe(place, where), repo, commit)
    if absent := [name for name in weights if name not in sizes]:
        raise SourceError(f"{where}: the index names shards that the repository lacks: {', '.join(absent)}")
    with _explained(where):
        infos = _headers(repo, commit, list(weights))
    config = documents.read_json(place / "config.json")
    declared = folder.reconstruct(config) if infos is None else folder.select(config, infos).infos
    tensors = RemoteTensors(declared, tuple(missing), cache)
    found = _pinned(folder.describe(place, where, tensors), repo, commit)
    return replace(found, download_bytes=sum(missing.values()), reconstructed=infos is None)


def _pinned(found: Snapshot, repo: str, commit: str) -> Snapshot:
    return replace(found, kind="hub", repo=repo, commit=commit, name=found.name or repo.rpartition("/")[2])


def _weight_files(place: Path, sizes: Mapping[str, int]) -> list[str]:
    """The weight files to use, in transformers' order of preference; none for a repository without weights."""
    for single, index in ((folder.SINGLE, folder.INDEX), folder.PICKLED):
        if single in sizes:
            return [single]
        if listing := documents.read_json(place / index):
            return sorted(set(folder.shards_of(listing, index).values()))
    return []


def _headers(repo: str, commit: str, names: list[str]) -> dict[str, TensorInfo] | None:
    """What the weight files declare, by range requests; None for pickled ones, which declare nothing apart."""
    from huggingface_hub import HfApi

    if not all(name.endswith(".safetensors") for name in names):
        return None
    found: dict[str, TensorInfo] = {}
    for name in names:
        for tensor, entry in HfApi().parse_safetensors_file_metadata(repo, name, revision=commit).tensors.items():
            begin, end = entry.data_offsets
            found[tensor] = TensorInfo(tensor, tuple(entry.shape), entry.dtype, end - begin)
    return found


def fetch(snapshot: Snapshot, progress: Progress) -> Snapshot:
    """The snapshot with its weights in the cache; a download that was interrupted goes on where it stopped."""
    from huggingface_hub import hf_hub_download

    tensors, repo, commit = snapshot.weights, snapshot.repo, snapshot.commit
    if not isinstance(tensors, RemoteTensors) or repo is None or commit is None:
        raise UnresolvedError(
            f"{snapshot.uri}: the weights are not in the cache and HF_HUB_OFFLINE is set; unset it to download them"
        )
    with _explained(snapshot.uri):
        for name in tensors.names:
            path = hf_hub_download(repo, name, revision=commit, cache_dir=tensors.cache, tqdm_class=_bar(name, progress))
    return _pinned(folder.describe(Path(path).parent, snapshot.uri), repo, commit)


def standing(repo: str, commit: str) -> dict[str, Any]:
    """What the Hub says of a repository beside its files: gated (how, or None), downloads, likes; nothing offline."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return {}
    with _explained(f"hf://{repo}@{commit}"):
        info = HfApi().model_info(repo, revision=commit)
    return {"gated": str(info.gated) if info.gated else None, "downloads": info.downloads, "likes": info.likes}


def digests(repo: str, commit: str, *, cache: Path | None = None) -> dict[str, str]:
    """The sha256 of a commit's weight files, as the Hub knows them: none is downloaded. Errors as of `describe`."""
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(f"hf://{repo}@{commit}"):
        place = Path(hf_hub_download(repo, "config.json", revision=commit, cache_dir=cache)).parent
        listing = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings or []
    known = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in listing}
    found = {Path(name).name: known[name] for name in _weight_files(place, dict.fromkeys(known, 0))}
    return {name: digest for name, digest in found.items() if digest is not None}


def dataset_files(repo: str, revision: str, patterns: list[str], cache: Path | None = None) -> tuple[Path, list[Path]]:
    """A dataset's folder in the cache, named by its commit, and the matching files in it. Errors as of `describe`."""
    from huggingface_hub import snapshot_download

    settings: dict[str, Any] = {"repo_type": "dataset", "cache_dir": cache, "tqdm_class": _bar("", silent)}
    with _explained(f"hf-dataset://{repo}@{revision}"):
        place = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, **settings))
    inside = {path.relative_to(place).as_posix(): path for path in place.rglob("*")}
    return place, [path for name, path in sorted(inside.items()) if any(fnmatch(name, form) for form in patterns)]


def _bar(what: str, progress: Progress) -> Any:
    """huggingface_hub reports through a tqdm class; this one draws nothing and passes the position on."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            progress(f"download {what}", self.n, self.total or self.n)

    return Bar


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns huggingface_hub's errors into ours, each with its remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UnresolvedError(
            f"{where} is gated: accept its terms on its page, then give a token that may read it in HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{where}: no such repository, or a private one; check the name, or give a token in HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{where}: the repository has no such branch, tag or commit") from error
    except errors.RemoteEntryNotFoundError as error:
        raise SourceError(f"{where} is not a checkpoint in transformers' layout: it has no config.json") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{where}: a Hub repository is named org/name") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UnresolvedError(
            f"{where} is not in the cache and the Hub is out of reach (HF_HUB_OFFLINE, or no network); "
            "fetch it once on line, or give a folder"
        ) from error
    except (errors.HTTPError, errors.FileMetadataError) as error:  # type: ignore[attr-defined]  # httpx's or httpx2's
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise UnresolvedError(f"{where}: the Hub did not answer ({type(error).__name__} {status or ''}); try again") from error
