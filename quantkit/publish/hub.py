"""Publish to a repository of the Hugging Face Hub: one commit with everything, or one pull request.

Large files go first and bind nothing; the commit then adds what changed and removes what an earlier publish left, at once.
A reader of the branch sees the one version or the other. Files that the Hub holds are not sent again, and where nothing
changed there is no commit, so that a publish which was cut off is repeated until it ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.destinations import HubPublish
from quantkit.errors import InputError, UnresolvedError
from quantkit.publish import folder, hub_faults
from quantkit.values import Progress
from quantkit.version import __version__

How = Literal["lfs", "regular"]

MANIFEST = "manifest.json"
_REGULAR_BYTES = 10_000_000
_SAMPLE = 512
_LFS = (
    ".bin", ".gguf", ".gz", ".model", ".npy", ".npz", ".onnx", ".onnx_data", ".pt", ".safetensors", ".spm", ".zip", ".zst",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Version:
    """What a revision holds: its commit, and of each file the sha256 (64 digits, LFS) or git's blob id (40)."""

    commit: str
    blobs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Content:
    """A file to publish; `info` is huggingface_hub's, its sha256 known, so that no file is read twice to be hashed."""

    path: Path
    sha256: str
    info: Any


def obstacle(destination: HubPublish) -> str | None:
    """What would keep `publish` from it, as far as it can be seen without the network; None if nothing."""
    from huggingface_hub import constants, errors, get_token
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    where = f"hf://{destination.hub}"
    try:
        validate_repo_id(destination.hub)
    except errors.HFValidationError:
        return f"{where}: a Hub repository is named org/name, with no -- or .. and no dot or dash at either end"
    if constants.HF_HUB_OFFLINE:
        return f"{where}: HF_HUB_OFFLINE is set; unset it to publish there"
    stored = Path(constants.HF_TOKEN_PATH)
    if os.environ.get("HF_OIDC_RESOURCE") or (stored.is_file() and stored.stat().st_size > 0):
        return None  # asking for the token itself could reach the network from here
    return f"{where}: {hub_faults.NO_TOKEN}" if get_token() is None else None


def plan(files: Mapping[str, Path], destination: HubPublish) -> list[tuple[str, int, How]]:
    """(name, bytes, how) of every file that `publish` would bring there, without the network.

    How it is stored is the Hub's own decision, foretold here by its rules: a repository's .gitattributes may differ.
    """
    del destination
    return [(name, path.stat().st_size, _how(path)) for name, path in sorted(files.items())]


def publish(files: Mapping[str, Path], destination: HubPublish, *, message: str, progress: Progress) -> str:
    """Make the branch hold `files` (name -> path, SHA256SUMS among them), or propose it; the address of what says so.

    message: a title, and after its first line a description. The repository and the branch are made where they are not
    there; of one that is, nothing but files changes: those given, and those removed that an earlier publish listed and
    this one lacks. Raises InputError when the files are not those of SHA256SUMS, or for what the user must mend (token,
    rights, terms, name); UnresolvedError when the Hub stays out of reach. Until the commit, the branch is untouched.
    """
    from huggingface_hub import HfApi, constants

    where = f"hf://{destination.hub}@{destination.branch}"
    if (missing := obstacle(destination)) is not None:
        raise UnresolvedError(missing) if constants.HF_HUB_OFFLINE else InputError(missing)
    contents = _contents(files)
    api = HfApi(token=True, library_name="quantkit", library_version=__version__)
    with _quiet():
        return hub_faults.patiently(lambda: _attempt(api, contents, destination, message, progress), where)


def _how(path: Path) -> How:
    with path.open("rb") as file:
        sample = file.read(_SAMPLE)
    large = path.stat().st_size > _REGULAR_BYTES or path.suffix in _LFS
    return "lfs" if large or b"\0" in sample else "regular"


def _contents(files: Mapping[str, Path]) -> dict[str, _Content]:
    """The files as they are now, held against SHA256SUMS."""
    from huggingface_hub.lfs import UploadInfo

    sums = folder.sums(files)
    found = {}
    for name, path in sorted(files.items()):
        info = UploadInfo.from_path(str(path))
        digest = info.sha256.hex()
        if sums.get(name, digest) != digest:
            raise InputError(
                f"{name} changed since it was built: sha256 {digest}, {folder.SUMS} says {sums[name]}. Build it again"
            )
        found[name] = _Content(path, digest, info)
    return found


def _attempt(api: Any, contents: Mapping[str, _Content], destination: HubPublish, message: str, progress: Progress) -> str:
    """The whole way once, from what the branch holds now."""
    title, _, description = message.partition("\n")
    if destination.pull_request and destination.branch != "main":
        title = f"{title} (for {destination.branch})"  # the Hub's list does not say what a pull request is for
    held, revision = _reach(api, destination), destination.branch
    proposal = _proposal(api, destination.hub, title) if destination.pull_request else None
    if proposal is not None:
        revision = proposal.git_reference
        held = _look(api, destination.hub, revision)
    changed = {name: each for name, each in contents.items() if not _same(each, held.blobs.get(name))}
    stale = _stale(api, destination.hub, held, contents)
    if not changed and not stale:
        return proposal.url if proposal is not None else f"{api.endpoint}/{destination.hub}/commit/{held.commit}"
    proposing = destination.pull_request and proposal is None
    operations = _upload(api, changed, destination.hub, revision, proposing, progress)
    made = api.create_commit(
        destination.hub,
        [*operations, *_deletions(stale)],
        commit_message=title,
        commit_description=description.strip(),
        revision=revision,
        create_pr=proposing,
        parent_commit=held.commit,
    )
    _verify(_look(api, destination.hub, made.pr_revision or (revision if proposal else made.oid)), contents, stale, destination)
    address = made.pr_url or (proposal.url if proposal is not None else made.commit_url)
    return str(address)


def _reach(api: Any, destination: HubPublish) -> _Version:
    """What the branch holds; it and its repository are made where they are not there."""
    from huggingface_hub import errors

    try:
        return _look(api, destination.hub, destination.branch)
    except errors.GatedRepoError:
        raise
    except errors.RepositoryNotFoundError:
        api.create_repo(destination.hub, private=destination.private, exist_ok=True)
    except errors.RevisionNotFoundError:
        pass
    if destination.branch != "main":
        api.create_branch(destination.hub, branch=destination.branch, exist_ok=True)
    return _look(api, destination.hub, destination.branch)


def _look(api: Any, hub: str, revision: str) -> _Version:
    info = api.model_info(hub, revision=revision, files_metadata=True)
    files = info.siblings or []
    return _Version(info.sha, {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in files})


def _proposal(api: Any, hub: str, title: str) -> Any:
    """The open pull request that an earlier publish of the same account made under this title, or None."""
    account = api.whoami()["name"]
    found = api.get_repo_discussions(hub, author=account, discussion_type="pull_request", discussion_status="open")
    return next((each for each in found if each.title == title and each.author == account), None)


def _same(content: _Content, blob: str | None) -> bool:
    if blob is None or len(blob) == len(content.sha256):
        return blob == content.sha256
    data = content.path.read_bytes()
    return blob == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _stale(api: Any, hub: str, held: _Version, contents: Mapping[str, _Content]) -> list[str]:
    """Files of the revision that a publish of quantkit's listed, that are still its own, and that this one lacks."""
    others = held.blobs.keys() - contents.keys() - {".gitattributes"}
    if not others or not {folder.SUMS, MANIFEST} <= held.blobs.keys():
        return []
    with tempfile.TemporaryDirectory() as place:
        paths = [
            Path(api.hf_hub_download(hub, name, revision=held.commit, local_dir=place)) for name in (folder.SUMS, MANIFEST)
        ]
        try:
            listed = folder.listed(paths[0])
            ours = MANIFEST in listed and "quantkit" in json.loads(paths[1].read_bytes())
        except (InputError, ValueError, TypeError):
            return []
    unchanged = {name for name in others if len(held.blobs[name]) != 64 or held.blobs[name] == listed.get(name)}
    return sorted(unchanged & listed.keys()) if ours else []


def _upload(
    api: Any, changed: Mapping[str, _Content], hub: str, revision: str, proposing: bool, progress: Progress
) -> list[Any]:
    """Bring the large ones of the changed files to the Hub, and return the operations that would add all of them."""
    from huggingface_hub import CommitOperationAdd

    what, total, done = f"publish to {hub}", sum(each.info.size for each in changed.values()), 0
    additions = [CommitOperationAdd(name, each.path) for name, each in changed.items()]
    for addition in additions:
        addition.upload_info = changed[addition.path_in_repo].info
    small = [each for each in additions if _how(changed[each.path_in_repo].path) == "regular"]
    progress(what, done, max(total, 1))
    for group in (small, *([each] for each in additions if each not in small)):
        api.preupload_lfs_files(
            hub, group, revision=revision, create_pr=proposing, free_memory=False, gitignore_content=""
        )  # a .gitignore of the branch would keep files out of the commit without a word
        done += sum(each.upload_info.size for each in group)
        progress(what, done, max(total, 1))
    return additions


def _deletions(names: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(name, is_folder=False) for name in names]


def _verify(held: _Version, contents: Mapping[str, _Content], stale: list[str], destination: HubPublish) -> None:
    """The commit holds what it should: the Hub leaves out what a .gitignore of the branch names."""
    lost = [name for name, each in contents.items() if not _same(each, held.blobs.get(name))]
    if wrong := [*lost, *(name for name in stale if name in held.blobs)]:
        raise InputError(
            f"hf://{destination.hub}@{destination.branch}: commit {held.commit} is not what was sent: it differs in "
            f"{', '.join(wrong)}; is one of them named by a .gitignore of the branch? Remove it there, and publish again"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's own bars and warnings apart: progress is the caller's, and a fault is an exception."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disable_progress_bars()
        try:
            yield
        finally:
            if not silent:
                enable_progress_bars()
