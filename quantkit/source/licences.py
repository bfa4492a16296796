"""What a licence says of passing a quantised copy on, by the Hub's identifiers. A first look, no advice."""

from __future__ import annotations

from fnmatch import fnmatchcase

_TERMS = (
    (("*-nd-*", "*-nd", "cc-by-nc-nd*"), "no: it allows no derivatives to be passed on, and a quantised model is one"),
    (("cc-by-nc*", "*non-commercial*", "*noncommercial*"), "without commercial use, under the same terms"),
    (("llama*",), "under its own terms: the licence with every copy, a name that begins with Llama, \"Built with Llama\""),
    (("gemma",), "under its own terms: they and their use restrictions go with every copy"),
    (("openrail*", "bigscience-*", "creativeml-*", "bigcode-*", "deepfloyd-*"), "with its use restrictions passed on"),
    (("gpl*", "lgpl*", "agpl*", "cc-by-sa*", "osl*", "eupl*", "mpl*"), "under the same licence"),
    (
        ("apache-2.0", "mit", "bsd*", "isc", "cc-by-4.0", "cc-by-3.0", "cc-by-2.0", "cc0-1.0", "unlicense", "wtfpl", "zlib",
         "bsl-1.0", "ms-pl", "artistic-2.0", "cdla-permissive*", "odc-by", "postgresql", "ncsa"),
        "yes, with the licence's text",
    ),
)  # fmt: skip


def redistribution(licence: str | None) -> str:
    """Whether a quantised copy may be passed on under a licence ("apache-2.0", several joined by ", "), in words."""
    if licence is None:
        return "unknown: the source names no licence; ask its publisher"
    names = [name.strip() for name in licence.split(",")]
    said = [_one(name.lower()) for name in names]
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"{name}: {term}" for name, term in zip(names, said, strict=True))


def _one(name: str) -> str:
    for patterns, term in _TERMS:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return term
    return f"under the terms of {name!r}: read them first"
