# SPDX-License-Identifier: Apache-2.0
"""Which of a run's processes this one is: by launcher, as each really sets its variables."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import pytest

from training_exporter import TrainingExporter
from training_exporter.config import RANK_POLICIES
from training_exporter.lifecycle.ranks import ALONE, Placement, first_port, placement, serves

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2", "WORLD_SIZE": "8"}
BY_TORCHRUN = Placement(rank=5, local_rank=1, node=2, world_size=8)
SRUN = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
}  # fmt: skip
BY_SRUN = Placement(rank=3, local_rank=1, node=1, world_size=4)
BATCH_SCRIPT = {
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "8",
}  # fmt: skip
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_NODE_RANK": "7", "OMPI_COMM_WORLD_SIZE": "4",
}  # fmt: skip
BY_MPIRUN = Placement(rank=2, local_rank=0, node=None, world_size=4)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, ALONE, id="no launcher"),
        pytest.param(TORCHRUN, BY_TORCHRUN, id="torchrun and accelerate"),
        pytest.param(SRUN, BY_SRUN, id="srun"),
        pytest.param(MPIRUN, BY_MPIRUN, id="mpirun, whose NODE_RANK is no node's"),
        pytest.param(SRUN | TORCHRUN, BY_TORCHRUN, id="torchrun in srun"),
        pytest.param(BATCH_SCRIPT | MPIRUN, BY_MPIRUN, id="mpirun in sbatch"),
        pytest.param(SRUN | MPIRUN, BY_MPIRUN, id="mpirun whose daemons srun has started"),
        pytest.param(BATCH_SCRIPT, ALONE, id="python in an sbatch script, without srun"),
        pytest.param({"SLURM_NTASKS": "8"}, ALONE, id="python in an salloc shell"),
        pytest.param(
            SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Placement(0, 0, 1, 1),
            id="srun -n1 in a larger job",
        ),
        pytest.param(
            {"RANK": "1", "WORLD_SIZE": "2"}, Placement(1, 0, None, 2), id="a pod of Kubeflow"
        ),
        pytest.param({"RANK": "1"}, Placement(1, 0, None, None), id="a rank and nothing else"),
    ],
)
def test_launchers(environ: Mapping[str, str], expected: Placement) -> None:
    """Each says it in variables of its own, and leaves those of whoever started it as they are."""
    assert placement(environ) == expected


@pytest.mark.parametrize(
    "broken",
    [
        {"RANK": "two"},
        {"RANK": "-1"},
        {"RANK": "1.0"},
        {"RANK": "²"},
        {"RANK": "9" * 5000},
        {"RANK": "8"},
        {"WORLD_SIZE": "0"},
        {"LOCAL_RANK": "x"},
        {"GROUP_RANK": "x"},
        {"WORLD_SIZE": "many"},
        {"RANK": ""},
    ],
)
def test_numbers_that_make_no_sense_are_passed_over(broken: Mapping[str, str]) -> None:
    """For the next launcher that has sensible ones, or for none."""
    assert placement(TORCHRUN | broken) == ALONE
    assert placement(TORCHRUN | broken | SRUN) == BY_SRUN


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_is_none(empty: str) -> None:
    """As shells leave them that pass on what they do not have."""
    environ = {"RANK": " 1 ", "LOCAL_RANK": empty, "GROUP_RANK": empty, "WORLD_SIZE": empty}

    assert placement(environ) == Placement(1, 0, None, None)


@pytest.mark.parametrize(
    ("policy", "serving"),
    [
        ("all", {(0, 0), (1, 1), (2, 0), (3, 1)}),
        ("local_zero", {(0, 0), (2, 0)}),
        ("zero", {(0, 0)}),
    ],
)
def test_who_serves(policy: str, serving: set[tuple[int, int]]) -> None:
    """On two nodes with two processes each."""
    processes = {(0, 0), (1, 1), (2, 0), (3, 1)}

    assert policy in RANK_POLICIES
    assert {each for each in processes if serves(policy, Placement(*each))} == serving


def test_every_policy_is_in_the_table_and_the_first_process_always_serves() -> None:
    """Or nobody would be seen."""
    assert all(serves(policy, ALONE) for policy in RANK_POLICIES)
    assert len(RANK_POLICIES) == 3


@pytest.mark.parametrize(
    ("port", "local_rank", "first"),
    [(10400, 0, 10400), (10400, 3, 10403), (0, 3, 0), (65535, 2, 65535), (10400, 10**8, 65535)],
)
def test_each_rank_of_a_node_has_a_port_of_its_own(port: int, local_rank: int, first: int) -> None:
    """Any free port stays any free port, and there is none beyond the highest."""
    assert first_port(port, Placement(7, local_rank)) == first


@pytest.fixture
def free_ports() -> int:
    """The first of three ports in a row that are free."""
    for port in range(20000, 60000, 7):
        try:
            for taken in range(port, port + 3):
                socket.create_server(("127.0.0.1", taken)).close()
        except OSError:
            continue
        return port
    pytest.fail("no three free ports in a row")


def launched(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> TrainingExporter:
    """An exporter in the second process of the second node."""
    for name, value in (TORCHRUN | {"RANK": "3", "GROUP_RANK": "1", "WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(name, value)
    return TrainingExporter(address="127.0.0.1", linger=0, **settings)


def test_a_rank_serves_at_its_own_port(
    monkeypatch: pytest.MonkeyPatch, free_ports: int, logs: pytest.LogCaptureFixture
) -> None:
    """Though the first rank has not come yet, and that is nothing to warn of."""
    exporter = launched(monkeypatch, port=free_ports).start()
    port = exporter.port
    exporter.close()

    assert port == free_ports + 1
    assert [record.levelname for record in logs.records] == ["INFO"]


def test_a_rank_whose_port_is_taken_serves_at_the_next(
    monkeypatch: pytest.MonkeyPatch, free_ports: int, logs: pytest.LogCaptureFixture
) -> None:
    """The warning names the port that it would have had."""
    with socket.create_server(("127.0.0.1", free_ports + 1)):
        exporter = launched(monkeypatch, port=free_ports).start()
        port = exporter.port
        exporter.close()

    assert port == free_ports + 2
    assert f"port {free_ports + 1} is taken; serving training metrics on" in logs.text


def test_a_rank_takes_over_its_own_port_from_a_finished_run(
    monkeypatch: pytest.MonkeyPatch, free_ports: int
) -> None:
    """As without ranks, in a notebook."""
    with launched(monkeypatch, port=free_ports) as first:
        pass
    second = launched(monkeypatch, port=free_ports).start()
    ports = first.port, second.port
    second.close()

    assert ports == (None, free_ports + 1)


def test_an_integration_knows_better_than_the_launcher(
    monkeypatch: pytest.MonkeyPatch, free_ports: int
) -> None:
    """As long as it tells before the page opens."""
    exporter = launched(monkeypatch, port=free_ports)
    exporter.identify(rank=1, local_rank=2)
    exporter.start()
    port = exporter.port
    exporter.close()

    assert port == free_ports + 2


@pytest.mark.parametrize(
    ("policy", "told", "is_served"),
    [
        ("all", {}, True),
        ("local_zero", {}, False),
        ("local_zero", {"local_rank": 0}, True),
        ("zero", {"local_rank": 0}, False),
        ("zero", {"rank": 0}, True),
    ],
)
def test_only_who_is_meant_to_opens_a_port(
    monkeypatch: pytest.MonkeyPatch, policy: str, told: dict[str, int], is_served: bool
) -> None:
    """By what the launcher said, or an integration."""
    exporter = launched(monkeypatch, port=0, ranks=policy)
    exporter.identify(**told)  # type: ignore[arg-type]
    exporter.start()
    served = exporter.port is not None
    exporter.close()

    assert served is is_served


def test_every_series_has_the_rank_and_one_has_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that the user has set wins, and is what a policy goes by."""
    exporter = launched(monkeypatch, serve=False)
    set_by_user = launched(monkeypatch, port=0, rank=0, ranks="zero")

    described = _run_info(exporter)
    assert described["rank"] == "3"
    assert (described["local_rank"], described["node"]) == ("1", "1")
    assert described["world_size"] == "4"
    assert _run_info(set_by_user)["rank"] == "0"
    assert set_by_user.start().port is not None
    set_by_user.close()


def test_what_a_launcher_does_not_say_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not made up: a rank may be all there is."""
    monkeypatch.setenv("RANK", "1")
    described = _run_info(TrainingExporter(serve=False))

    assert (described["node"], described["world_size"]) == ("", "")
    monkeypatch.delenv("RANK")
    described = _run_info(TrainingExporter(serve=False))
    assert [described[name] for name in ("rank", "local_rank", "node", "world_size")] == [
        "0", "0", "0", "1",
    ]  # fmt: skip


def _run_info(exporter: TrainingExporter) -> Mapping[str, str]:
    (family,) = [each for each in exporter.registry.collect() if each.name == "training_run_info"]
    (sample,) = family.samples
    return sample.labels
