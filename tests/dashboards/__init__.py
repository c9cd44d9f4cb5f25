# SPDX-License-Identifier: Apache-2.0
"""A lint for dashboards: what their JSON must hold before a person opens them."""

from tests.dashboards import dashboard_rules, panel_rules, query_rules
from tests.dashboards.rules import RULES

__all__ = ["RULES", "dashboard_rules", "panel_rules", "query_rules"]
