"""Adversarial weight perturbation: the gradient is taken at weights moved against it."""

import jax
import jax.numpy as jnp

from fairmix_jax.runtime.inputs import as_single
from fairmix_jax.types import Array, Params, Source

SOURCE = Source("Wu et al. 2020, arXiv 2004.05884", "csdongxian/AWP", "MIT")


def perturb(params: Params, gradient: Params, *, gamma: Array | float) -> Params:
    """Returns `w + gamma ||w|| g / ||g||` for every weight tensor of a layer.

    Tensors of one dimension (biases, normalisation) and those without gradient stay. The original
    takes a step of plain gradient ascent on a copy of the network and rescales the difference; its
    learning rate cancels. The published `gamma` is 0.01 for PGD-AT, 0.005 for TRADES.
    """

    def one(weight: Array, gradient: Array) -> Array:
        if weight.ndim < 2:
            return weight
        wide, gradient = as_single(weight), as_single(gradient)
        length = jnp.linalg.norm(gradient.ravel())
        factor = gamma * jnp.linalg.norm(wide.ravel()) / (length + 1e-20)
        return (wide + factor * gradient).astype(weight.dtype)

    return jax.tree.map(one, params, gradient)
