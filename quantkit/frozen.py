"""The base of the documents that people write for quantkit: their values do not change, and no key is passed over."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A pydantic model that refuses unknown keys and assignment."""

    model_config = ConfigDict(extra="forbid", frozen=True)
