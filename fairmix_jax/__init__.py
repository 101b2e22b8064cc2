"""Class-wise fair adversarial training in JAX: mix within the class, attack, count by class."""

__version__ = "0.1.0"
