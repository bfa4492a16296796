"""One forward of a layer over many micro-batches that stops before every matrix until all have come so far.

So a matrix's weights can be replaced knowing its input on the whole batch, and what follows sees the replaced weights: GPTQ's
"true sequential" order for one forward. Every micro-batch is a thread that waits at a matrix; no more than `threads` run.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantkit import memory
from quantkit.values import F32, Inputs

if TYPE_CHECKING:
    import torch

Replace = Callable[[Mapping[str, F32], Inputs], Mapping[str, F32]]
"""replace(weights, inputs): matrices of one layer, float32 (out, in), that meet the same input, and that input, float32
(tokens, in), of every micro-batch in order. Returns what takes their place; those it does not name stay. An expert of a fused
tensor is "weight[3]", and gets the tokens that reach it."""

Meet = Callable[[str, "torch.Tensor"], None]
"""meet(weight, input): called before a matrix is used."""


@dataclass(slots=True)
class _Batch:
    """A micro-batch under way: the matrix that it waits at with its input, or what it came to."""

    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    at: str | None = None
    input: Any = None
    output: Any = None
    error: BaseException | None = None
    done: bool = False
    met: list[weakref.ref[Any]] = field(default_factory=list)  # inputs so far: while it waits, those alive are bfloat16


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Inputs that wait, as `values.Inputs`: one that waits as bfloat16 is made float32 when it is asked for."""

    tensors: Sequence[torch.Tensor]

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int, /) -> F32:
        x = self.tensors[index]
        found: F32 = x.reshape(-1, x.shape[-1]).float().numpy()
        return found

    def __iter__(self) -> Iterator[F32]:
        return (self[index] for index in range(len(self)))


def _convert(met: Sequence[weakref.ref[Any]], dtype: torch.dtype) -> None:
    """What float32 tensors hold becomes bfloat16, or float32 again; after the first time that loses nothing."""
    for reference in met:
        if (x := reference()) is not None:
            x.data = x.data.to(dtype)


def sharing(forward: Callable[[Meet], Any]) -> dict[str, tuple[str, ...]]:
    """By a forward of one micro-batch: matrix -> all that meet the very same input, in the order that they are met."""
    met: list[tuple[str, Any]] = []
    forward(lambda name, x: met.append((name, x)))
    groups: dict[int, list[str]] = {}
    for name, x in met:
        groups.setdefault(id(x), []).append(name)
    return {name: tuple(dict.fromkeys(group)) for group in groups.values() for name in group}


def run(
    forwards: Sequence[Callable[[Meet], Any]],
    groups: Mapping[str, tuple[str, ...]],
    replace: Replace,
    get: Callable[[str], F32],
    put: Callable[[str, F32], None],
    *,
    order: Callable[[str], tuple[int, ...]],
    narrow: bool,
    threads: int,
) -> list[Any]:
    """The outputs of `forwards`, one for each micro-batch, with every matrix replaced before it is used.

    groups: of `sharing`; a matrix that is not in it stands alone. get, put: a matrix's weights (out, in) in the model.
    order: where a matrix stands in the layer; of those waited at, the first goes first. narrow: inputs wait as bfloat16.
    """
    import torch

    gate, arrived, solved = threading.Semaphore(threads), threading.Semaphore(0), set[str]()
    batches = [_Batch() for _ in forwards]

    def meet(batch: _Batch, name: str, x: torch.Tensor) -> None:
        if name in solved:
            return
        if narrow:
            batch.met.append(weakref.ref(x))
            _convert(batch.met, torch.bfloat16)
        batch.at, batch.input = name, x
        gate.release()
        arrived.release()
        batch.go.acquire()
        gate.acquire()
        if batch.error is not None:
            raise batch.error
        if narrow:
            _convert(batch.met, torch.float32)

    def live(batch: _Batch, forward: Callable[[Meet], Any]) -> None:
        gate.acquire()
        try:
            with torch.no_grad():
                batch.output = forward(lambda name, x: meet(batch, name, x))
        except BaseException as error:  # noqa: BLE001  # raised again by the thread that runs them all
            batch.error = error
        finally:
            batch.done = True
            gate.release()
            arrived.release()

    workers = [threading.Thread(target=live, args=pair, daemon=True) for pair in zip(batches, forwards, strict=True)]
    for worker in workers:
        worker.start()
    try:
        running = len(batches)
        while running:
            for _ in range(running):
                arrived.acquire()
            if failed := next((batch.error for batch in batches if batch.error is not None), None):
                raise failed
            waiting = [batch for batch in batches if not batch.done]
            if not waiting:
                break
            name = min((batch.at for batch in waiting if batch.at is not None), key=order)
            here = [batch for batch in waiting if batch.at == name]
            together = groups.get(name, (name,))
            memory.release()  # what every thread has freed on its way here
            inputs = _Waiting([batch.input for batch in here])
            for replaced, weights in replace({each: get(each) for each in together}, inputs).items():
                put(replaced, weights)
            del inputs
            solved.update(together)
            for batch in here:
                batch.at = batch.input = None
                batch.go.release()
            running = len(here)
    except BaseException as error:
        for batch in batches:
            batch.error = batch.error or error
            batch.go.release()
        raise
    finally:
        for worker in workers:
            worker.join()
    return [batch.output for batch in batches]
