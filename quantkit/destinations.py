"""Where a recipe's artefacts go when every gate has passed: one class each, told apart by the key that names the place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from quantkit.frozen import Frozen


class FolderPublish(Frozen):
    """A folder that is switched to the new version at once."""

    folder: str = Field(min_length=1)


class HubPublish(Frozen):
    """A repository of the Hugging Face Hub: one commit with everything, or a pull request."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="org/name; made where it is not there")
    private: bool = Field(True, description="of a repository that is made now; one that is there stays as it is")
    branch: str = Field("main", min_length=1, description="made from main where it is not there")
    pull_request: bool = Field(False, description="propose the files instead of committing them")


class OciPublish(Frozen):
    """An OCI registry: every GGUF of the recipe as an artefact that Docker Model Runner, or a tool of ModelPack's, pulls."""

    oci: str = Field(min_length=1, description="registry[:port]/name:tag")
    layout: Literal["docker", "modelpack"] = "docker"
    plain_http: bool = Field(False, description="for a registry on this machine or network that has no TLS")


_CLASSES = {"folder": FolderPublish, "hub": HubPublish, "oci": OciPublish}


def _named(given: Any) -> str:
    """The class that a mapping of a recipe is of, by the first of its keys that names one; a folder without any."""
    if not isinstance(given, dict):
        return type(given).__name__
    return next((found.__name__ for key, found in _CLASSES.items() if key in given), FolderPublish.__name__)


Destination = Annotated[
    Annotated[FolderPublish, Tag("FolderPublish")]
    | Annotated[HubPublish, Tag("HubPublish")]
    | Annotated[OciPublish, Tag("OciPublish")],
    Discriminator(_named),
]
