"""How every kernel is compiled: one decorator, so that the rules of arithmetic are the same in all of them.

Sums may be reassociated (that is what lets LLVM vectorise them) and a multiply may fuse with an add; nothing is assumed
about NaN or infinity, whose absence `finite.first_nonfinite_row` checks beforehand. The order of a sum follows the
vector width, so bytes are reproducible per CPU class; never do they depend on threads, for every row stands alone.

What decides the speed, measured: indices that LLVM can see are not negative (loops from 0 over sub-arrays; `x[start +
i]` turns loads into gathers); a constant trip count for long loop bodies, and an array's size for short ones, which
would be unrolled before they are vectorised; divisions and halves in loops over blocks instead of between two of a
block's loops.

What a kernel calls is inlined by force. Else the first process, which compiles, may link the callee that was optimised
alone, later ones, which load the cache, the copy optimised again inside its caller: two orders of summation, and the
first run's file differs from the second's.

numba's cache is keyed by a kernel's own file: after editing a function that kernels of other files call, empty
__pycache__.
"""

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first call, cached on disk; releases the GIL; division by zero gives infinity as in C."""
    compiled: Callable[..., Any] = numba.njit(
        nogil=True, cache=True, forceinline=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"}
    )(function)
    return compiled
