# SPDX-License-Identifier: Apache-2.0
"""What the exporter costs, each time beside a peer in the same run.

`make bench` runs all of them; `python -m benchmarks NAME` runs one. Times depend on the machine,
so look at the ratios.
"""
