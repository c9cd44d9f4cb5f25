# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from tests.unit.forensics.events import report
from training_exporter import __version__, cli, reference
from training_exporter.catalog import ANOMALY_KINDS, CATALOG, Metric
from training_exporter.demo.plan import DEFAULT_FAULTS, FAULTS, DemoError, DemoPlan, Fault
from training_exporter.forensics.store import ReportStore
from training_exporter.terminal import USAGE_ERROR


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"})


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[DemoPlan]:
    """The runs that would have been started."""
    started: list[DemoPlan] = []

    def start(plan: DemoPlan) -> int:
        started.append(plan)
        return 0

    monkeypatch.setattr(cli, "_run", start)
    return started


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_the_commands(arguments: list[str]) -> None:
    """Also when nothing was asked for."""
    output = run(*arguments).output

    assert "demo" in output
    assert "metrics" in output


def test_help_of_the_demo_names_every_fault() -> None:
    """With what it means, and those that come of themselves."""
    result = run("demo", "--help")

    assert result.exit_code == 0
    assert all(kind in result.output and FAULTS[kind] in result.output for kind in FAULTS)
    assert ", ".join(map(str, DEFAULT_FAULTS)) in result.output


def test_version() -> None:
    """The one of the package."""
    assert run("--version").output == f"training-exporter {__version__}\n"


def test_the_command_line_loads_nothing_heavy() -> None:
    """Help and typing errors are told at once."""
    code = "import sys, training_exporter.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()

    assert not {"torch", "transformers", "numpy", "prometheus_client"} & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fault", "bang@5"], "KIND one of nan, plateau"),
        (["--fault", "nan"], "nan@STEP"),
        (["--fault", "nan@20", "--steps", "10"], "after the last step"),
        (["--fault", "nan@20", "--healthy"], "either --healthy or --fault"),
        (["--port", "70000"], "Invalid value for '--port'"),
        (["--port", "http"], "Invalid value for '--port'"),
        (["--steps", "0"], "Invalid value for '--steps'"),
        (["--linger", "-1"], "Invalid value for '--linger'"),
        (["--fake-gpus", "17"], "Invalid value for '--fake-gpus'"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    plans: list[DemoPlan], arguments: list[str], message: str
) -> None:
    """Exit code 2, what is valid is said, and nothing is trained."""
    result = run("demo", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert not plans


@pytest.mark.parametrize("module", cli.DEMO_NEEDS)
def test_a_missing_extra_is_named(
    plans: list[DemoPlan], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, module, None)

    result = run("demo")

    assert result.exit_code == 2
    assert f"the demo needs {module}" in result.stderr
    assert "pip install 'training-exporter[transformers]'" in result.stderr
    assert not plans


def test_options_become_a_plan(plans: list[DemoPlan]) -> None:
    """Each of them."""
    result = run(
        "demo", "--steps", "50", "--port", "0", "--run", "mine", "--seed", "7", "--eval-every", "9",
        "--linger", "2", "--fault", "stall@4", "--fault", "nan@3", "--fake-gpus", "2",
    )  # fmt: skip

    faults = (Fault("nan", 3), Fault("stall", 4))
    assert result.exit_code == 0
    assert plans == [
        DemoPlan(
            steps=50,
            seed=7,
            faults=faults,
            run="mine",
            port=0,
            eval_every=9,
            linger=2,
            fake_gpus=2,
        )
    ]


@pytest.mark.parametrize("option", ["--healthy", "--no-faults"])
def test_a_healthy_run_has_no_faults(plans: list[DemoPlan], option: str) -> None:
    """By either name."""
    run("demo", option)

    assert plans[0].faults == ()


def test_without_options_there_are_a_few_faults(plans: list[DemoPlan]) -> None:
    """A newcomer is to see alarms."""
    run("demo")

    assert plans == [DemoPlan(steps=cli.DEFAULT_STEPS)]
    assert plans[0].faults == DEFAULT_FAULTS
    assert plans[0].left_out == ()


def test_a_short_run_has_the_default_faults_it_has_room_for(plans: list[DemoPlan]) -> None:
    """Nobody asked for the others, so they are no error, but they are named."""
    run("demo", "--steps", str(DEFAULT_FAULTS[0].step))

    assert plans[0].faults == DEFAULT_FAULTS[:1]
    assert plans[0].left_out == DEFAULT_FAULTS[1:]


def test_a_demo_may_serve_until_ctrl_c(plans: list[DemoPlan]) -> None:
    """After its end, as in the stack."""
    run("demo", "--linger", "inf")

    assert plans[0].linger == inf


def test_a_demo_that_cannot_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the environment that cannot be read, or no text to train on."""

    def refuse(*_: object) -> int:
        raise DemoError("no [text] here")

    module = SimpleNamespace(run_demo=refuse)  # the real one takes seconds to import
    monkeypatch.setitem(sys.modules, "training_exporter.demo.run", module)

    result = run("demo")

    assert result.exit_code == 2
    assert "Error: no [text] here" in result.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_metrics_are_readable_in_any_terminal(columns: int) -> None:
    """Name, type and labels, and below them the meaning, as wide as the terminal."""
    terminal = {"COLUMNS": str(columns), "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"}
    output = re.sub("\x1b[^m]*m", "", CliRunner().invoke(cli.app, ["metrics"], env=terminal).output)
    lines = [line.rstrip() for line in output.splitlines()]

    assert max(map(len, lines)) <= columns
    at = next(i for i, line in enumerate(lines) if line.startswith("training_eval_loss "))
    assert lines[at] == "training_eval_loss  gauge by dataset"
    words = " ".join(" ".join(lines).split())
    assert all(" ".join(metric.help.split()) in words for metric in CATALOG.values())
    assert len(lines) < 5 * len(CATALOG)


def test_metrics_in_a_pipe_are_a_line_each() -> None:
    """So that grep and cut find them, whatever the width."""
    lines = run("metrics").stdout.splitlines()

    assert [line.split("\t")[0] for line in lines] == [
        metric.name for entries in reference.sections().values() for metric in entries
    ]
    loss = CATALOG["training_eval_loss"]
    assert f"training_eval_loss\tgauge\tdataset\t{loss.help}" in lines


def test_metrics_as_markdown() -> None:
    """The very text of docs/metrics.md."""
    assert run("metrics", "--markdown").stdout == reference.metrics_markdown()


def test_markdown_has_a_row_for_each_metric_and_each_kind() -> None:
    """With the values of the labels that are closed."""
    text = reference.metrics_markdown()

    assert all(f"| `{name}` | {metric.kind} |" in text for name, metric in CATALOG.items())
    assert all(text.count(f"| `{kind}` |") == 1 for kind in ANOMALY_KINDS)
    assert "`state` is one of `starting`, `running`" in text


def test_markdown_escapes_what_would_end_a_cell() -> None:
    """A help text with a bar in it stays in its cell."""
    metric = Metric("training_x", "gauge", "Either | or.", ("a",), {"a": ("1", "2")}, "Things")

    assert "| `training_x` | gauge | `a` | Either \\| or. |" in reference.metrics_markdown(
        {"x": metric}
    )


def test_a_report_is_explained(tmp_path: Path) -> None:
    """As text for a person: the cause and what to try."""
    path = ReportStore(tmp_path).save(report())

    result = run("explain", str(path))

    assert result.exit_code == 0
    assert "Likely cause" in result.output
    assert "Try first" in result.output
    assert "step 100" in result.output


def test_what_is_no_report_is_an_error_of_one_line(tmp_path: Path) -> None:
    """It names the file and says why."""
    path = tmp_path / "other.json"
    path.write_text("{}")

    result = run("explain", str(path))

    assert result.exit_code == USAGE_ERROR
    assert f"Error: {path}: this is no report of training-exporter" in result.output
    assert "Traceback" not in result.output
