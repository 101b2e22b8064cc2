"""The version, in a module of its own.

A folder `fairmix_jax` of a user's own on Python's path can hide the package's `__init__`, which
has it too, but not its modules.
"""

VERSION = "0.2.0"
