# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Trainer with one line more.

Run it, open the address it prints, and watch; everything else is the Trainer's.
"""

from __future__ import annotations

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from training_exporter.integrations.huggingface import PrometheusCallback

model = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=256,
    )
)
tokens = torch.randint(0, 256, (256, 32))
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=tempfile.mkdtemp(), run_name="example", max_steps=200, use_cpu=True, report_to=[]
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
    callbacks=[PrometheusCallback()],
)
trainer.train()
