"""Every error that quantkit raises on purpose, in one tree.

QuantkitError                   exit code 1
├── InputError              2   what was given cannot be used
│   ├── RecipeError             a recipe (all its faults at once, with file and line)
│   ├── SourceError             a checkpoint: missing, truncated, inconsistent, unreachable
│   ├── UnsupportedError        a sound input that quantkit does not handle (names what it does handle)
│   └── WeightError             a tensor's values: NaN, infinity, wrong shape
├── ResourceError           2   too little disk or memory, or the workspace is in use
├── CheckFailed             3   an artefact did not pass its gates; nothing was published
└── UnresolvedError         4   something could not be measured or resolved (no engine, no network, too little text)

A message says what went wrong, where, the values met, and the remedy.
"""


class QuantkitError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(QuantkitError):
    exit_code = 2


class RecipeError(InputError):
    pass


class SourceError(InputError):
    pass


class UnsupportedError(InputError):
    pass


class WeightError(InputError):
    pass


class ResourceError(QuantkitError):
    exit_code = 2


class CheckFailed(QuantkitError):
    exit_code = 3


class UnresolvedError(QuantkitError):
    exit_code = 4
