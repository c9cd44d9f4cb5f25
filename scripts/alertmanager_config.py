# SPDX-License-Identifier: Apache-2.0
"""Derives the Alertmanager configuration that runs from the one in the repository.

The committed file is for a current Alertmanager whose templates and secrets lie below
/etc/alertmanager. What is derived from it suits the folders, the secrets and the Alertmanager that
are there:

- paths lead to the given folders;
- messages have a link to the dashboard if the address of Grafana is given;
- a notifier whose secret is missing or empty is left out, so that nothing fails to be sent all
  day; alerts stay visible on Alertmanager's page;
- where an older Alertmanager cannot read a certain secret from a file, it is written into the
  derived file, which is private (mode 0600) for that reason.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

COMMITTED = Path(__file__).parent.parent / "alertmanager"
COMMITTED_TEMPLATES = "/etc/alertmanager/templates"
COMMITTED_SECRETS = "/etc/alertmanager/secrets"

SECRET_FILES = {
    "SLACK_WEBHOOK_URL": "slack_webhook_url",
    "DISCORD_WEBHOOK_URL": "discord_webhook_url",
}
"""Environment variable -> name of the file that holds its value."""

Version = tuple[int, ...]
CURRENT: Version = (0, 28)

FIRST_READ_FROM_FILE: dict[tuple[str, str], Version] = {
    ("discord_configs", "webhook_url_file"): (0, 28),  # known to 0.27, which does not obey it
    ("webhook_configs", "url_file"): (0, 26),
}
"""Which Alertmanager first takes this secret from a file; all others are older than 0.25."""

PRIVATE = 0o600
SHARED = 0o644


class ConfigError(Exception):
    """Something that the user has to put right; the message is one line without any secret."""


def derive(
    config: Mapping[str, Any],
    *,
    secrets: Path,
    templates: str,
    secrets_as_seen: str | None = None,
    version: Version = CURRENT,
    grafana_url: str | None = None,
) -> dict[str, Any]:
    """The configuration with paths, notifiers and secrets as they are here.

    `secrets` is read now; `templates` and `secrets_as_seen` (default: `secrets`) are the folders
    under the names that Alertmanager knows them by, which differ in a container. `grafana_url` is
    where Grafana is for whoever reads a message; without it, messages have no link to a dashboard.

    Raises ConfigError where a secret or `grafana_url` is no http(s) address.
    """
    seen = secrets_as_seen or str(secrets.resolve())
    derived = dict(config)
    derived["templates"] = [
        moved(path, COMMITTED_TEMPLATES, templates) for path in config.get("templates", [])
    ]
    derived["receivers"] = [
        receiver_here(receiver, secrets, seen, version) for receiver in config["receivers"]
    ]
    if grafana_url:
        link_dashboards(derived["receivers"], grafana_url)
    return derived


def link_dashboards(receivers: list[dict[str, Any]], grafana_url: str) -> None:
    """Defines the empty "training.dashboard" of common.tmpl anew, before each of our texts."""
    check_address(grafana_url, "--grafana-url")
    if re.search(r"""[<>|(){}"'`$\\]""", grafana_url):
        raise ConfigError("--grafana-url is not an address: it has a character that ends a link")
    address = f'(reReplaceAll "^https?://[^/]+" "{grafana_url.rstrip("/")}" (index . 1))'
    link = f'{{{{ index . 0 }}}}{{{{ template "training.url" {address} }}}}{{{{ index . 2 }}}}'
    definition = f'{{{{ define "training.dashboard" }}}}{link}{{{{ end }}}}'
    kinds = [r[key] for r in receivers for key in r if key.endswith("_configs")]
    for notifier in (notifier for kind in kinds for notifier in kind):
        for key in ("text", "message"):
            if 'template "training.' in notifier.get(key, ""):
                notifier[key] = definition + notifier[key]


def receiver_here(
    receiver: Mapping[str, Any], secrets: Path, seen: str, version: Version
) -> dict[str, Any]:
    """The receiver without the notifiers that have no secret; its name stays, routes lead to it."""
    here: dict[str, Any] = {}
    for key, value in receiver.items():
        if not key.endswith("_configs"):
            here[key] = value
            continue
        notifiers = [n for n in value if has_its_secrets(n, secrets)]
        if notifiers:
            here[key] = [notifier_here(key, n, secrets, seen, version) for n in notifiers]
    return here


def secret_files(notifier: Mapping[str, Any]) -> dict[str, str]:
    """Key -> name of the file, for each secret of this notifier."""
    prefix = f"{COMMITTED_SECRETS}/"
    return {
        key: value.removeprefix(prefix)
        for key, value in notifier.items()
        if key.endswith("_file") and isinstance(value, str) and value.startswith(prefix)
    }


def has_its_secrets(notifier: Mapping[str, Any], secrets: Path) -> bool:
    """Whether every file that it names is there and says something."""
    return all(read_secret(secrets / name) for name in secret_files(notifier).values())


def notifier_here(
    kind: str, notifier: Mapping[str, Any], secrets: Path, seen: str, version: Version
) -> dict[str, Any]:
    """The notifier with its secrets where they are, or their text for an older Alertmanager."""
    here = dict(notifier)
    for key, name in secret_files(notifier).items():
        secret = read_secret(secrets / name)
        if key.endswith("url_file"):
            check_address(secret, name)
        if version >= FIRST_READ_FROM_FILE.get((kind, key), (0,)):
            here[key] = f"{seen}/{name}"
        else:
            del here[key]
            here[key.removesuffix("_file")] = secret
    return here


def moved(path: str, old: str, new: str) -> str:
    """The path below the new folder, if it lay below the old one."""
    return f"{new}{path.removeprefix(old)}" if path.startswith(f"{old}/") else path


def read_secret(path: Path) -> str:
    """What the file says, without the newline that editors add; "" if there is no such file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}") from None


def check_address(address: str, name: str) -> None:
    """Refuses what is no address, without saying what it is: it may be a secret all the same."""
    try:
        parts = urlsplit(address)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        fine = False
    if not fine or re.search(r"\s", address):
        raise ConfigError(f"{name} is not an address: it must begin with https:// (or http://)")


def secrets_from_environment(
    environ: Mapping[str, str], secrets: Path, mode: int = PRIVATE
) -> list[Path]:
    """Writes the addresses that the environment has into files; returns them.

    A variable that is unset or empty leaves its file as it is. All are checked before any is
    written.
    """
    given = {name: environ.get(name, "").strip() for name in SECRET_FILES}
    given = {name: address for name, address in given.items() if address}
    for name, address in given.items():
        check_address(address, name)
    if not given:
        return []
    secrets.mkdir(parents=True, exist_ok=True, mode=0o755 if mode == SHARED else 0o700)
    written = [(secrets / SECRET_FILES[name], address) for name, address in given.items()]
    for path, address in written:
        write(path, f"{address}\n", mode)
    return [path for path, _ in written]


def write(path: Path, text: str, mode: int = PRIVATE) -> None:
    """Replaces the file in one step; it never exists with more rights than `mode`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(handle, mode)  # whatever the umask
        file.write(text)
    draft.replace(path)


def parse_version(text: str) -> Version:
    """(0, 25, 0) of `0.25.0`, `v0.25` or the output of `alertmanager --version`."""
    found = re.search(r"\bv?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found is None:
        raise ConfigError(f"no version in {text.strip()[:60]!r}; give one such as 0.28.1")
    return tuple(int(part) for part in found.groups() if part is not None)


def version_of(binary: str | Path) -> Version:
    """The version of an Alertmanager on this machine."""
    said = subprocess.run(  # noqa: S603 - the program that is about to be started anyway
        [binary, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    return parse_version(said.stdout or said.stderr)


def load(path: Path) -> dict[str, Any]:
    """The configuration in a file."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be used: {error}".splitlines()[0]) from None


def as_text(config: Mapping[str, Any]) -> str:
    """YAML, without the anchors that PyYAML would write for what occurs twice."""
    dumper = type("PlainDumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump(dict(config), Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


def notifier_names(config: Mapping[str, Any]) -> list[str]:
    """Which kinds of notifier are left, such as ["discord", "slack"]."""
    keys = {key for receiver in config["receivers"] for key in receiver}
    return sorted(key.removesuffix("_configs") for key in keys if key.endswith("_configs"))


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description="Write the Alertmanager configuration to run.")
    add = options.add_argument
    add("--output", type=Path, required=True, help="file to write")
    add("--config", type=Path, default=COMMITTED / "alertmanager.yml", help="file to start from")
    add("--secrets", type=Path, required=True, help="folder with a file for each secret")
    add("--templates", default=str(COMMITTED / "templates"), help="folder, as Alertmanager sees it")
    add("--secrets-as-seen", help="--secrets as Alertmanager sees it; default: the same")
    add("--grafana-url", help="Grafana with our dashboards; messages then have a link to them")
    add("--alertmanager-version", default="0.28", help="such as 0.25.0; default: 0.28 or newer")
    add("--from-environment", action="store_true", help=f"first write {', '.join(SECRET_FILES)}")
    add("--shared", action="store_true", help="mode 0644: Alertmanager runs as another user")
    return options


def run(arguments: list[str], environ: Mapping[str, str]) -> str:
    """Does what the options say; returns a line about it."""
    options = parser().parse_args(arguments)
    mode = SHARED if options.shared else PRIVATE
    if options.from_environment:
        secrets_from_environment(environ, options.secrets, mode)
    derived = derive(
        load(options.config),
        secrets=options.secrets,
        templates=options.templates,
        secrets_as_seen=options.secrets_as_seen,
        version=parse_version(options.alertmanager_version),
        grafana_url=options.grafana_url,
    )
    write(options.output, as_text(derived), mode)
    names = " and ".join(notifier_names(derived)) or "Alertmanager's page only (no secret is set)"
    return f"{options.output}: alerts go to {names}"


def main() -> int:
    """Prints one line: what was written, or what is wrong."""
    try:
        print(run(sys.argv[1:], os.environ))
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
