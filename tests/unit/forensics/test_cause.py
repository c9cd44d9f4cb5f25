# SPDX-License-Identifier: Apache-2.0
"""The likely cause: one scene for each rule, and scenes in which it must keep quiet."""

from __future__ import annotations

from math import inf, nan

import pytest

from tests.unit.forensics.events import CLEAN, bad, report, signals
from training_exporter.forensics.cause import RULES, UNKNOWN, likely_causes
from training_exporter.forensics.report import Findings, Inspection, Labels, Report

RISING = [signals(0, grad_norm=norm) for norm in (2.0, 6.0, 15.0, 40.0)]
SCENES: dict[str, tuple[Report, str]] = {
    "inputs": (
        report(findings=Findings(inputs=bad())),
        "h.0.weight (4 x 3 x 8, float32) holds 12 NaN and 1 Inf",
    ),
    "labels_out_of_range": (
        report(findings=Findings(inputs=CLEAN, labels=(Labels("labels", 64, 3, 0, 512, 512),))),
        "the largest label in labels is 512, and the model has 512 classes",
    ),
    "all_labels_masked": (
        report(findings=Findings(inputs=CLEAN, labels=(Labels("labels", 64, 64),)), grad_norm=0.0),
        "all 64 labels in labels are -100",
    ),
    "loss_scale_collapse": (
        report(loss=2.0, grad_norm=inf, loss_scale=0.25, skipped=True),
        "the loss scale has fallen to 0.25",
    ),
    "loss_scale_search": (
        report(loss=2.0, grad_norm=inf, loss_scale=65536.0, skipped=True),
        "the loss is finite, and the loss scale was 65536",
    ),
    "learning_rate": (
        report(learning_rates={"0": 0.1}),
        "the learning rate went from 0.001 to 0.1 at step 100",
    ),
    "parameters": (
        report(findings=Findings(inputs=CLEAN, parameters=bad(before_update=True))),
        "1 of 28 parameters are not finite, though step 99 before looked finite",
    ),
    "explosion": (report(*RISING), "the gradient norm rose from about 1 to 40"),
    "half_precision": (report(loss_scale=1024.0), "the loss is NaN in fp16"),
    "first_step": (report(history=0), "the loss is NaN at step 100, with no finite one before it"),
    "not_looked_at": (
        report(findings=Findings()),
        "the loss is NaN, and no more than the numbers of the steps was seen",
    ),
    "loss_function": (report(), "the loss is NaN, the batch is finite, and the steps before"),
    "backward": (report(loss=2.0), "the loss is 2, and the gradient norm is NaN"),
}


def names(of: Report) -> list[str]:
    return [cause.name for cause in likely_causes(of)]


def test_every_rule_has_its_scene() -> None:
    """A rule nobody tries is one that may never fire."""
    assert [rule.name for rule in RULES] != []
    assert {rule.name for rule in RULES} == set(SCENES)


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_has_its_cause(name: str) -> None:
    """It comes first, says what speaks for it, and has three things to try."""
    scene, because = SCENES[name]
    likeliest = likely_causes(scene)[0]

    assert likeliest.name == name
    assert because in likeliest.because
    assert len(set(likeliest.advice)) == 3


def test_what_fits_nothing_is_unknown() -> None:
    """A norm alone, with a loss that nobody gave, tells nothing."""
    assert likely_causes(report(loss=None)) == (UNKNOWN,)


def test_what_was_seen_in_the_batch_goes_before_what_the_steps_suggest() -> None:
    """Both are named, and NaN in the inputs is proof where a rising norm is none."""
    found = names(report(*RISING, findings=Findings(inputs=bad())))
    assert found == ["inputs", "explosion"]


def test_a_batch_that_was_gone_is_not_called_finite() -> None:
    """With sound weights the loss function is the best guess; the reason says what is not known."""
    (cause,) = likely_causes(report(findings=Findings(parameters=CLEAN)))
    assert cause.name == "loss_function"
    assert "the batch could not be looked at" in cause.because


@pytest.mark.parametrize(
    "labels",
    [
        Labels("labels", 64, 63, 5, 5, 10),
        Labels("labels", 64, 0, 0, 9, 10),
        Labels("y", 9, 0, 0, 9),
    ],
)
def test_good_labels_are_no_cause(labels: Labels) -> None:
    """One unmasked label is enough, the last class is one, and unknown classes accuse nobody."""
    assert names(report(findings=Findings(inputs=CLEAN, labels=(labels,)))) == ["loss_function"]


def test_a_negative_label_is_out_of_range() -> None:
    """Other than -100, which is not among what is counted."""
    labels = (Labels("labels", 64, 0, -1, 5),)
    found = names(report(findings=Findings(inputs=CLEAN, labels=labels)))
    assert found == ["labels_out_of_range", "loss_function"]


def test_masked_labels_with_a_finite_loss_are_no_cause() -> None:
    """Whatever made the gradient NaN, it was not a mean over nothing."""
    masked = Findings(inputs=CLEAN, labels=(Labels("labels", 64, 64),))
    assert names(report(findings=masked, loss=2.0)) == ["backward"]


def test_many_overflows_are_a_collapse() -> None:
    """A search takes a few steps, one that does not end is no search."""
    overflows = [signals(0, grad_norm=inf, loss_scale=2.0**-at) for at in range(-16, -2)]
    last = {"loss": 2.0, "grad_norm": inf, "loss_scale": 4.0}
    assert names(report(*overflows, **last))[0] == "loss_scale_collapse"
    assert names(report(*overflows[:5], **last))[0] == "loss_scale_search"


def test_a_warm_up_is_no_jump() -> None:
    """It begins at zero, doubles in its second step and then rises ever slower."""
    warm_up = [signals(0, learning_rates={"0": 1e-4 * at}) for at in range(4)]
    assert "learning_rate" not in names(report(*warm_up, learning_rates={"0": 4e-4}, history=0))


def test_a_rate_that_is_no_number_is_named() -> None:
    """Even in the step before, which broke the weights with it."""
    causes = likely_causes(report(signals(0, learning_rates={"0": nan})))
    assert causes[0].because == "the learning rate was NaN at step 99"


def test_a_jump_of_long_ago_is_no_cause() -> None:
    """Twenty healthy steps after it acquit it."""
    low = [signals(0, learning_rates={"0": 1e-5})] * 2
    high = [signals(0)] * 20
    assert names(report(*low, *high)) == ["loss_function"]


def test_a_rising_loss_is_an_explosion_too() -> None:
    """For those who have no gradient norm."""
    losses = [signals(0, loss=loss, grad_norm=None) for loss in (2.0, 2.0, 2.0, 2.0, 3.0, 9.0)]
    (cause,) = likely_causes(report(*losses, grad_norm=None, history=0))
    assert cause.name == "explosion"
    assert cause.because.startswith("the loss rose from about 2 to 9")


def test_an_ordinary_spike_is_no_explosion() -> None:
    """Gradient norms vary by some factor all the time."""
    assert names(report(signals(0, grad_norm=4.0))) == ["loss_function"]


def test_a_step_before_that_was_broken_is_the_cause() -> None:
    """Without a look at the weights the row before says it; a skipped one changed nothing."""
    causes = likely_causes(report(signals(0, grad_norm=nan)))
    assert causes[0].because == "step 99 was non-finite already, and its update was made"
    assert "parameters" not in names(report(signals(0, grad_norm=nan, skipped=True)))


def test_a_checkpoint_that_is_broken_is_told() -> None:
    """Weights that are NaN before the first update came so."""
    broken = Findings(inputs=CLEAN, parameters=Inspection(100, 28, 3, (), before_update=True))
    causes = likely_causes(report(findings=broken, history=0))
    assert causes[0].because == "3 of 28 parameters are not finite, from the first step on"


def test_parameters_that_the_event_broke_are_not_the_cause() -> None:
    """The update of the step itself carried the NaN into them."""
    assert names(report(findings=Findings(inputs=CLEAN, parameters=bad()))) == ["loss_function"]
