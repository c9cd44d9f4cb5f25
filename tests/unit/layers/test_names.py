# SPDX-License-Identifier: Apache-2.0
"""Layer names, for names of parameters as real models have them (transformers 5.24, PEFT 0.21)."""

from __future__ import annotations

import pytest

from training_exporter.catalog import OTHER
from training_exporter.config import LAYER_GROUPINGS
from training_exporter.layers.names import name_layers

LLAMA_LAYER = [
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    *(f"{name}_layernorm.weight" for name in ("input", "post_attention")),
]


def llama(layers: int) -> list[str]:
    return [
        "model.embed_tokens.weight",
        *(f"model.layers.{n}.{name}" for n in range(layers) for name in LLAMA_LAYER),
        "model.norm.weight",
        "lm_head.weight",
    ]


FAMILIES: dict[str, dict[str, tuple[str, str]]] = {
    # parameter: (block, module)
    "Llama": {
        "model.embed_tokens.weight": ("embed_tokens", "embed_tokens"),
        "model.layers.0.self_attn.q_proj.weight": ("L00", "L00.attn.q"),
        "model.layers.9.mlp.gate_proj.weight": ("L09", "L09.mlp.gate"),
        "model.layers.15.input_layernorm.weight": ("L15", "L15.input_layernorm"),
        "model.norm.weight": ("norm", "norm"),
        "lm_head.weight": ("lm_head", "lm_head"),
    },
    "GPT-2": {
        "transformer.wte.weight": ("wte", "wte"),
        "transformer.h.0.attn.c_attn.weight": ("L00", "L00.attn.c_attn"),
        "transformer.h.0.attn.c_attn.bias": ("L00", "L00.attn.c_attn"),
        "transformer.h.0.attn.c_proj.weight": ("L00", "L00.attn.c_proj"),
        "transformer.h.11.mlp.c_fc.weight": ("L11", "L11.mlp.c_fc"),
        "transformer.ln_f.weight": ("ln_f", "ln_f"),
    },
    "BERT": {
        "bert.embeddings.word_embeddings.weight": ("embeddings", "embeddings.word_embeddings"),
        "bert.encoder.layer.0.attention.self.query.weight": ("L0", "L0.attn.query"),
        "bert.encoder.layer.0.attention.output.dense.bias": ("L0", "L0.attn.output.dense"),
        "bert.encoder.layer.1.output.LayerNorm.weight": ("L1", "L1.output.LayerNorm"),
        "bert.pooler.dense.weight": ("pooler", "pooler.dense"),
        "classifier.bias": ("classifier", "classifier"),
    },
    "T5": {
        "shared.weight": ("shared", "shared"),
        "encoder.block.0.layer.0.SelfAttention.q.weight": (
            "encoder.L0", "encoder.L0.layer.0.attn.q",
        ),
        "encoder.block.1.layer.1.DenseReluDense.wi.weight": (
            "encoder.L1", "encoder.L1.layer.1.DenseReluDense.wi",
        ),
        "encoder.final_layer_norm.weight": ("encoder.final_layer_norm", "encoder.final_layer_norm"),
        "decoder.block.0.layer.0.SelfAttention.q.weight": (
            "decoder.L0", "decoder.L0.layer.0.attn.q",
        ),
        "decoder.block.1.layer.1.EncDecAttention.k.weight": (
            "decoder.L1", "decoder.L1.layer.1.EncDecAttention.k",
        ),
        "decoder.final_layer_norm.weight": ("decoder.final_layer_norm", "decoder.final_layer_norm"),
    },
    "ViT": {
        "vit.embeddings.cls_token": ("embeddings", "embeddings.cls_token"),
        "vit.embeddings.patch_embeddings.projection.weight": (
            "embeddings", "embeddings.patch_embeddings.projection",
        ),
        "vit.layers.0.attention.q_proj.weight": ("L0", "L0.attn.q"),
        "vit.layers.1.mlp.fc1.bias": ("L1", "L1.mlp.fc1"),
        "vit.layernorm.weight": ("layernorm", "layernorm"),
        "classifier.weight": ("classifier", "classifier"),
    },
    "CLIP": {
        "logit_scale": ("logit_scale", "logit_scale"),
        "text_model.embeddings.token_embedding.weight": (
            "text_model.embeddings", "text_model.embeddings.token_embedding",
        ),
        "text_model.encoder.layers.0.self_attn.out_proj.weight": (
            "text_model.L0", "text_model.L0.attn.out",
        ),
        "text_model.encoder.layers.1.mlp.fc1.weight": ("text_model.L1", "text_model.L1.mlp.fc1"),
        "vision_model.encoder.layers.0.self_attn.k_proj.bias": (
            "vision_model.L0", "vision_model.L0.attn.k",
        ),
        "vision_model.post_layernorm.weight": (
            "vision_model.post_layernorm", "vision_model.post_layernorm",
        ),
        "visual_projection.weight": ("visual_projection", "visual_projection"),
    },
    "ResNet": {
        "resnet.embedder.embedder.convolution.weight": (
            "embedder", "embedder.embedder.convolution",
        ),
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight": (
            "L0", "L0.layers.0.layer.0.convolution",
        ),
        "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias": (
            "L1", "L1.layers.0.shortcut.normalization",
        ),
        "classifier.1.weight": ("classifier", "classifier.1"),
    },
    "Mixtral": {
        "model.layers.0.mlp.gate.weight": ("L0", "L0.mlp.gate"),
        "model.layers.0.mlp.experts.gate_up_proj": ("L0", "L0.mlp.experts.gate_up"),
        "model.layers.1.mlp.experts.down_proj": ("L1", "L1.mlp.experts.down"),
    },
    "experts one by one": {
        "model.layers.0.mlp.experts.2.up_proj.weight": ("L0", "L0.mlp.experts.02.up"),
        "model.layers.0.mlp.experts.10.up_proj.weight": ("L0", "L0.mlp.experts.10.up"),
    },
    "wav2vec2": {
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight": (
            "feature_extractor.conv_layers.L0", "feature_extractor.conv_layers.L0.conv",
        ),
        "wav2vec2.feature_extractor.conv_layers.1.conv.weight": (
            "feature_extractor.conv_layers.L1", "feature_extractor.conv_layers.L1.conv",
        ),
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original0": (
            "encoder.pos_conv_embed", "encoder.pos_conv_embed.conv",
        ),
        "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
            "encoder.pos_conv_embed", "encoder.pos_conv_embed.conv",
        ),
        "wav2vec2.encoder.layers.0.attention.q_proj.weight": ("encoder.L0", "encoder.L0.attn.q"),
        "lm_head.weight": ("lm_head", "lm_head"),
    },
    "torch.nn.Transformer": {
        "encoder.layers.0.self_attn.in_proj_weight": ("encoder.L0", "encoder.L0.attn.in"),
        "encoder.layers.0.self_attn.in_proj_bias": ("encoder.L0", "encoder.L0.attn.in"),
        "encoder.layers.1.self_attn.out_proj.bias": ("encoder.L1", "encoder.L1.attn.out"),
        "encoder.norm.weight": ("encoder.norm", "encoder.norm"),
        "decoder.layers.0.multihead_attn.in_proj_weight": (
            "decoder.L0", "decoder.L0.multihead_attn.in",
        ),
        "decoder.layers.1.linear1.weight": ("decoder.L1", "decoder.L1.linear1"),
    },
    "torch.nn.Sequential": {
        "0.weight": ("L00", "L00"),
        "0.bias": ("L00", "L00"),
        "2.weight": ("L02", "L02"),
        "11.weight": ("L11", "L11"),
    },
    "a lone Linear": {"weight": ("model", "model"), "bias": ("model", "model")},
    "LoRA": {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": (
            "L0", "L0.attn.q.lora_A",
        ),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight": (
            "L0", "L0.attn.q.lora_B",
        ),
        "base_model.model.model.layers.1.self_attn.v_proj.lora_A.default.weight": (
            "L1", "L1.attn.v.lora_A",
        ),
        "base_model.model.lm_head.modules_to_save.default.weight": (
            "lm_head", "lm_head.modules_to_save",
        ),
    },
    "LoRA on one layer": {
        "base_model.model.model.layers.15.mlp.up_proj.lora_A.default.weight": (
            "L15", "L15.mlp.up.lora_A",
        ),
    },
}  # fmt: skip


def names_of(parameters: list[str], **options: object) -> list[str]:
    named = name_layers(parameters, **options)  # type: ignore[arg-type]
    return [named.layers[place] for place in named.of_parameter]


@pytest.mark.parametrize("family", FAMILIES)
def test_real_models_have_readable_names(family: str) -> None:
    """By block and by module, for each family of models."""
    table = FAMILIES[family]
    by_block = names_of(list(table), grouping="block")
    by_module = names_of(list(table), grouping="module")

    named = dict(zip(table, zip(by_block, by_module, strict=True), strict=True))
    assert named == table


@pytest.mark.parametrize("family", FAMILIES)
def test_by_parameter_each_has_a_name_of_its_own(family: str) -> None:
    """No two tensors are put together when asked not to."""
    names = names_of(list(FAMILIES[family]), grouping="parameter", most=1000)

    assert len(set(names)) == len(FAMILIES[family])


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",  # DDP
        "_orig_mod.{}",  # torch.compile
        "module._orig_mod.{}",
        "_fsdp_wrapped_module.{}",
        "base_model.model.{}",  # PEFT
        "module.base_model.model.{}",
    ],
)
def test_wrappers_do_not_change_names(wrapped: str) -> None:
    """A run that is compiled or distributed keeps the series of the one that is not."""
    plain = llama(12)

    assert name_layers([wrapped.format(name) for name in plain]) == name_layers(plain)


def test_wrappers_within_the_name_do_not_either() -> None:
    """FSDP and activation checkpointing wrap each layer, PEFT each linear map."""
    plain = llama(2)
    wrapped = [
        name.replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
        .replace("q_proj.", "q_proj.base_layer.")
        for name in plain
    ]  # fmt: skip

    assert name_layers(wrapped) == name_layers(plain)


def test_what_looks_like_a_wrapper_may_be_a_name() -> None:
    """Where names would become one without it, they keep all of it."""
    assert names_of(["module.weight", "head.weight"]) == ["module", "head"]
    assert names_of(["a.default.weight", "a.weight"], grouping="parameter") == [
        "a.default.weight", "a.weight",
    ]  # fmt: skip


def test_layers_sort_as_they_follow_each_other() -> None:
    """Numbers are padded, so that L10 does not come before L2."""
    layers = [name for name in name_layers(llama(101), most=200).layers if name.startswith("L")]

    assert layers[:2] + layers[-1:] == ["L000", "L001", "L100"]
    assert layers == sorted(layers)


def test_auto_takes_modules_as_long_as_they_are_few() -> None:
    """Else blocks, which are fewer."""
    assert len(name_layers(llama(6)).layers) == 6 * 9 + 3
    assert len(name_layers(llama(7)).layers) == 7 + 3


@pytest.mark.parametrize("grouping", LAYER_GROUPINGS)
def test_no_more_layers_than_wanted(grouping: str) -> None:
    """The last ones are together in "other", and it is said how many those are."""
    parameters = llama(80)
    capped = name_layers(parameters, grouping=grouping, most=10)
    all_of_them = name_layers(parameters, grouping=grouping, most=100_000)

    assert len(capped.layers) == 10
    assert capped.layers[-1] == OTHER
    if grouping != "auto":
        assert capped.layers[:9] == all_of_them.layers[:9]
        assert capped.folded == len(all_of_them.layers) - 9
        folded = [place for place in all_of_them.of_parameter if place > 8]
        assert capped.of_parameter.count(9) == len(folded)


def test_as_many_as_wanted_are_not_folded() -> None:
    """Nothing is lost at the limit itself."""
    named = name_layers(llama(7), grouping="block", most=10)

    assert (len(named.layers), named.folded, OTHER in named.layers) == (10, 0, False)


def test_short_names_that_would_be_one_stay_long() -> None:
    """Two modules never share a series."""
    parameters = ["layers.0.attention.q.weight", "layers.0.self_attn.q.weight"]

    assert names_of(parameters, grouping="module") == [
        "layers.0.attention.q",
        "layers.0.self_attn.q",
    ]


def test_a_layer_that_is_called_other_is_not_the_rest() -> None:
    """Its series must not be taken for that of the folded ones."""
    assert names_of(["other.weight", "head.weight"]) == ["model.other", "head"]
    assert name_layers(["other.weight", "a.weight", "b.weight"], most=2).layers == (
        "model.other", OTHER,
    )  # fmt: skip


def test_no_parameters_no_layers() -> None:
    """A model without parameters is no error."""
    assert name_layers([]) == ((), (), 0)


def test_what_cannot_be_is_refused() -> None:
    """With the valid values in the message."""
    with pytest.raises(ValueError, match="one of auto, block, module, parameter, not 'stage'"):
        name_layers([], grouping="stage")
    with pytest.raises(ValueError, match="at least one layer"):
        name_layers([], most=0)
