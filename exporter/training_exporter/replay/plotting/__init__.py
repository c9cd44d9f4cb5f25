# SPDX-License-Identifier: Apache-2.0
"""A past run as a picture. Only `marks`, `panels` and `figure` need matplotlib."""
