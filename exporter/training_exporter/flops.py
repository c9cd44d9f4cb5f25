# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic a training step is, from the size of the model and of the batch.

These are the model's FLOPs: what the mathematics needs. What is computed twice to save memory
(gradient checkpointing) is not counted, so divided by the peak of the GPU they give the model FLOPs
utilisation (MFU), not that of the hardware (HFU). Padding is counted, for the device computes it;
how much of it there is, the padding share tells.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """What of a decoder or encoder determines its FLOPs.

    Weights are elements of matrices that each token is multiplied with: no embedding table (a table
    that is the output layer too counts as that), no vector, and of a mixture of experts only those
    experts that a token visits.

    Attributes:
        weights: all of them.
        backpropagated: those through which gradients flow back to their inputs.
        trainable: those that get gradients themselves.
        attention: width of the attention, heads x head size, summed over the layers in which a
            position sees the whole row.
        windowed: the same of the layers in which it sees a window.
        window: positions that such a window has.
    """

    weights: float
    backpropagated: float
    trainable: float
    attention: float = 0.0
    windowed: float = 0.0
    window: int = 0


def training_flops(size: ModelSize, positions: int, length: int | None) -> float:
    """FLOPs of the forward and backward pass over a batch.

    A weight costs a token 2 FLOPs (multiply, add) in the forward pass, 2 in the backward pass for
    the gradient of its input, and 2 for its own. So a model that is trained as a whole needs
    `6 N` a token; frozen weights below trainable ones need 4, those that nothing trainable comes
    before need 2, and LoRA `4 N_frozen + 6 N_adapters`, less what lies before the first adapter.

    Attention adds `12 L H Q T` a token (layers, heads, head size, positions it may see): 4 of them
    in the forward pass and 8 in the backward pass. The half that a causal mask saves is not taken
    off. Both after PaLM, appendix B (Chowdhery et al., 2022, arXiv:2204.02311).

    Args:
        positions: tokens in the batch with their padding, rows x length.
        length: positions of a row. None when rows were joined and their lengths are not known;
            then attention is left out, and the result is a lower bound.
    """
    dense = 2.0 * (size.weights + size.backpropagated + size.trainable)
    if length is None or not size.weights:
        return dense * positions
    seen = size.attention * length + size.windowed * min(length, size.window)
    backward = 8.0 * size.backpropagated / size.weights  # as much of it as gradients flow through
    return (dense + (4.0 + backward) * seen) * positions


def utilisation(flops: float | None, peak: float | None) -> float | None:
    """MFU: the part of the peak FLOP/s that was used; None when one of the two is unknown."""
    return flops / peak if flops is not None and peak else None
