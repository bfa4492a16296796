"""quantkit: one recipe in, verified quantised artefacts and their hardware report out, on a CPU."""

from quantkit.version import __version__

__all__ = ["__version__"]
