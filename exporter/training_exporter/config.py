# SPDX-License-Identifier: Apache-2.0
"""Settings of the exporter: validated where they are made, from keywords or the environment."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

logger = logging.getLogger("training_exporter")

DEFAULT_PORT = 10400
ENV_PREFIX = "TRAINING_EXPORTER_"
DETECTORS_VARIABLE = f"{ENV_PREFIX}DETECTORS"
PROFILE_NAMES = ("robust", "textbook")
RANK_POLICIES = ("all", "local_zero", "zero")
LAYER_GROUPINGS = ("auto", "block", "module", "parameter")
_ARGUMENTS = ("registry", "sinks", "clock")
"""What `TrainingExporter` takes beside the settings, and somebody may have wanted to write."""

_FLAGS = (
    "serve", "strict", "gpu_metrics", "gpu_pcie", "forensics", "forensics_hooks", "resume_state",
    "pushgateway_cleanup", "debug_stack",
)  # fmt: skip
_TEXTS = {
    "run": "name",
    "forensics_dir": "folder",
    "sd_dir": "folder",
    "sd_address": "host name or address",
    "blackbox_dir": "folder",
    "summary_dir": "folder",
    "pushgateway": "address such as http://localhost:9091",
}

DetectorOptions = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class ExporterConfig:
    """How to watch and where to serve.

    Every field can be set by an environment variable of its name in capitals, prefixed with
    `TRAINING_EXPORTER_`, through `from_environ`.

    Attributes:
        run: name of the run, the label `run` of every series. Keep it the same over restarts.
            None takes the integration's own idea of it (Hugging Face: `run_name` or the name of
            the output folder), else "training".
        rank: rank of this process, the label `rank`. None takes the launcher's, else 0.
        serve: False keeps the port closed; the metrics are then in `TrainingExporter.registry`.
        address: address to listen on; the default is all interfaces, as is usual for exporters.
        port: port to listen on, of a node's first process; the others count up from it by their
            rank on the node. 0 takes any free one.
        port_tries: how many ports, from `port` on, to try when one is taken.
        profile: which detectors: "robust" (tuned on real logs) or "textbook" (published formulas).
        detectors: options of detectors by kind, such as `{"loss_spike": {"jump": 2.0}}`. In the
            environment: `loss_spike.jump=2,loss_plateau.patience=10`. See docs/detectors.md.
        ema_beta: decay of the averages of loss and gradient norm.
        max_logged_values: how many other values (logged ones, evaluation metrics) become series;
            what goes beyond is dropped and counted.
        gpu_metrics: False asks no driver of GPUs.
        gpus: which to watch: "mine", those that this process uses; "all" of the machine; or
            numbers as nvidia-smi shows them and UUIDs, separated by commas.
        gpu_interval: seconds between two readings of them.
        gpu_pcie: read PCIe throughput too, which takes the driver 40 ms for each GPU.
        peak_flops: dense FLOP/s of one GPU at the precision of the run, for the share of it that
            is used. None takes it from a table of GPUs.
        forensics: look into the first NaN or Inf, and write a report on it; see docs/forensics.md.
        forensics_dir: folder of the reports. None is `_training-exporter-reports` in the Trainer's
            output folder, or else in the working directory.
        forensics_quiet_steps: steps after a report in which there is no other of its sort.
        forensics_hooks: look at the output of every module in every forward pass of the Trainer,
            until the first report: it names the first module with a NaN, and about doubles the time
            of a forward pass.
        layer_interval: steps from one pass over the layers of the model to the next; 1 is every
            step, 0 turns it off.
        layer_grouping: what a layer is: "block" of the model, "module" in it, each "parameter", or
            "auto", modules where they are no more than `max_layers`, else blocks.
        max_layers: how many layers become series; the rest is together in "other".
        gradient_histogram_interval: steps from one count of the gradients' values by powers of two
            to the next; 0 turns it off.
        linger: at most so many seconds the process stays at its end until each scraper has seen the
            final state; it is never more than two scrape intervals. 0 leaves at once.
        ranks: which ranks serve a page: "all", "local_zero", the first of each node, or "zero", the
            first of all. The others open no port.
        sd_dir: folder in which each process that serves writes a target file for Prometheus, so
            that ports and nodes need no configuration; see docs/ranks.md. None writes none.
        sd_address: host name or address in the target file; None takes `address`, or the name of
            this host where that is all interfaces.
        blackbox_dir: folder of the black box, a small file that outlives a killed process and holds
            its last steps and counters; on a local disk. None writes none. See docs/restarts.md.
        summary_dir: folder of the run's summary, `training_exporter_summary.json`. None is the
            Trainer's output folder; a loop of your own then writes none.
        resume_state: save averages and detectors beside each checkpoint of the Trainer, and go on
            with them when a run resumes.
        pushgateway: address of a Pushgateway that gets the page at the start and at the end, for
            jobs that no Prometheus can scrape in time. None pushes nothing.
        pushgateway_cleanup: delete there what was pushed once a run has completed.
        debug_stack: show at /debug/stack where each thread of the process stands.
        strict: raise at start when the server cannot listen, instead of warning and training on.

    Raises:
        ValueError: a value outside its range; the message names the valid values.
    """

    run: str | None = None
    rank: int | None = None
    serve: bool = True
    address: str = "0.0.0.0"  # noqa: S104 - the convention of exporters
    port: int = DEFAULT_PORT
    port_tries: int = 32
    profile: str = "robust"
    detectors: DetectorOptions = field(default_factory=dict)
    ema_beta: float = 0.99
    max_logged_values: int = 200
    gpu_metrics: bool = True
    gpus: str = "mine"
    gpu_interval: float = 5.0
    gpu_pcie: bool = False
    peak_flops: float | None = None
    layer_interval: int = 10
    layer_grouping: str = "auto"
    max_layers: int = 64
    gradient_histogram_interval: int = 0
    forensics: bool = True
    forensics_dir: str | None = None
    forensics_quiet_steps: int = 1000
    forensics_hooks: bool = False
    linger: float = 30.0
    ranks: str = "all"
    sd_dir: str | None = None
    sd_address: str | None = None
    blackbox_dir: str | None = None
    summary_dir: str | None = None
    resume_state: bool = True
    pushgateway: str | None = None
    pushgateway_cleanup: bool = True
    debug_stack: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None:
            _whole("rank", self.rank, 0, 2**31)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.address, str):
            raise ValueError(f"address must be a text such as '0.0.0.0', got {self.address!r}")
        if not isinstance(self.detectors, Mapping):
            raise ValueError(f"detectors must be options by kind, got {self.detectors!r}")
        _whole("port", self.port, 0, 65535)
        _whole("port_tries", self.port_tries, 1, 1000)
        _whole("max_logged_values", self.max_logged_values, 0, 100_000)
        _whole("layer_interval", self.layer_interval, 0, 1_000_000)
        _whole("gradient_histogram_interval", self.gradient_histogram_interval, 0, 1_000_000)
        _whole("max_layers", self.max_layers, 1, 10_000)
        _number("linger", self.linger, 0, 3600)
        _number("gpu_interval", self.gpu_interval, 0.5, 3600)
        if self.peak_flops is not None:
            _number("peak_flops", self.peak_flops, 1e6, 1e18)
        _whole("forensics_quiet_steps", self.forensics_quiet_steps, 1, 10**9)
        for name, what in _TEXTS.items():
            _text_or_none(name, getattr(self, name), what)
        if self.pushgateway is not None:
            _web_address("pushgateway", self.pushgateway)
        _choice_of_gpus(self.gpus)
        _one_of("layer_grouping", self.layer_grouping, LAYER_GROUPINGS)
        _one_of("profile", self.profile, PROFILE_NAMES)
        _one_of("ranks", self.ranks, RANK_POLICIES)
        beta_is_number = isinstance(self.ema_beta, int | float) and self.ema_beta is not False
        if not beta_is_number or not 0 <= self.ema_beta < 1:
            raise ValueError(f"ema_beta must be at least 0 and below 1, got {self.ema_beta!r}")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **settings: Any) -> ExporterConfig:
        """Settings from `TRAINING_EXPORTER_*` variables; keywords win over them.

        A variable of that prefix which is not known is named in a warning, with the valid ones: it
        may be a typing error, or be meant for another version, and must not stop a training.

        Raises:
            ValueError: a value that cannot be read, naming the variable and what it can be.
            TypeError: an unknown keyword.
        """
        unknown = sorted(set(settings) - set(_READERS))
        if unknown:
            known = {name: name for name in (*_READERS, *_ARGUMENTS) if name not in unknown}
            hints = [f"unknown setting {name}; {_meant(name, known)}" for name in unknown]
            raise TypeError("; ".join(hints))
        variables = {name: f"{ENV_PREFIX}{name.upper()}" for name in _READERS}
        for variable in environ:
            if variable.startswith(ENV_PREFIX) and variable not in variables.values():
                wanted = variable.removeprefix(ENV_PREFIX).lower()
                logger.warning("unknown variable %s; %s", variable, _meant(wanted, variables))
        for name, variable in variables.items():
            text = environ.get(variable)
            if text and name not in settings:  # an empty one is how compose files say "not set"
                settings[name] = _read(variable, name, text)
                _check(cls, name, settings[name], variable)
        return cls(**settings)


def _meant(wanted: str, known: Mapping[str, str]) -> str:
    """What somebody may have wanted to write.

    Args:
        wanted: what he has written.
        known: by name of a setting, how it is written there.
    """
    from difflib import get_close_matches  # next to never needed

    close = get_close_matches(wanted, known, n=1, cutoff=0.7)
    if close:
        return f"did you mean {known[close[0]]}?"
    return f"known are {', '.join(sorted(known.values()))}"


def _check(config: type[ExporterConfig], name: str, value: Any, variable: str) -> None:
    """Refuse a value by the name of the variable that it came from."""
    try:
        config(**{name: value})
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


def _whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def _number(name: str, value: object, least: float, most: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # type: ignore[operator]  # it is a number
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {value!r}")


def _one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


def _text_or_none(name: str, value: object, what: str) -> None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise ValueError(f"{name} must be a {what} that is not empty, or None, got {value!r}")


def _web_address(name: str, value: str) -> None:
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[\w./~-]*)?", value):
        raise ValueError(f"{name} must be an address such as http://localhost:9091, got {value!r}")


def _choice_of_gpus(value: object) -> None:
    one = r"\s*(\d+(:\d+)?|(GPU|MIG)-[\w/-]+)\s*"
    valid = rf"mine|all|{one}(,{one})*"
    if not isinstance(value, str) or not re.fullmatch(valid, value):
        raise ValueError(
            f"gpus must be mine, all, or numbers and UUIDs such as 0,GPU-5f3c, got {value!r}"
        )


def _read(variable: str, name: str, text: str) -> Any:
    reader, valid = _READERS[name]
    try:
        return reader(text)
    except (ValueError, KeyError):
        raise ValueError(f"{variable} must be {valid}, got {text!r}") from None


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
        text.strip().lower()
    ]


def _detector_options(text: str) -> DetectorOptions:
    """`kind.option=number`, separated by commas."""
    options: dict[str, dict[str, float]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, value = item.split("=")
        kind, option = name.strip().split(".")
        number = float(value)
        options.setdefault(kind, {})[option] = int(number) if number.is_integer() else number
    return options


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "run": (str, "a name"),
    "rank": (int, "a whole number"),
    "serve": (_flag, "1, true, yes, 0, false or no"),
    "address": (str, "an address"),
    "port": (int, "a whole number"),
    "port_tries": (int, "a whole number"),
    "profile": (str, f"one of {', '.join(PROFILE_NAMES)}"),
    "detectors": (_detector_options, "kind.option=number, separated by commas"),
    "ema_beta": (float, "a number"),
    "max_logged_values": (int, "a whole number"),
    "gpu_metrics": (_flag, "1, true, yes, 0, false or no"),
    "gpus": (str, "mine, all, or numbers and UUIDs separated by commas"),
    "gpu_interval": (float, "a number"),
    "gpu_pcie": (_flag, "1, true, yes, 0, false or no"),
    "peak_flops": (float, "a number"),
    "forensics": (_flag, "1, true, yes, 0, false or no"),
    "forensics_dir": (str, "a folder"),
    "forensics_quiet_steps": (int, "a whole number"),
    "forensics_hooks": (_flag, "1, true, yes, 0, false or no"),
    "layer_interval": (int, "a whole number"),
    "layer_grouping": (str, f"one of {', '.join(LAYER_GROUPINGS)}"),
    "max_layers": (int, "a whole number"),
    "gradient_histogram_interval": (int, "a whole number"),
    "linger": (float, "a number"),
    "ranks": (str, f"one of {', '.join(RANK_POLICIES)}"),
    "sd_dir": (str, "a folder"),
    "sd_address": (str, "a host name or address"),
    "blackbox_dir": (str, "a folder"),
    "summary_dir": (str, "a folder"),
    "resume_state": (_flag, "1, true, yes, 0, false or no"),
    "pushgateway": (str, "an address such as http://localhost:9091"),
    "pushgateway_cleanup": (_flag, "1, true, yes, 0, false or no"),
    "debug_stack": (_flag, "1, true, yes, 0, false or no"),
    "strict": (_flag, "1, true, yes, 0, false or no"),
}
assert {entry.name for entry in fields(ExporterConfig)} == set(_READERS)
