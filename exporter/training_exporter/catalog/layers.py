# SPDX-License-Identifier: Apache-2.0
"""Metrics of the layers of the model."""

from __future__ import annotations

from training_exporter.catalog.metric import Metric

# Layers
_LAYERS = "Layers"
LAYER_GRAD_NORM = Metric(
    "training_layer_grad_norm",
    "gauge",
    "L2 norm of the gradient of a layer at the last pass, before clipping and without the loss "
    "scale.",
    ("layer",),
    section=_LAYERS,
)
LAYER_PARAM_NORM = Metric(
    "training_layer_param_norm",
    "gauge",
    "L2 norm of the trained weights of a layer, before the step.",
    ("layer",),
    section=_LAYERS,
)
LAYER_UPDATE_RATIO = Metric(
    "training_layer_update_ratio",
    "gauge",
    "Norm of what a step changed in the weights of a layer over the norm of these weights, from a "
    "sample of them. Of a layer that is sharded: in the part that this process has.",
    ("layer",),
    section=_LAYERS,
)
LAYER_GRAD_TO_PARAM_RATIO = Metric(
    "training_layer_grad_to_param_ratio",
    "gauge",
    "Norm of the gradient of a layer over the norm of its weights. Of a layer that is sharded: in "
    "the part that this process has.",
    ("layer",),
    section=_LAYERS,
)
LAYER_NON_FINITE = Metric(
    "training_layer_non_finite_total",
    "counter",
    "Passes that found a NaN or an infinity in a gradient of the layer.",
    ("layer",),
    section=_LAYERS,
)
LAYER_GRAD_SHARD_SQUARES = Metric(
    "training_layer_grad_shard_squares",
    "gauge",
    "Sum of the squares in the part of a layer's gradient that this process has. The root of its "
    "sum over the ranks is the gradient norm of the layer.",
    ("layer",),
    section=_LAYERS,
)
LAYER_PARAM_SHARD_SQUARES = Metric(
    "training_layer_param_shard_squares",
    "gauge",
    "The same of the trained weights of a layer.",
    ("layer",),
    section=_LAYERS,
)
WORST_LAYER_GRAD_NORM = Metric(
    "training_worst_layer_grad_norm",
    "gauge",
    "Gradient norm of the layer in which it is largest; absent when a layer is sharded.",
    ("layer",),
    section=_LAYERS,
)
FIRST_NON_FINITE_LAYER_STEP = Metric(
    "training_first_non_finite_layer_step",
    "gauge",
    "Step at which gradients last stopped being finite, and the layer where the backward pass met "
    "that first; absent when they never did, or did so at a step without a pass.",
    ("layer",),
    section=_LAYERS,
)
LAYER_STEP = Metric(
    "training_layer_step",
    "gauge",
    "Step of the last pass over the layers.",
    section=_LAYERS,
)
LAYERS_FOLDED = Metric(
    "training_layers_folded",
    "gauge",
    "Layers without a name of their own, which are together in the layer `other`.",
    section=_LAYERS,
)

# Gradient magnitudes
_MAGNITUDES = "Gradient magnitudes"
GRADIENT_MAGNITUDE = Metric(
    "training_gradient_magnitude",
    "histogram",
    "Magnitudes of the finite values in the gradients on this process, before clipping and without "
    "the loss scale, at all passes of `gradient_histogram_interval`.",
    section=_MAGNITUDES,
)
GRADIENT_ZERO_RATIO = Metric(
    "training_gradient_zero_ratio",
    "gauge",
    "Share of the values in the gradients that were 0 at the last pass.",
    section=_MAGNITUDES,
)
GRADIENT_UNDERFLOW_RATIO = Metric(
    "training_gradient_underflow_ratio",
    "gauge",
    "Share of the values, with the loss scale, that were not 0 and that fp16 would round to 0.",
    section=_MAGNITUDES,
)
GRADIENT_SUBNORMAL_RATIO = Metric(
    "training_gradient_subnormal_ratio",
    "gauge",
    "Share of the values, with the loss scale, that fp16 can hold only as subnormal numbers, with "
    "fewer digits.",
    section=_MAGNITUDES,
)
