"""llama.cpp, through the C interface that llama-cpp-python binds."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit import footprint
from quantkit.errors import InputError, ResourceError, SourceError, UnresolvedError
from quantkit.values import F32, Progress, Runner

_log: deque[str] = deque(maxlen=100)  # llama.cpp has one log per process; its end explains a failure


def available() -> str | None:
    """The version of llama-cpp-python if it is installed and its library loads."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError):
        return None
    return str(llama_cpp.__version__)


def open_runner(path: Path, *, context: int, threads: int, exact: bool = False) -> Runner:
    """Loads a GGUF file on the CPU, memory-mapped, for texts of up to `context` tokens.

    exact: keys and values in float32 and plain attention, for comparing a conversion with its original; without it the
    engine's defaults, float16 among them, which are what users run.
    Raises UnresolvedError without the engine, SourceError with llama.cpp's own reason for a file that it refuses, and
    ResourceError where the context does not fit in memory.
    """
    loaded = load(path, context=context, micro_batch=min(context, footprint.UBATCH), threads=threads, exact=exact)
    return _Runner(loaded, context, name())


def name() -> str:
    """The engine with its version, as every figure carries it."""
    return f"llama.cpp (llama-cpp-python {available()})"


@dataclass(slots=True)
class Loaded:
    """A model and its context in llama.cpp's library."""

    library: Any
    model: Any
    state: Any

    @property
    def vocabulary(self) -> int:
        return int(self.library.llama_vocab_n_tokens(self.library.llama_model_get_vocab(self.model)))

    def forget(self) -> None:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.state), True)

    def run(self, forward: Any, tokens: Sequence[int], start: int = 0, *, every: bool = True) -> None:
        """llama_decode or llama_encode of `tokens` at positions from `start`; outputs after each of them, or the last only."""
        count = len(tokens)
        batch = self.library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, start + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = every or index == count - 1
            status = forward(self.state, batch)
        finally:
            self.library.llama_batch_free(batch)
        if status != 0:
            raise ResourceError(f"llama.cpp's forward of {count} tokens ended with status {status}: {reason()}")

    def logits(self, count: int) -> F32:
        """Of the last forward's `count` outputs. A copy: the engine's own buffer changes with the next forward."""
        pointer = self.library.llama_get_logits(self.state)
        return np.ctypeslib.as_array(pointer, (count, self.vocabulary)).astype(np.float32, copy=True)

    def greedy(self) -> int:
        """The likeliest token after the last one."""
        pointer = self.library.llama_get_logits_ith(self.state, -1)
        return int(np.ctypeslib.as_array(pointer, (self.vocabulary,)).argmax())

    def ends(self, token: int) -> bool:
        """Whether generation ends before it."""
        return bool(self.library.llama_vocab_is_eog(self.library.llama_model_get_vocab(self.model), token))

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        if self.model is not None:
            self.library.llama_free(self.state)
            self.library.llama_model_free(self.model)
            self.model = self.state = None


def load(path: Path, *, context: int, micro_batch: int, threads: int, exact: bool, **further: Any) -> Loaded:
    """A file with a context of its own. further: of llama_context_params. Errors as of `open_runner`."""
    library = load_library()
    _log.clear()
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    model = library.llama_model_load_from_file(str(path).encode(), _model_settings(library))
    if not model:
        raise SourceError(f"llama.cpp does not load {path}: {reason()}")
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = context
    settings.n_ubatch = micro_batch
    settings.n_threads = settings.n_threads_batch = threads
    if exact:
        settings.type_k = settings.type_v = library.GGML_TYPE_F32
        settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for key, value in further.items():
        setattr(settings, key, value)
    state = library.llama_init_from_model(model, settings)
    if not state:
        library.llama_model_free(model)
        raise ResourceError(f"llama.cpp makes no context of {context} tokens for {path}: {reason()}")
    return Loaded(library, model, state)


@dataclass(slots=True)
class _Runner:
    _loaded: Loaded
    _context: int
    engine: str

    @property
    def vocabulary(self) -> int:
        return self._loaded.vocabulary

    def logits(self, tokens: Sequence[int]) -> F32:
        self._loaded.forget()
        self._decode(tokens, 0, every=True)
        return self._loaded.logits(len(tokens))

    def generate(self, tokens: Sequence[int], limit: int) -> list[int]:
        self._loaded.forget()
        self._decode(tokens, 0, every=False)
        found: list[int] = []
        while len(found) < limit and len(tokens) + len(found) < self._context:
            token = self._loaded.greedy()
            if self._loaded.ends(token):
                break
            found.append(token)
            if len(found) < limit:
                self._decode([token], len(tokens) + len(found) - 1, every=False)
        return found

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        self._loaded.close()

    def _decode(self, tokens: Sequence[int], start: int, *, every: bool) -> None:
        """One forward of `tokens` at positions from `start`; logits after each of them, or after the last only."""
        count = len(tokens)
        if not 0 < count <= self._context - start:
            raise InputError(f"{count} tokens from position {start} do not fit a context of {self._context}; shorten the text")
        self._loaded.run(self._loaded.library.llama_decode, tokens, start, every=every)


def sample(path: Path, *, count: int, length: int, seed: int, threads: int, progress: Progress) -> NDArray[np.int32]:
    """`count` texts of `length` tokens, (count, length), that the model says of itself: from its first token on, each one drawn
    with the probability that the model gives it. The same on every run of one machine. Errors as of `open_runner`.
    """
    dice = np.random.default_rng(seed)
    loaded = load(path, context=length, micro_batch=min(length, footprint.UBATCH), threads=threads, exact=False)
    vocabulary = loaded.library.llama_model_get_vocab(loaded.model)
    special = (loaded.library.llama_vocab_bos(vocabulary), loaded.library.llama_vocab_eos(vocabulary))
    found = np.empty((count, length), np.int32)
    try:
        for number, row in enumerate(found):
            loaded.forget()
            row[0] = next((token for token in special if token >= 0), 0)
            for at in range(1, length):
                loaded.run(loaded.library.llama_decode, [int(row[at - 1])], at - 1, every=False)
                logits = loaded.logits(1)[0].astype(np.float64)
                weights = np.exp(logits - logits.max()).cumsum()
                row[at] = np.searchsorted(weights, dice.random() * weights[-1])
            progress("calibration text", number + 1, count)
    finally:
        loaded.close()
    return found


def open_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file alone, its weights left unread.

    Raises UnresolvedError without the engine, SourceError with llama.cpp's own reason for a file that it refuses.
    """
    library = load_library()
    _log.clear()
    settings = _model_settings(library)
    settings.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise SourceError(f"llama.cpp does not load the vocabulary of {path}: {reason()}")
    return Vocabulary(library, model, library.llama_model_get_vocab(model), name())


@dataclass(slots=True)
class Vocabulary:
    """Tokens of a text and text of tokens, as llama.cpp has them."""

    _library: Any
    _model: Any
    _vocabulary: Any
    engine: str

    @property
    def size(self) -> int:
        return int(self._library.llama_vocab_n_tokens(self._vocabulary))

    def tokenise(self, text: str, *, ends: bool = False) -> list[int]:
        """Special tokens in the text are parsed; with `ends`, what begins and ends a text is added."""
        data = text.encode()
        room = len(data) + 8  # no token is made of less than a byte
        found = (self._library.llama_token * room)()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), found, room, ends, True)
        if count < 0:
            raise SourceError(f"llama.cpp makes {-count} tokens of {len(data)} bytes")
        return list(found[:count])

    def text(self, tokens: Sequence[int]) -> str:
        """The tokens' texts, one after the other, special ones too; bytes that are no UTF-8 become U+FFFD."""
        buffer = ctypes.create_string_buffer(1024)
        data = b""
        for token in tokens:
            size = self._library.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, True)
            if size < 0:  # the room it wants
                buffer = ctypes.create_string_buffer(-size)
                size = self._library.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, True)
            data += buffer.raw[:size]
        return data.decode("utf-8", "replace")

    def close(self) -> None:
        """Frees the vocabulary; a second call does nothing."""
        if self._model is not None:
            self._library.llama_model_free(self._model)
            self._model = self._vocabulary = None


@cache
def load_library() -> Any:
    """llama-cpp-python's bindings, its log kept for error messages. Raises UnresolvedError without them."""
    try:
        import llama_cpp.llama_cpp as library
    except (ImportError, OSError, RuntimeError) as error:
        raise UnresolvedError(
            f"llama.cpp cannot be used ({error}): install it with `pip install 'quantkit-pipeline[llama]'`; "
            "it needs a C++ compiler"
        ) from error
    library.llama_log_set(_keep(library), ctypes.c_void_p(0))
    library.llama_backend_init()
    return library


@cache
def _keep(library: Any) -> Any:
    """The log callback; cached, because llama.cpp holds only a pointer to it."""

    def keep(_level: int, text: bytes, _data: object) -> None:
        _log.append(text.decode("utf-8", "replace"))

    return library.llama_log_callback(keep)


def reason() -> str:
    """What llama.cpp said last of a failure."""
    lines = [line.strip() for line in "".join(_log).splitlines()]
    faults = [line for line in lines if any(word in line.lower() for word in ("error", "fail", "invalid", "unknown"))]
    return "; ".join(dict.fromkeys(faults or lines[-3:])) or "it gave no reason"


def _model_settings(library: Any) -> Any:
    """No GPU; and no matrices in another order in a build with AMX, whose products end the process where gcc compiled them
    (ggml-org/llama.cpp#26954: the tiles' shapes are optimised away)."""
    settings = library.llama_model_default_params()
    settings.n_gpu_layers = 0
    if b"AMX_INT8 = 1" in library.llama_print_system_info():
        settings.use_extra_bufts = False
    return settings
