# SPDX-License-Identifier: Apache-2.0
"""Runs the tests that hold for all supported releases of transformers on the older ones, too.

Each release goes, with the few packages it needs in another version, into a folder that lies before
the environment on the path; all else, torch and accelerate among it, is the environment's.

    python tests/matrix/run.py [RELEASE ...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent.parent
OVERLAYS = ROOT / "build" / "matrix"
TESTS = tuple(f"tests/integration/test_{name}.py" for name in ("trainer_versions", "nan_forensics"))

# The newer datasets needs a newer huggingface-hub than Transformers 4 can bear.
OVERLAY_OF = {
    "4.46.3": (
        "tokenizers==0.20.3",
        "huggingface-hub==0.36.2",
        "datasets==4.0.0",
        "trl==0.12.2",
    ),
    "4.57.6": ("tokenizers==0.22.2", "huggingface-hub==0.36.2", "datasets==4.0.0"),
    "5.0.0": ("tokenizers==0.22.2", "huggingface-hub==1.33.0"),
}
NEWEST = version("transformers")


class Outcome(NamedTuple):
    """How a test ended: "pass", "fail" or "skip", and why."""

    word: str
    reason: str = ""


def overlay(release: str) -> Path | None:
    """The folder of a release, made when it is not there; None for the environment's own."""
    if release == NEWEST:
        return None
    wanted = (f"transformers=={release}", *OVERLAY_OF[release])
    folder, done = OVERLAYS / release, OVERLAYS / f"{release}.txt"
    if not done.exists() or done.read_text() != "\n".join(wanted):
        print(f"installing {', '.join(wanted)}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", str(folder), *wanted], check=True)
        done.write_text("\n".join(wanted))
    return folder


def outcomes(release: str) -> dict[str, Outcome]:
    """The tests' outcomes on a release, by name."""
    folder, report = overlay(release), OVERLAYS / f"{release}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    environ = {**os.environ, "MATRIX_RELEASE": release}
    if folder is not None:
        environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (str(folder), environ.get("PYTHONPATH")))
        )
    # What an old release warns of is its own business; on the newest, warnings are errors.
    quiet = [] if folder is None else ["-W", "ignore"]
    command = [sys.executable, "-m", "pytest", *TESTS, "-q", "-p", "no:cacheprovider", *quiet]
    print(f"\ntransformers {release}", flush=True)
    status = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=environ).returncode
    if not report.exists():
        return {"(all)": Outcome("fail", f"pytest ended with status {status}")}
    return {
        case.get("name", ""): _outcome(case) for case in ElementTree.parse(report).iter("testcase")
    }


def _outcome(case: ElementTree.Element) -> Outcome:
    for word, tags in {"fail": ("failure", "error"), "skip": ("skipped",)}.items():
        for tag in tags:
            found = case.find(tag)
            if found is not None:
                return Outcome(word, found.get("message", ""))
    return Outcome("pass")


def show(results: dict[str, dict[str, Outcome]]) -> None:
    """One table, tests by releases, and under it the reasons."""
    names = list(dict.fromkeys(name for tests in results.values() for name in tests))
    width = max(map(len, names), default=0)
    print(f"\n{'':{width}}", *(f"{release:>8}" for release in results))
    for name in names:
        words = (tests.get(name, Outcome("-")).word for tests in results.values())
        print(f"{name:{width}}", *(f"{word:>8}" for word in words))
    for release, tests in results.items():
        for name, outcome in tests.items():
            if outcome.reason:
                reason = outcome.reason.splitlines()[0][:200]
                print(f"{outcome.word} on {release}: {name}: {reason}")


def main(releases: list[str]) -> int:
    """0 when every test passed or was skipped for a reason on every release."""
    known = (*OVERLAY_OF, NEWEST)
    unknown = set(releases) - set(known)
    if unknown:
        print(f"known releases are {', '.join(known)}, not {', '.join(sorted(unknown))}")
        return 2
    started = perf_counter()
    results = {release: outcomes(release) for release in releases or known}
    show(results)
    print(f"{perf_counter() - started:.0f} s")
    passed = all(
        tests and all(outcome.word != "fail" for outcome in tests.values())
        for tests in results.values()
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
