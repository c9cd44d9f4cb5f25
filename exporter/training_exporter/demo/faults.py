# SPDX-License-Identifier: Apache-2.0
"""Faults that are real: each happens in the training itself, and the exporter is told nothing.

Every class is a callback of the Trainer, as a user could write it. It says what it does in the log,
so that cause and alarm can be read side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from time import sleep
from typing import Any, ClassVar, Final

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_exporter.demo import plan
from training_exporter.demo.text import VOCABULARY_SIZE

logger = logging.getLogger("training_exporter.demo")


class FaultCallback(TrainerCallback):
    """Something that begins before one step and is undone before another.

    Args:
        step: the first step that it affects.
    """

    length: ClassVar[int]
    """Steps that it affects."""
    story: ClassVar[str]
    """What is said when it begins, after the word "fault"."""

    def __init__(self, step: int) -> None:
        self.step = self.first = step
        self.end = step + self.length

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        coming = state.global_step + 1
        if coming == self.first:
            logger.info("fault at step %d: %s", self.step, self.story)
            self.begin(kwargs)
        if self.first <= coming < self.end:
            self.during(kwargs)
        if coming == self.end:
            self.undo(kwargs)

    def begin(self, training: Mapping[str, Any]) -> None:
        """Called before the first step, with what the Trainer tells its callbacks."""

    def during(self, training: Mapping[str, Any]) -> None:
        """Called before each step."""

    def undo(self, training: Mapping[str, Any]) -> None:
        """Called before the first step that is to be healthy again."""


class Checkpoint:
    """Weights and optimiser as they are now, in memory."""

    def __init__(self, training: Mapping[str, Any]) -> None:
        self._model = deepcopy(training["model"].state_dict())
        self._optimizer = deepcopy(training["optimizer"].state_dict())

    def restore(self, training: Mapping[str, Any]) -> None:
        """Go back to them. The learning rate stays, which is the schedule's affair."""
        optimizer = training["optimizer"]
        rates = [group["lr"] for group in optimizer.param_groups]
        training["model"].load_state_dict(self._model)
        optimizer.load_state_dict(self._optimizer)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class LearningRateFault(FaultCallback):
    """The rate is not what the schedule says. The scheduler sets it anew after each step."""

    factor: ClassVar[float]

    def during(self, training: Mapping[str, Any]) -> None:
        for group in training["optimizer"].param_groups:
            group["lr"] *= self.factor


class Plateau(LearningRateFault):
    """Nothing is learnt: someone froze everything, or a schedule ended too soon."""

    length = 200
    factor = 0.0
    story = "the learning rate is 0 for 200 steps"

    def undo(self, training: Mapping[str, Any]) -> None:
        logger.info("the learning rate is what its schedule says again")


class Explosion(LearningRateFault):
    """A learning rate far too high, which ruins the weights within steps."""

    length = 4
    factor = 1000.0
    story = "the learning rate is x1000 for 4 steps"

    def begin(self, training: Mapping[str, Any]) -> None:
        self._before = Checkpoint(training)

    def undo(self, training: Mapping[str, Any]) -> None:
        self._before.restore(training)
        logger.info("weights and optimiser of step %d restored, as if resumed", self.first - 1)


class EmbeddingFault(FaultCallback):
    """A fault that comes with the data: it gets in where the model reads its tokens."""

    length = 1

    def begin(self, training: Mapping[str, Any]) -> None:
        self._hook = self.register(training["model"].get_input_embeddings())

    def undo(self, training: Mapping[str, Any]) -> None:
        self._hook.remove()

    def register(self, embedding: torch.nn.Module) -> Any:
        """Hook into the embedding; returns what undoes it."""
        raise NotImplementedError


class NaN(EmbeddingFault):
    """One batch whose embeddings are divided by their length, which is zero.

    Clipping divides all gradients by their norm, which is NaN, so that one step turns every weight
    into NaN and each later loss too. Somebody has to go back to a checkpoint, as here after a few
    steps.
    """

    story = "the embeddings of a batch are divided by zero"
    lasts: ClassVar = 5

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self._resumed = step + self.lasts

    def begin(self, training: Mapping[str, Any]) -> None:
        self._before = Checkpoint(training)
        super().begin(training)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        if state.global_step + 1 == self._resumed:
            self._before.restore(kwargs)
            logger.info("weights and optimiser of step %d restored, as if resumed", self.first - 1)

    def register(self, embedding: torch.nn.Module) -> Any:
        return embedding.register_forward_hook(
            lambda module, _, vectors: divided_by_zero(vectors) if module.training else vectors
        )


def divided_by_zero(vectors: torch.Tensor) -> torch.Tensor:
    """Scaled to unit length, as is often done, when all of them are zero: 0/0."""
    zeros = vectors * 0.0
    length: torch.Tensor = zeros.norm()
    return zeros / length


class Stall(EmbeddingFault):
    """One step that hangs, as when another machine does not answer."""

    seconds: ClassVar = 200.0
    """Long enough for the alert, which takes a step that stands still for a minute for a stall."""
    story = "the step hangs for 200 seconds"

    def register(self, embedding: torch.nn.Module) -> Any:
        return embedding.register_forward_pre_hook(self._hang)

    def _hang(self, module: torch.nn.Module, _: Any) -> None:
        if module.training:
            sleep(self.seconds)


class Crash(EmbeddingFault):
    """A token that is not in the vocabulary, as from the wrong tokenizer: PyTorch raises."""

    story = "a batch with a token that the model does not know"

    def register(self, embedding: torch.nn.Module) -> Any:
        return embedding.register_forward_pre_hook(
            lambda _, tokens: (tokens[0] + VOCABULARY_SIZE, *tokens[1:])
        )


class SlowData(FaultCallback):
    """Each row takes longer to be read, as from a network drive that others keep busy."""

    length = 40
    batch_seconds: ClassVar = 0.5
    story = "each batch takes half a second to be read, for 40 steps"

    def __init__(self, step: int) -> None:
        # Batches are fetched after the step before, and one ahead.
        super().__init__(max(1, step - 1))
        self.step = step

    def begin(self, training: Mapping[str, Any]) -> None:
        loader = training["train_dataloader"]
        loader.dataset.read_seconds = self.batch_seconds / loader.total_batch_size

    def undo(self, training: Mapping[str, Any]) -> None:
        training["train_dataloader"].dataset.read_seconds = 0.0
        logger.info("the data is read at full speed again")


_CLASSES: Final[Mapping[str, type[FaultCallback]]] = {
    plan.NAN: NaN,
    plan.PLATEAU: Plateau,
    plan.EXPLOSION: Explosion,
    plan.SLOW_DATA: SlowData,
    plan.STALL: Stall,
    plan.CRASH: Crash,
}
assert set(_CLASSES) == set(plan.FAULTS)


def fault_callback(fault: plan.Fault) -> FaultCallback:
    """The callback that causes a fault."""
    return _CLASSES[fault.kind](fault.step)
