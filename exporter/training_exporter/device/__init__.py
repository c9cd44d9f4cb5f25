# SPDX-License-Identifier: Apache-2.0
"""The values of a step on their way from the device to the host; nobody waits for the device."""
