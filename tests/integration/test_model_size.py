# SPDX-License-Identifier: Apache-2.0
"""FLOPs of real models, against what torch counts while they train."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.sync_audit import SyncAudit
from training_exporter.flops import training_flops
from training_exporter.integrations.model_size import positions_in, size_of

ROWS, LENGTH = 2, 24
TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "attn_implementation": "eager",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**TINY, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "experts_implementation": "eager", "num_experts_per_tok": 2}


def build(kind: str, **settings: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = "ForMaskedLM" if kind == "Bert" else "ForCausalLM"
    return getattr(transformers, f"{kind}{model}")(config)


def counted(model: nn.Module) -> int:
    """What torch counts in the matrix products of a forward and backward pass."""
    ids = torch.randint(3, 99, (ROWS, LENGTH))
    model.train()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    return counter.get_total_flops()


def computed(model: nn.Module) -> float:
    size = size_of(model)
    assert size is not None
    return training_flops(size, ROWS * LENGTH, LENGTH)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", GROUPED),
        ("Llama", {**GROUPED, "tie_word_embeddings": True}),
        ("Qwen2", GROUPED),
        ("Bert", TINY),
        ("Gemma2", {**GROUPED, "head_dim": 16, "sliding_window": 512}),
        ("Mixtral", {**EXPERTS, "num_local_experts": 4}),
        ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
        ("GptOss", {**EXPERTS, "num_local_experts": 4, "head_dim": 8}),
    ],
)
def test_a_whole_training_is_exact(kind: str, settings: dict[str, Any]) -> None:
    """To the last operation, with tied output, grouped heads, wide heads and experts."""
    model = build(kind, **settings)
    if "experts_implementation" in settings:
        model.set_experts_implementation("eager")  # the grouped product is one torch does not count

    assert computed(model) == counted(model)


@pytest.mark.parametrize(
    ("trained", "tied"),
    [
        ("embed_tokens", False),
        ("layers.1", False),
        ("layers.2", False),
        ("lm_head", False),
        ("embed_tokens", True),
        ("layers.1", True),
        ("layers.2", True),
    ],
)
def test_a_part_that_is_trained_costs_what_it_costs(trained: str, tied: bool) -> None:
    """Within the products that the first trained layer saves, which are not looked at."""
    model = build("Llama", **GROUPED, tie_word_embeddings=tied)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trained in name

    assert computed(model) == pytest.approx(counted(model), rel=0.02)


def test_lora_costs_four_per_frozen_weight() -> None:
    """Six, as the Trainer's own number has it, would be half as much again."""
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("Llama", **{**GROUPED, "num_hidden_layers": 8}), lora)

    assert computed(model) == pytest.approx(counted(model), rel=0.015)


def test_a_module_that_peft_saves_counts_once() -> None:
    """The frozen original beside it is not used."""
    lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(build("Llama", **{**GROUPED, "num_hidden_layers": 8}), lora)

    assert computed(model) == pytest.approx(counted(model), rel=0.02)


def test_a_window_is_taken_from_the_configuration() -> None:
    """Layers in which a position sees eight others do less than what a full mask computes."""
    wide, narrow = (build("Mistral", **GROUPED, sliding_window=n) for n in (None, 8))
    size, windowed = size_of(wide), size_of(narrow)

    assert size is not None
    assert windowed is not None
    assert (size.attention, size.windowed) == (3 * 32, 0)
    assert (windowed.attention, windowed.windowed, windowed.window) == (0, 3 * 32, 8)


def test_gradient_checkpointing_changes_nothing() -> None:
    """What is computed twice to save memory is no work of the model."""
    model = build("Llama", **GROUPED)
    before = computed(model)
    model.gradient_checkpointing_enable()

    assert computed(model) == before


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("T5ForConditionalGeneration", {"vocab_size": 99, "d_model": 32, "num_layers": 1}),
        ("AlbertForMaskedLM", {**TINY, "embedding_size": 16}),  # its layers share their weights
        ("ViTModel", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}),
        ("Qwen3NextForCausalLM", {**EXPERTS, "num_experts": 4, "head_dim": 8}),  # linear attention
        ("JetMoeForCausalLM", {**GROUPED, "num_local_experts": 4}),  # experts by another name
    ],
)
def test_models_whose_work_is_not_known_have_no_size(kind: str, settings: dict[str, Any]) -> None:
    """Rather than that of a model of another kind."""
    model_class = getattr(transformers, kind)

    assert size_of(model_class(model_class.config_class(**settings))) is None


def test_a_module_without_configuration_has_no_size() -> None:
    """How often its weights are used, nobody says."""
    assert size_of(nn.Linear(2, 2)) is None


def test_experts_without_a_known_number_of_visits_have_no_size() -> None:
    """All of them would be too many."""
    model: Any = build("Mixtral", **EXPERTS, num_local_experts=4)
    model.config.num_experts_per_tok = 0

    assert size_of(model) is None


def test_experts_that_the_configuration_does_not_know_have_no_size() -> None:
    """And neither have a configuration's experts that are not found among the weights."""
    silent: Any = build("Llama", **GROUPED)
    silent.model.layers[0].experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    empty: Any = build("Llama", **GROUPED)
    empty.config.num_experts, empty.config.num_experts_per_tok = 4, 2

    assert (size_of(silent), size_of(empty)) == (None, None)


def test_attention_of_an_unknown_kind_has_no_size() -> None:
    """What a layer of linear attention does is not what the formula says."""
    model: Any = build("Llama", **GROUPED)
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]

    assert size_of(model) is None


@pytest.mark.parametrize("method", ["gptq", "awq", "mxfp4"])
def test_weights_that_are_packed_have_no_size(method: str) -> None:
    """Their number of elements is not that of the weights."""
    model = build("Llama", **GROUPED)
    model.config.quantization_config = {"quant_method": method}

    assert size_of(model) is None


def test_bitsandbytes_weights_count_unpacked() -> None:
    """Two 4-bit weights lie in one element; their shape is in the quantisation's state."""
    model = build("Llama", **GROUPED)
    plain = size_of(model)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    weight: Any = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    weight.quant_state = SimpleNamespace(shape=weight.shape)
    weight.data = torch.zeros(weight.numel() // 2, 1)

    assert size_of(model) == plain


def test_tensor_parallel_models_have_no_size() -> None:
    """Each device would do only a part of it."""
    model: Any = build("Llama", **GROUPED)
    model._tp_size = 2

    assert size_of(model) is None


def test_padding_is_counted_on_the_device() -> None:
    """Seven of twelve positions are real, and nothing is read to find out."""
    ids = torch.ones(3, 4, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    with SyncAudit() as audit:
        found = positions_in({"input_ids": ids, "attention_mask": mask})

    assert audit.syncs == []
    assert found is not None
    assert (found.all, found.length) == (12, 4)
    assert found.real.item() == 7


def test_a_mask_that_numbers_rows_counts_positions() -> None:
    """Packed batches have 1, 2, 3 where others have 1."""
    mask = torch.tensor([[1, 1, 2, 3, 3, 0]])
    found = positions_in({"input_ids": mask, "attention_mask": mask})

    assert found is not None
    assert found.real.item() == 5


def test_joined_rows_have_no_padding_and_no_length() -> None:
    """Positions that start anew and no mask: TRL's and transformers' padding-free batches."""
    ids = torch.ones(1, 6, dtype=torch.long)

    assert positions_in({"input_ids": ids, "position_ids": ids}) == (6, 6, None)


def test_without_a_mask_padding_is_unknown() -> None:
    """Labels hide prompts too, so they do not tell."""
    ids = torch.ones(2, 3, dtype=torch.long)

    assert positions_in({"input_ids": ids, "labels": ids}) == (6, None, 3)


@pytest.mark.parametrize(
    "inputs", [{}, {"pixel_values": torch.zeros(1, 3, 8, 8)}, [{"prompt": "a"}], None]
)
def test_other_batches_have_no_positions(inputs: Any) -> None:
    """Images, and GRPO's list of prompts."""
    assert positions_in(inputs) is None
