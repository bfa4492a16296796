"""From final hidden states to logits, by the model's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit import modules, skeleton
from quantkit.arch import AUTO_CLASS
from quantkit.values import F32, Weights

if TYPE_CHECKING:
    import torch

_RESIDENT_BYTES = 1 << 30  # a head up to this size is read once; a larger one anew for every call


def project(config: Mapping[str, Any], weights: Weights, *, threads: int) -> Callable[[F32], F32]:
    """The map from final hidden states (t, width) to logits (t, vocabulary), float32, by the model's own head code.

    So a tied embedding, biases, soft-capping and scaled logits are honoured. Errors as `walk` raises them.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

    weights = modules.view(config, weights)
    model = skeleton.build(config, AUTO_CLASS[skeleton.kind(config)])
    model.load_state_dict(skeleton.buffers(model, weights), strict=False, assign=True)
    base = model.base_model
    layers = skeleton.stacks(base)[-1]
    decoder = next(module for module in model.modules() if any(child is layers for child in module.children()))
    output, names = model.get_output_embeddings(), {id(module): name for name, module in model.named_modules()}
    matrix = skeleton.tied(model, f"{names[id(output)]}.weight", weights)
    bias = skeleton.read(weights, f"{names[id(output)]}.bias", tuple(output.bias.shape)) if output.bias is not None else None
    slabs = skeleton.slabs(weights, matrix, tuple(output.weight.shape))
    resident = list(slabs()) if output.weight.numel() * 4 <= _RESIDENT_BYTES else None

    def multiply(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.empty((*hidden.shape[:-1], output.weight.shape[0]))
        for start, rows in slabs() if resident is None else resident:
            stop = start + len(rows)
            part = torch.from_numpy(bias[start:stop]) if bias is not None else None
            logits[..., start:stop] = torch.nn.functional.linear(hidden, torch.from_numpy(rows), part)
            del rows  # before the next are read
        return logits

    output.forward = multiply

    token = torch.zeros((1, 1), dtype=torch.int64)
    inputs: dict[str, Any] = {"input_ids": token}
    if base.config.is_encoder_decoder:  # whose encoder is not asked
        inputs = {"encoder_outputs": BaseModelOutput(torch.zeros((1, 1, 1))), "decoder_input_ids": token}

    def logits(hidden: F32) -> F32:
        found_states = torch.from_numpy(np.ascontiguousarray(hidden))[None]
        states = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=found_states)
        states.router_logits = None  # which models with experts ask for
        decoder.forward = lambda *_, **__: states
        with skeleton.torch_threads(threads), torch.no_grad():
            found: F32 = model(**inputs).logits[0].numpy()
        return found

    return logits
