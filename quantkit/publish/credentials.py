"""Who the user is at a registry: from the environment, or from what `docker login` and its like have stored."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from quantkit.errors import InputError

USER, PASSWORD = "QUANTKIT_OCI_USER", "QUANTKIT_OCI_PASSWORD"


def basic(registry: str, environment: Mapping[str, str], home: Path) -> str | None:
    """The credentials of `registry` (host[:port]) as RFC 7617 has them in base64, or None where there are none.

    QUANTKIT_OCI_USER with QUANTKIT_OCI_PASSWORD comes first, then `auths` of config.json in $DOCKER_CONFIG or ~/.docker (a
    store that `credsStore` or `credHelpers` names is not asked). Raises InputError for half a pair and a broken file.
    """
    user, password = environment.get(USER), environment.get(PASSWORD)
    if user and password:
        return _encoded(user, password)
    if user or password:
        raise InputError(f"{USER} and {PASSWORD} go together, and {PASSWORD if user else USER} is not set: set both or neither")
    path = Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        what = f"{path} cannot be read ({type(error).__name__})"
        raise InputError(f"{what}: log in again, or set {USER} and {PASSWORD}") from None
    auths = stored.get("auths") if isinstance(stored, dict) else None
    entries = auths if isinstance(auths, dict) else {}
    for place, entry in entries.items():
        if _host(place) != registry.lower() or not isinstance(entry, dict):
            continue
        if auth := entry.get("auth"):
            return str(auth)
        if entry.get("username") and entry.get("password"):
            return _encoded(entry["username"], entry["password"])
    return None


def _host(place: str) -> str:
    """Keys of `auths` are hosts, or URLs that older programs wrote."""
    return urlsplit(place if "//" in place else f"//{place}").netloc.lower()


def _encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()
