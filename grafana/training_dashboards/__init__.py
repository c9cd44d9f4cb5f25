# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboards of the training exporter, written down once and built to JSON.

`python -m training_dashboards` writes `grafana/dashboards/*.json`. Names of metrics come from
`training_exporter.catalog`, so that a renamed one is renamed here too.
"""
