# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from training_exporter.replay.columns import Columns, parse_map
from training_exporter.replay.trouble import ReplayError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["current_steps", "loss", "lr"], {"step": "current_steps", "learning_rate": "lr"}),
        (["train/global_step", "train/loss", "train/grad_norm", "_step"],
         {"step": "train/global_step", "loss": "train/loss", "grad_norm": "train/grad_norm"}),
        (["lr-AdamW", "step", "train_loss_step", "train_loss_epoch"],
         {"loss": "train_loss_step", "learning_rate": "lr-AdamW"}),
        (["train_loss", "loss"], {"loss": "loss"}),
        (["_step", "_timestamp", "loss"], {"step": "_step", "timestamp": "_timestamp"}),
        (["_step", "monitor/step", "monitor/loss", "monitor/loss_ema", "train/loss"],
         {"step": "monitor/step", "loss": "monitor/loss"}),
        (["monitor/loss", "monitor/learning_rate/0", "monitor/learning_rate/1"],
         {"learning_rate": "monitor/learning_rate/0"}),
        (["train/loss", "train/learning_rate", "monitor/learning_rate/0", "monitor/loss"],
         {"loss": "monitor/loss", "learning_rate": "monitor/learning_rate/0"}),
    ],
)  # fmt: skip
def test_names_that_trainers_use(names: list[str], expected: dict[str, str]) -> None:
    """Of several the likeliest is taken, whichever came first."""
    columns = Columns({})

    columns.learn_all([dict.fromkeys(names, 1)])

    assert expected.items() <= columns.names.items()


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("eval_loss", "eval"), ("val/loss", "eval"), ("validation_loss", "eval"),
     ("eval_wiki_loss", "wiki"), ("Loss/val", "eval"), ("val_loss_epoch", "eval"),
     ("test/loss", "test")],
)  # fmt: skip
def test_losses_of_evaluations(name: str, dataset: str) -> None:
    """Also when they come up late, as those of the first evaluation do."""
    columns = Columns({})
    columns.learn_all([{"step": 1, "loss": 2}])

    columns.learn({"step": 2, name: 1.5})

    assert columns.evaluations == {name: dataset}


def test_names_that_the_user_gives_win() -> None:
    """Over those that look likelier."""
    columns = Columns({"loss": "nll", "eval_loss": "held_out"})

    columns.learn_all([{"step": 1, "loss": 2, "nll": 1, "held_out": 3, "val_loss": 4}])

    assert columns.names == {"step": "step", "loss": "nll"}
    assert columns.evaluations == {"held_out": "eval"}


def test_a_name_that_is_not_there() -> None:
    """Is told with those that are."""
    chosen = {"loss": "los"}

    with pytest.raises(ReplayError, match="'los'; there are step, loss"):
        Columns(chosen).require_chosen(chosen, [{"step": 1, "loss": 2}])


def test_nothing_to_judge() -> None:
    """Is told with the option that helps."""
    columns = Columns({})
    records = [{"step": 1, "accuracy": 2}]
    columns.learn_all(records)

    with pytest.raises(ReplayError, match=r"there are step, accuracy.*--map loss=NAME"):
        columns.require_something(records)


def test_the_map_option() -> None:
    """One by one or separated by commas; a name may have commas of its own."""
    chosen = parse_map(["loss=a,grad_norm=b", "epoch=c,d"])

    assert chosen == {"loss": "a", "grad_norm": "b", "epoch": "c,d"}


@pytest.mark.parametrize("text", ["loss", "loss=", "lr=x"])
def test_a_map_option_that_is_none(text: str) -> None:
    """Is refused with the signals that there are."""
    with pytest.raises(ReplayError, match="one of step, timestamp, loss"):
        parse_map([text])


def test_two_names_for_one_signal() -> None:
    """Are refused: the one that is meant is not known."""
    with pytest.raises(ReplayError, match="loss two names: a and b"):
        parse_map(["loss=a", "loss=b"])


def test_one_loss_for_a_data_set() -> None:
    """Where it is logged twice, as Lightning may do."""
    columns = Columns({})

    columns.learn_all([{"step": 1, "loss": 2, "val_loss": 3, "val_loss_epoch": 3}])

    assert columns.evaluations == {"val_loss": "eval"}


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([0, 0, 0], "it is always 0"),
        ([0.1, 0.2, 0.3], "it has values such as 0.1"),
        ([1, 2, 3], ""),
        ([1, "2", 3.0], ""),
        ([7, 7], ""),
        ([1, 2, 2.5, *range(3, 20)], ""),
    ],
)
def test_what_is_no_step(steps: list[object], why: str) -> None:
    """Though it is called one; a damaged value among many is not enough."""
    columns = Columns({})
    records = [{"step": step, "loss": 2.0} for step in steps]
    columns.learn_all(records)

    assert columns.why_no_step(records) == why


def test_names_of_numbers_that_were_seen() -> None:
    """From which a user may choose; texts and truths are not for that."""
    columns = Columns({})

    columns.learn_all([{"step": 1, "loss": "2.5", "mode": "train", "ok": True}, {"acc": 0.5}])

    assert list(columns.seen) == ["step", "loss", "acc"]
