# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: the metrics page for Prometheus, the landing page for a person."""
