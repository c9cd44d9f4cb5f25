# SPDX-License-Identifier: Apache-2.0
"""From a report to its likely causes, each with what speaks for it and what to try first.

Pure functions. The rules stand in the order of how much their evidence proves: first what was seen
in the step itself, then what the steps before were like, then what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from training_exporter.forensics import history, step_rules
from training_exporter.forensics.report import Report


class Cause(NamedTuple):
    """A likely cause.

    Attributes:
        name: one of those in RULES, or "unknown".
        title: what it is, in a sentence without a full stop.
        because: what in the report speaks for it.
        advice: the first three things to try.
    """

    name: str
    title: str
    because: str
    advice: tuple[str, str, str]


class Rule(NamedTuple):
    """A cause, and how to tell it.

    Attributes:
        evidence: what in a report speaks for it, None when nothing does.
    """

    name: str
    title: str
    evidence: Callable[[Report], str | None]
    advice: tuple[str, str, str]


RULES: tuple[Rule, ...] = (
    Rule(
        "inputs",
        "the batch holds NaN or infinite values",
        step_rules.inputs,
        (
            "Look at the rows of this batch in the data set, and repair or leave them out.",
            "In preprocessing look for a division by a standard deviation or length of zero and"
            " for the log of zero.",
            "Refuse such rows in the collator: `assert torch.isfinite(values).all()`.",
        ),
    ),
    Rule(
        "all_labels_masked",
        "all labels of a micro-batch are masked, and a mean over none of them is 0/0",
        step_rules.all_labels_masked,
        (
            "Leave out rows without labels; long prompts lose their answer when they are cut.",
            "Raise the maximum length, or cut prompts at their beginning.",
            "Divide the summed loss by `max(number of labels, 1)` instead of taking the mean.",
        ),
    ),
    Rule(
        "loss_scale_collapse",
        "no loss scale fits: the gradients overflow whatever it is",
        step_rules.loss_scale_collapse,
        (
            "Train in bf16 instead of fp16, where the hardware has it.",
            "Keep the loss, norms and softmax in float32, and look for large constants such as a"
            " mask of -1e9 in half precision.",
            "Lower the learning rate or clip tighter: the gradients themselves may be infinite.",
        ),
    ),
    Rule(
        "loss_scale_search",
        "mixed precision is finding its loss scale; a lone overflow is normal and harmless",
        step_rules.loss_scale_search,
        (
            "Nothing, as long as the scale settles: the optimiser left the weights alone.",
            "If it comes up every few hundred steps, that is the scale being raised again and is"
            " normal too.",
            "If the scale keeps falling, train in bf16 or lower the learning rate.",
        ),
    ),
    Rule(
        "learning_rate",
        "the learning rate jumped or was not a finite number",
        history.learning_rate,
        (
            "Look at the scheduler at this step: a wrong number of steps, a restart, a division"
            " by zero warm-up steps.",
            "After a resume check that the scheduler's state was loaded too.",
            "Go back to a checkpoint before this step and go on with the earlier rate.",
        ),
    ),
    Rule(
        "parameters",
        "the weights were non-finite already; an earlier step or the checkpoint broke them",
        history.parameters,
        (
            "Look at the step before in the table, and for an earlier report in the same folder.",
            "Go back to a checkpoint whose weights are finite; training on from here is lost.",
            "If it is the first step, check the checkpoint and its conversion of types.",
        ),
    ),
    Rule(
        "explosion",
        "the training was diverging: the steps before it show it",
        history.explosion,
        (
            "Lower the learning rate, or lengthen the warm-up.",
            "Clip the gradients, or clip tighter: `max_grad_norm=1.0`.",
            "Go back to a checkpoint before the rise and skip the batches that set it off.",
        ),
    ),
    Rule(
        "labels_out_of_range",
        "labels lie outside the classes that the model has",
        step_rules.labels_out_of_range,
        (
            "Compare the tokenizer's length or the number of labels with the model's output size.",
            "Mark what is not to be learned with -100 and nothing else, padding included.",
            "After adding tokens call `model.resize_token_embeddings(len(tokenizer))`.",
        ),
    ),
    Rule(
        "half_precision",
        "values beyond 65,504, the largest that fp16 holds",
        step_rules.half_precision,
        (
            "Train in bf16, which has the range of float32.",
            "Keep the loss, attention scores and norms in float32.",
            "Run it again from before this step with `forensics_hooks=True`, which names the"
            " first module whose output is not finite.",
        ),
    ),
    Rule(
        "first_step",
        "it was so from the first step that was seen: initialisation, data or configuration",
        history.first_step,
        (
            "Check the weights before training: `all(p.isfinite().all() for p in"
            " model.parameters())`; memory that was never initialised looks like this.",
            "Run one batch in float32 without torch.compile and without a custom attention.",
            "Check attention masks: a row that is masked everywhere has a softmax of NaN.",
        ),
    ),
    Rule(
        "not_looked_at",
        "not known, as neither the batch nor the weights could be looked at",
        step_rules.not_looked_at,
        (
            "In a loop of your own call `exporter.watch_model(model)` once and hand the batch on:"
            " `exporter.step(loss=loss, inputs=batch)`.",
            "Check whether the weights are finite: `all(p.isfinite().all() for p in"
            " model.parameters())`.",
            "Look in the loss for `log`, `/`, `sqrt`, `norm` and `softmax` of masked rows.",
        ),
    ),
    Rule(
        "loss_function",
        "a division by zero, a log or a root of zero in the forward pass or in the loss",
        step_rules.loss_function,
        (
            "Look in the loss for `log`, `/`, `sqrt`, `norm` and `softmax` of masked rows, and"
            " add an epsilon or a clamp.",
            "Run it again from before this step with `forensics_hooks=True`, which names the"
            " first module whose output is not finite.",
            "Run this batch again under `torch.autograd.set_detect_anomaly(True)`.",
        ),
    ),
    Rule(
        "backward",
        "the backward pass made it: a root or a norm of zero, or a `torch.where` over an"
        " infinite branch",
        step_rules.backward,
        (
            "Look for `sqrt`, `norm`, `pow` and `acos`: their derivative at the edge is infinite.",
            "Put the safe value in before the function, not after it, when using `torch.where`.",
            "Run this batch again under `torch.autograd.set_detect_anomaly(True)`.",
        ),
    ),
)

UNKNOWN = Cause(
    "unknown",
    "the report does not tell",
    "nothing in it fits a known cause",
    (
        "Run again from the last checkpoint with a layer interval of 1, so that the first layer is"
        " known.",
        "Run it again from before this step with `forensics_hooks=True`, which names the"
        " first module whose output is not finite.",
        "Lower the learning rate and train in float32 or bf16, to see whether it comes back.",
    ),
)


def likely_causes(report: Report) -> tuple[Cause, ...]:
    """The causes that something in the report speaks for, the likeliest first; at least one."""
    found = []
    for rule in RULES:
        because = rule.evidence(report)
        if because is not None:
            found.append(Cause(rule.name, rule.title, because, rule.advice))
    return tuple(found) or (UNKNOWN,)
