# SPDX-License-Identifier: Apache-2.0
"""The layers of a model: their names, and what a pass over the parameters says of each."""
