# SPDX-License-Identifier: Apache-2.0
"""How much work a model is, and how much of it a batch brings, without waiting for the device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Final, NamedTuple

from torch import nn

from training_exporter.flops import ModelSize

_EXPERT: Final = re.compile(r"(^|\.)experts\.")
_UNUSED: Final = re.compile(r"(^|\.)original_module\.")
"""What PEFT's `modules_to_save` keeps beside the copy that it trains."""

_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_VISITED: Final = ("num_experts_per_tok", "moe_topk", "moe_k")
_FULL: Final = frozenset({"full_attention", "global_attention"})
_WINDOWED: Final = frozenset({"sliding_attention", "local_attention"})


class Positions(NamedTuple):
    """What of a batch is work.

    Attributes:
        all: rows x length.
        real: those that are no padding: an int, or a 0-dim tensor on the batch's device; None when
            the batch does not say.
        length: positions of a row; None when rows were joined into one.
    """

    all: int
    real: Any | None
    length: int | None


def positions_in(inputs: Any) -> Positions | None:
    """The positions of a batch of token ids; None when the inputs are none.

    Without an attention mask nothing tells padding apart, except that a batch whose rows were
    joined (`position_ids` and no mask) has none. Labels would not do: they hide prompts as well.
    """
    ids: Any = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if getattr(ids, "ndim", 0) != 2:
        return None
    mask: Any = inputs.get("attention_mask")
    if getattr(mask, "ndim", None) == 2:
        # Not the sum: in a packed batch the mask may number the rows.
        return Positions(ids.numel(), mask.count_nonzero(), ids.shape[1])
    if mask is None and inputs.get("position_ids") is not None:
        return Positions(ids.numel(), ids.numel(), None)
    return Positions(ids.numel(), None, ids.shape[1])


def size_of(model: nn.Module) -> ModelSize | None:
    """The size of a transformer from `transformers`, perhaps with PEFT's adapters.

    None when its FLOPs do not follow from it: encoder-decoders and models of images or sound (their
    parts see different numbers of positions), shared or recurrent layers, experts of which the
    configuration does not say how many a token visits, weights that are quantised in a way that
    hides their number or split over devices (tensor parallelism, FSDP1), and anything without a
    configuration. It walks over all parameters: call it once, before the model is wrapped.

    Gradients are taken to flow through every weight that is registered after the first trainable
    one, which is the order of execution in all models that this is for.
    """
    config = _text_config(model)
    if config is None:
        return None
    attention = _attention(config)
    share = _visited_share(config)
    if attention is None or share is None:
        return None
    weights = backpropagated = trainable = experts = 0.0
    flowing = False
    for name, parameter, counts in _matrices(model):
        if counts:
            is_expert = _EXPERT.search(name) is not None
            if parameter.ndim > 2 and not is_expert:
                return None  # a stack of experts, or a convolution, by another name
            elements = _elements(parameter) * (share if is_expert else 1.0)
            experts += elements * is_expert
            weights += elements
            backpropagated += elements * flowing
            trainable += elements * parameter.requires_grad
        flowing = flowing or parameter.requires_grad
    if not weights or bool(experts) != (share < 1.0):
        return None  # experts that are not where they are expected would count in full
    return ModelSize(weights, backpropagated, trainable, *attention)


def _text_config(model: nn.Module) -> Any | None:
    config: Any = getattr(model, "config", None)
    if getattr(model, "main_input_name", None) != "input_ids" or not hasattr(config, "model_type"):
        return None
    parts = ("vision_config", "audio_config", "num_hidden_groups", "zero_expert_num")
    if config.is_encoder_decoder or any(getattr(config, part, None) for part in parts):
        return None
    if (getattr(model, "_tp_size", None) or 1) > 1 or not _countable(config):
        return None
    return config


def _countable(config: Any) -> bool:
    """Whether the parameters tell how many weights there are."""
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return True
    known = quantized if isinstance(quantized, Mapping) else vars(quantized)
    method = known.get("quant_method")
    return str(getattr(method, "value", method)).startswith("bitsandbytes")


def _attention(config: Any) -> tuple[float, float, int] | None:
    """Width of the layers that see the whole row, of those with a window, and the window."""
    layers = getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int)):
        return None
    width = heads * _head_size(config, hidden // heads)
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * layers
    full = sum(kind in _FULL for kind in kinds)
    windowed = sum(kind in _WINDOWED for kind in kinds)
    if full + windowed != len(kinds) or (windowed and not window):
        return None
    return full * width, windowed * width, int(window or 0)


def _head_size(config: Any, default: int) -> float:
    """Mean of the sizes of a head's query and of its value."""
    if getattr(config, "qk_rope_head_dim", None):  # latent attention, where the two differ
        query = config.qk_rope_head_dim + config.qk_nope_head_dim
        return float(query + config.v_head_dim) / 2
    return float(getattr(config, "head_dim", None) or default)


def _visited_share(config: Any) -> float | None:
    """The part of the experts that a token visits: 1 without experts, None when it is unknown."""
    experts = _first(config, _EXPERTS)
    if experts in (None, 0, 1):
        return 1.0
    visited = _first(config, _VISITED)
    if not isinstance(visited, int) or not isinstance(experts, int) or not 0 < visited < experts:
        return None
    return visited / experts


def _first(config: Any, names: tuple[str, ...]) -> Any | None:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Parameters in the order of registration, and whether they are matrices that tokens are
    multiplied with. A table that is the output layer too comes again, at the end, as that."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if _UNUSED.search(name) is None:
            # Biases of experts are stacked into matrices too, which nothing is multiplied with.
            matrix = parameter.ndim > 1 and not name.endswith("bias")
            yield name, parameter, matrix and id(parameter) not in tables
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    tied: Any = getattr(output, "weight", None)
    if id(tied) in tables:
        yield "output", tied, True


def _elements(parameter: Any) -> int:
    """Weights in a parameter: bitsandbytes packs two into one, DeepSpeed takes them away."""
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    if packed is not None:
        return prod(packed)
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())
