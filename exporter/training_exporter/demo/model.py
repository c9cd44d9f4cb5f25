# SPDX-License-Identifier: Apache-2.0
"""A language model small enough for one core, with the parts of a large one."""

from __future__ import annotations

import os

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed

from training_exporter.demo.text import VOCABULARY_SIZE, WINDOW


def build_model(seed: int) -> PreTrainedModel:
    """A Llama of a quarter of a million weights, the same for a seed."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def use_half_of_the_cores() -> None:
    """Leave room for a browser and Prometheus on the same machine.

    Threads that wait for a core in use by somebody else cost a model this small most of its speed.
    """
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // 2)))
