"""A signature over everything that is published, by OpenSSF's model-signing with a key of the user's.

The signature is a Sigstore bundle of an in-toto statement: every file's name and sha256. Anyone verifies it with that library,
or with `quantkit verify --key`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from quantkit.errors import InputError

NAME = "model.sig"
_REMEDY = "pip install model-signing pyOpenSSL"


def obstacle(key: Path) -> str | None:
    """What would keep `sign` from this private key; None if nothing."""
    if find_spec("model_signing") is None:
        return f"signing wants the library model-signing, which is not installed: {_REMEDY}"
    if not key.is_file():
        return (
            f"{key}: there is no such private key; make one with: openssl ecparam -genkey -name prime256v1 -noout -out key.pem"
        )
    return None


def sign(files: Mapping[str, Path], key: Path, signature: Path) -> None:
    """Sign `files` (name -> path) with a private key (PEM, elliptic curve). Raises InputError for another key."""
    import model_signing

    with tempfile.TemporaryDirectory(dir=signature.parent, suffix=".partial") as place:
        for name, path in files.items():
            staged = Path(place) / name
            staged.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, staged)
            except OSError:  # of another device, or none that links
                shutil.copyfile(path, staged)
        try:
            model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(place, signature)
        except (ValueError, TypeError) as error:
            raise InputError(f"{key} signs nothing: {error}; give a key of an elliptic curve, without a password") from error


def verify(folder: Path, key: Path) -> str | None:
    """What is wrong with the signature of a folder by this public key; None where it holds. Raises InputError."""
    if find_spec("model_signing") is None:
        raise InputError(f"verifying a signature wants the library model-signing: {_REMEDY}")
    if not key.is_file():
        raise InputError(f"{key}: there is no such public key")
    import model_signing
    from cryptography.exceptions import InvalidSignature

    signature = folder / NAME
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    try:
        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
        verifier.set_hashing_config(hashing).verify(folder, signature)
    except (ValueError, KeyError, TypeError, InvalidSignature) as error:
        return str(error) or type(error).__name__
    return None
