"""The device openreg:0. Importing this module registers it with torch."""

from openreg_platform.tensor import register

NAME = "openreg"
LIMIT = 2**30
"""Bytes that the device has for what is allocated; results of operations lie beside it."""

MODULE = register(NAME, LIMIT)
