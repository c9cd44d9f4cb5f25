# SPDX-License-Identifier: Apache-2.0
"""The shipped files as manifests for a cluster with the Prometheus operator.

A manifest is its head and the text of a file, indented: so comments stay, nothing is parsed, and
what a cluster has is word for word what is tested here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from textwrap import indent

RULES = "alertmanager/rules/"
TEMPLATES = "alertmanager/templates/"
DASHBOARDS = "grafana/dashboards/"
ROUTES = "alertmanager/alertmanager.yml"
POD_MONITOR = "examples/kubernetes/podmonitor.yaml"

WEBHOOKS_SECRET = "training-exporter-webhooks"  # noqa: S105 - the name of a secret, not one
MOVED = {
    # The operator mounts the keys of the configuration's secret, and each secret that it is told.
    "/etc/alertmanager/templates/": "/etc/alertmanager/config/",
    "/etc/alertmanager/secrets/": f"/etc/alertmanager/secrets/{WEBHOOKS_SECRET}/",
}

KUSTOMIZATION = """\
# kubectl apply --server-side -k .
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: monitoring
# A Prometheus of kube-prometheus-stack takes what has the name of its Helm release:
# labels:
#   - pairs:
#       release: kube-prometheus-stack
resources:
"""


def plain_files(shipped: Mapping[str, str]) -> Mapping[str, str]:
    """Path -> text, for programs that are configured by files."""
    return {path: text for path, text in shipped.items() if path != POD_MONITOR}


def kubernetes_files(shipped: Mapping[str, str]) -> Mapping[str, str]:
    """Name of a manifest -> its text, made from path in the repository -> text."""
    manifests = {
        **{f"rules-{_stem(p)}.yaml": _prometheus_rule(p, shipped[p]) for p in _in(shipped, RULES)},
        **{
            f"dashboard-{_stem(p)}.yaml": _dashboard(p, shipped[p])
            for p in _in(shipped, DASHBOARDS)
        },
        "alertmanager-secret.yaml": _alertmanager_secret(shipped),
        "podmonitor.yaml": shipped[POD_MONITOR],
    }
    resources = "".join(f"  - {name}\n" for name in sorted(manifests))
    return {**manifests, "kustomization.yaml": KUSTOMIZATION + resources}


def _in(shipped: Mapping[str, str], folder: str) -> Iterable[str]:
    return [path for path in shipped if path.startswith(folder)]


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _head(api: str, kind: str, name: str, labels: Mapping[str, str]) -> str:
    pairs = {"app.kubernetes.io/part-of": "training-exporter", **labels}
    return f"apiVersion: {api}\nkind: {kind}\nmetadata:\n  name: {name}\n  labels:\n" + "".join(
        f"    {label}: {json.dumps(value)}\n" for label, value in pairs.items()
    )


def _prometheus_rule(path: str, text: str) -> str:
    # The labels are those that the Prometheus of kube-prometheus has long asked for.
    head = _head(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        f"training-exporter-{_stem(path)}",
        {"prometheus": "k8s", "role": "alert-rules"},
    )
    return f"{head}spec:\n{indent(text, '  ')}"


def _dashboard(path: str, text: str) -> str:
    name = f"training-exporter-dashboard-{_stem(path)}"
    head = _head("v1", "ConfigMap", name, {"grafana_dashboard": "1"})
    return f"{head}data:\n{_block(PurePosixPath(path).name, text)}"


def _alertmanager_secret(shipped: Mapping[str, str]) -> str:
    routes = shipped[ROUTES]
    for old, new in MOVED.items():
        routes = routes.replace(old, new)
    templates = {PurePosixPath(p).name: shipped[p] for p in _in(shipped, TEMPLATES)}
    head = _head("v1", "Secret", "training-exporter-alertmanager", {})
    keys = {"alertmanager.yaml": routes, **templates}
    return f"{head}stringData:\n" + "".join(_block(key, text) for key, text in keys.items())


def _block(key: str, text: str) -> str:
    """A key with a text of several lines that begins at the margin and ends in one newline."""
    body = indent(text.rstrip() + "\n", "    ")
    return f"  {key}: |\n{body}"
