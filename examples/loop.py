# SPDX-License-Identifier: Apache-2.0
"""A training loop written by hand, watched."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from training_exporter import TrainingExporter

inputs = torch.randn(2048, 16)
targets = inputs.sum(dim=1, keepdim=True)
train = DataLoader(TensorDataset(inputs[:1800], targets[:1800]), batch_size=32, shuffle=True)
held_out = inputs[1800:], targets[1800:]

model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

with TrainingExporter(run="example-loop") as exporter:
    for epoch in range(3):
        for features, wanted in exporter.data(train):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(features), wanted)
            loss.backward()
            exporter.clip_grad_norm_(model.parameters(), max_norm=10.0)
            optimizer.step()
            exporter.step(
                loss=loss.detach(),
                learning_rate=optimizer,
                samples=len(features),
                epoch=epoch,
                max_steps=3 * len(train),
            )
        with exporter.evaluating(), torch.no_grad():
            eval_loss = nn.functional.mse_loss(model(held_out[0]), held_out[1])
        exporter.observe_evaluation({"loss": eval_loss.item()})
