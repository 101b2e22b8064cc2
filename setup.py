"""Puts `configs/`, which lies beside the package in a clone, into wheels as `lab/configs`."""

from setuptools import find_namespace_packages, setup

configs = [f"fairmix_jax.lab.{name}" for name in find_namespace_packages(include=["configs*"])]
setup(
    packages=[*find_namespace_packages(include=["fairmix_jax*"]), *configs],
    package_dir={"fairmix_jax.lab.configs": "configs"},
)
