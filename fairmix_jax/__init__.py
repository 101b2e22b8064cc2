"""Class-wise fair adversarial training in JAX: mix within the class, attack, count by class.

A folder `fairmix_jax/rules` (or `bases`, `averaging`, `models`, `data`) anywhere on Python's
path adds its files to the members found by name, so that a new one needs no change here.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
