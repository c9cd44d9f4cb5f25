# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from training_exporter import ExporterConfig, TrainingExporter


def test_defaults_are_valid() -> None:
    """The exporter works without any setting."""
    config = ExporterConfig()

    assert (config.port, config.address, config.profile) == (10400, "0.0.0.0", "robust")


@pytest.mark.parametrize(
    ("setting", "value", "valid"),
    [
        ("port", 70_000, "0 to 65535"),
        ("port", "10400", "0 to 65535"),
        ("port_tries", 0, "1 to 1000"),
        ("rank", -1, "0 to"),
        ("profile", "fancy", "robust, textbook"),
        ("ema_beta", 1.5, "at least 0 and below 1"),
        ("ema_beta", 1, "at least 0 and below 1"),
        ("ema_beta", float("nan"), "at least 0 and below 1"),
        ("run", "  ", "not empty"),
        ("max_logged_values", True, "0 to 100000"),
        ("serve", "no", "True or False"),
        ("strict", 1, "True or False"),
        ("address", 123, "a text"),
        ("detectors", None, "options by kind"),
        ("ema_beta", False, "at least 0 and below 1"),
        ("run", 5, "not empty"),
        ("gpus", "some", "mine, all, or numbers"),
        ("gpus", "0,,1", "mine, all, or numbers"),
        ("gpus", "mine,0", "mine, all, or numbers"),
        ("gpus", 0, "mine, all, or numbers"),
        ("layer_interval", -1, "0 to 1000000"),
        ("layer_interval", 2.5, "0 to 1000000"),
        ("layer_interval", True, "0 to 1000000"),
        ("max_layers", 0, "1 to 10000"),
        ("gradient_histogram_interval", -1, "0 to 1000000"),
        ("layer_grouping", "tensor", "auto, block, module, parameter"),
        ("layer_grouping", None, "auto, block, module, parameter"),
        ("gpu_interval", 0.1, "0.5 to 3600"),
        ("gpu_interval", float("nan"), "0.5 to 3600"),
        ("gpu_interval", "5", "0.5 to 3600"),
        ("gpu_metrics", 1, "True or False"),
        ("gpu_pcie", "yes", "True or False"),
        ("peak_flops", 0, "1e+06 to 1e+18"),
        ("peak_flops", 989.4, "1e+06 to 1e+18"),
        ("peak_flops", "1e15", "1e+06 to 1e+18"),
    ],
)
def test_nonsense_is_refused_with_the_valid_values(setting: str, value: Any, valid: str) -> None:
    """The message says what would have been right, and what was given."""
    with pytest.raises(ValueError, match=setting) as caught:
        ExporterConfig(**{setting: value})

    assert valid in str(caught.value)


def test_every_setting_can_come_from_the_environment() -> None:
    """Each field has a variable of its name."""
    config = ExporterConfig.from_environ(
        {
            "TRAINING_EXPORTER_RUN": "night",
            "TRAINING_EXPORTER_RANK": "3",
            "TRAINING_EXPORTER_SERVE": "no",
            "TRAINING_EXPORTER_ADDRESS": "127.0.0.1",
            "TRAINING_EXPORTER_PORT": "9000",
            "TRAINING_EXPORTER_PORT_TRIES": "5",
            "TRAINING_EXPORTER_PROFILE": "textbook",
            "TRAINING_EXPORTER_DETECTORS": "loss_spike.gamma=1.5, loss_plateau.patience=7",
            "TRAINING_EXPORTER_EMA_BETA": "0.9",
            "TRAINING_EXPORTER_MAX_LOGGED_VALUES": "10",
            "TRAINING_EXPORTER_GPU_METRICS": "false",
            "TRAINING_EXPORTER_GPUS": "0, GPU-5f3c",
            "TRAINING_EXPORTER_GPU_INTERVAL": "2.5",
            "TRAINING_EXPORTER_GPU_PCIE": "yes",
            "TRAINING_EXPORTER_PEAK_FLOPS": "989.4e12",
            "TRAINING_EXPORTER_LAYER_INTERVAL": "1",
            "TRAINING_EXPORTER_LAYER_GROUPING": "block",
            "TRAINING_EXPORTER_MAX_LAYERS": "32",
            "TRAINING_EXPORTER_GRADIENT_HISTOGRAM_INTERVAL": "100",
            "TRAINING_EXPORTER_STRICT": "1",
        }
    )

    assert config == ExporterConfig(
        run="night", rank=3, serve=False, address="127.0.0.1", port=9000, port_tries=5,
        profile="textbook",
        detectors={"loss_spike": {"gamma": 1.5}, "loss_plateau": {"patience": 7}},
        ema_beta=0.9, max_logged_values=10, gpu_metrics=False, gpus="0, GPU-5f3c", gpu_interval=2.5,
        gpu_pcie=True, peak_flops=989.4e12, layer_interval=1, layer_grouping="block", max_layers=32,
        gradient_histogram_interval=100, strict=True,
    )  # fmt: skip


def test_keywords_win_over_the_environment() -> None:
    """What the script says is meant."""
    config = ExporterConfig.from_environ({"TRAINING_EXPORTER_PORT": "9000"}, port=9001)

    assert config.port == 9001


@pytest.mark.parametrize(
    ("variable", "text", "valid"),
    [
        ("TRAINING_EXPORTER_PORT", "ten", "a whole number"),
        ("TRAINING_EXPORTER_PORT", "99999", "0 to 65535"),
        ("TRAINING_EXPORTER_LAYER_INTERVAL", "often", "a whole number"),
        ("TRAINING_EXPORTER_LAYER_GROUPING", "tensor", "auto, block, module, parameter"),
        ("TRAINING_EXPORTER_PROFILE", "fancy", "robust, textbook"),
        ("TRAINING_EXPORTER_SERVE", "maybe", "1, true, yes"),
        ("TRAINING_EXPORTER_DETECTORS", "loss_spike=2", "kind.option=number"),
        ("TRAINING_EXPORTER_DETECTORS", "loss_spike.gamma=high", "kind.option=number"),
    ],
)
def test_unreadable_variables_are_named(variable: str, text: str, valid: str) -> None:
    """The message names the variable, not a field the user never wrote."""
    with pytest.raises(ValueError, match=variable) as caught:
        ExporterConfig.from_environ({variable: text})

    assert valid in str(caught.value)


def test_an_unknown_variable_is_warned_about(logs: pytest.LogCaptureFixture) -> None:
    """With what was meant, or all valid names, and it does not stop the training."""
    ExporterConfig.from_environ({"TRAINING_EXPORTER_PROT": "1", "TRAINING_EXPORTER_HAIR": "long"})

    assert "TRAINING_EXPORTER_PROT; did you mean TRAINING_EXPORTER_PORT?" in logs.text
    assert "TRAINING_EXPORTER_HAIR; known are TRAINING_EXPORTER_ADDRESS, " in logs.text


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("sink", "did you mean sinks?"),
        ("detector", "did you mean detectors?"),
        ("prot", "did you mean port?"),
        ("hair", "known are address, blackbox_dir, clock, "),
    ],
)
def test_an_unknown_setting(setting: str, meant: str) -> None:
    """Is refused with what was meant, or all that there is, arguments beside settings included."""
    with pytest.raises(TypeError) as caught:
        TrainingExporter(**{setting: []})

    assert str(caught.value).startswith(f"unknown setting {setting}; {meant}")


def test_what_is_no_setting_is_not_meant_by_itself() -> None:
    """Sinks are for the exporter, not for its settings."""
    with pytest.raises(TypeError, match="unknown setting sinks; known are"):
        ExporterConfig.from_environ({}, sinks=[])


def test_an_empty_variable_is_not_set() -> None:
    """That is how compose files and launch scripts pass on what nobody has set."""
    assert ExporterConfig.from_environ({"TRAINING_EXPORTER_PORT": ""}) == ExporterConfig()


def test_config_cannot_be_changed() -> None:
    """What was validated stays valid."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExporterConfig().port = 1  # type: ignore[misc]
