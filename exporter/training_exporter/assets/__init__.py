# SPDX-License-Identifier: Apache-2.0
"""What belongs into other programs: rules, routes, templates, dashboards, written into a folder."""

from __future__ import annotations

from types import MappingProxyType

from training_exporter.assets.kubernetes import kubernetes_files, plain_files
from training_exporter.assets.shipped import shipped_files
from training_exporter.assets.writing import AssetsError, write_files

FORMATS = MappingProxyType({"files": plain_files, "kubernetes": kubernetes_files})
"""Name -> what makes of the shipped files those to write: the same in the same folders, or
manifests."""

__all__ = ["FORMATS", "AssetsError", "shipped_files", "write_files"]
