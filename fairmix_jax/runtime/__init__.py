"""The ground of the other rooms: processes, devices, signals, errors, console, files, members."""

# Here, since a user's own folder `fairmix_jax` on Python's path can hide the package's `__init__`.
VERSION = "0.2.0"
