"""transformers' model of a config.json without its weights, and their way into it: what the walk and the head are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantkit import arch
from quantkit.errors import UnsupportedError, WeightError
from quantkit.values import F32, Weights

if TYPE_CHECKING:
    import torch

SLAB_BYTES = 64 << 20  # of an embedding or head, read at once
_NOT_THE_MODEL = frozenset({"model_type", "quantization_config", "torch_dtype", "dtype"})
_NAMES_CODE = frozenset({"auto_map", "attn_implementation", "experts_implementation", "custom_pipelines", "trust_remote_code"})
"""Of config.json: what would have transformers fetch and run code of a repository's."""


def kind(config: Mapping[str, Any]) -> arch.Kind:
    """What kind of model a config.json is of; where no architecture file says it, whether it has an encoder."""
    known = arch.get(config)
    if known is not None:
        return known.kind
    return "encoder-decoder" if config.get("is_encoder_decoder") else "decoder"


def harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without what names code: models here are transformers' own, whatever a checkpoint brings with it."""
    return {key: value for key, value in config.items() if key not in _NAMES_CODE and not key.startswith("_")}


def build(config: Mapping[str, Any], auto_class: str) -> Any:
    """The model by a class of transformers ("AutoModel") on the meta device, buffers real: rotary tables are computed, not
    read. A pooler is left out: GGUF has none, and what a sentence's embedding is made of are the hidden states.

    Raises UnsupportedError for a model_type that the class does not know.
    """
    import torch
    import transformers
    from accelerate import init_empty_weights

    name = config.get("model_type")
    settings = {key: value for key, value in harmless(config).items() if key not in _NOT_THE_MODEL}
    try:
        with init_empty_weights(include_buffers=False):
            full = transformers.AutoConfig.for_model(name, **settings)
            model = getattr(transformers, auto_class).from_config(full, dtype=torch.float32)
            if model._can_set_experts_implementation():
                model.set_experts_implementation("eager")  # expert by expert, so that each one's input is seen
    except ValueError as error:
        raise UnsupportedError(f"transformers' {auto_class} has no model of model_type {name!r}: {error}") from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.eval()


def stacks(base: Any) -> list[Any]:
    """The lists of layers that a token's hidden state passes: one, or the encoder's and the decoder's."""
    parts = [base.get_encoder(), base.get_decoder()] if base.config.is_encoder_decoder else [base]
    return [_layers(part) for part in parts]


def _layers(part: Any) -> Any:
    import torch

    count = part.config.num_hidden_layers
    for module in part.modules():  # outermost first
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedError(f"{type(part).__name__} holds no list of {count} layers to walk through")


def layer_of(name: str) -> str:
    """The layer that a tensor of one belongs to: "model.layers.3." of model.layers.3.mlp.up_proj.weight."""
    found = re.match(r".*?\.\d+\.", f".{name}")
    return found[0][1:] if found else ""


def tables(base: Any) -> list[Any]:
    """The token embeddings: one module, or one for each of encoder and decoder and the one whose weight they share."""
    owners = [base, base.get_encoder(), base.get_decoder()] if base.config.is_encoder_decoder else [base]
    return list({id(table): table for table in (owner.get_input_embeddings() for owner in owners)}.values())


def tensors(module: Any, names: Iterable[str], weights: Weights, prefix: str) -> dict[str, torch.Tensor]:
    """The module's tensors of these names, read, or computed where the model's own code does that and the checkpoint lacks
    them (Marian's positions)."""
    import torch

    state, found = module.state_dict(), dict[str, torch.Tensor]()
    for name in names:
        compute = computes(module, name)
        if compute is not None and not holds(weights, prefix + name):
            found[name] = compute()
        else:
            found[name] = torch.from_numpy(read(weights, prefix + name, tuple(state[name].shape)))
    return found


def computes(module: Any, name: str) -> Callable[[], torch.Tensor] | None:
    """What computes the tensor `name` of a module in transformers' code, where something does."""
    compute: Callable[[], torch.Tensor] | None = getattr(module.get_submodule(name.rpartition(".")[0]), "create_weight", None)
    return compute


def buffers(model: Any, weights: Weights) -> dict[str, torch.Tensor]:
    """Those of a model's saved buffers that the checkpoint holds: the bias of BART's and Marian's logits."""
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return tensors(model, [name for name in model.state_dict() if name not in learned and holds(weights, name)], weights, "")


def read(weights: Weights, name: str, shape: tuple[int, ...]) -> F32:
    return weights.read(stored(weights, name, shape))


def slabs(weights: Weights, name: str, shape: tuple[int, ...]) -> Callable[[], Iterator[tuple[int, F32]]]:
    """(first row, rows) of a matrix, a few at a time."""
    found, step = stored(weights, name, shape), max(1, SLAB_BYTES // (4 * shape[1]))
    starts = range(0, shape[0], step)
    return lambda: ((start, weights.read(found, start, min(start + step, shape[0]))) for start in starts)


def stored(weights: Weights, name: str, shape: tuple[int, ...]) -> str:
    """The checkpoint's name of the model's tensor `name`: the same, or without the base model's prefix (gpt2)."""
    for candidate in _spellings(name):
        info = weights.infos.get(candidate)
        if info is not None and tuple(info.shape) != shape:
            raise WeightError(f"{candidate} is {tuple(info.shape)} in the checkpoint, its config.json makes it {shape}")
        if info is not None:
            return candidate
    raise WeightError(f"the checkpoint lacks {name} {shape}, which the model of its config.json needs")


def tied(model: Any, name: str, weights: Weights) -> str:
    """The name under which the checkpoint holds a matrix of the model that may be tied to others: its own, or one of theirs."""
    ties: Mapping[str, str] = model.all_tied_weights_keys
    source = ties.get(name, name)
    return next((each for each in (name, source, *(one for one in ties if ties[one] == source)) if holds(weights, each)), name)


def holds(weights: Weights, name: str) -> bool:
    """Whether the checkpoint has the model's tensor `name`, as `stored` finds it."""
    return any(candidate in weights.infos for candidate in _spellings(name))


def _spellings(name: str) -> tuple[str, str]:
    return name, name.partition(".")[2]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
