"""The attack inside the training step: PGD with what training papers differ in."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.adopt import adopt
from fairmix_jax.attacks.losses import Objective, cross_entropy, objective
from fairmix_jax.attacks.pgd import pgd
from fairmix_jax.attacks.projections import project, random_offset, steepest_direction
from fairmix_jax.types import Array, BatchStats, Key, StepInput, ThreatModel

Network = Callable[..., tuple[Array, BatchStats]]
"""`(images [B, H, W, C], *, train) -> (logits [B, K], batch_stats)`: bound parameters."""

_CHOICES = {
    "attack.batch_norm": ("eval", "train"),
    "base.start": ("uniform", "normal", "none"),
}


@dataclasses.dataclass(frozen=True)
class TrainingAttack:
    """Projected gradient ascent with the radius and step size of each example's class.

    Attributes:
      threat: norm, radius, pixel bounds.
      num_steps: at least 0.
      step_size: in pixel units.
      batch_norm: `"eval"` normalises with running statistics, so that no example influences
        another; `"train"` with those of the batch under attack, as Rice et al. 2020 (arXiv
        2002.11569) and Wong et al. 2020 do: the ascent is then on the batch's summed loss.
        Neither writes running statistics.
      start: `"uniform"` in the ball, `"normal"`, or `"none"`, at the image itself.
      start_fraction: the part of the radius that a uniform start fills.
      noise: the standard deviation of a normal start, in pixel units.
      targets: `(key, probabilities, labels) -> [B]`, see `types.Rule`.

    Raises:
      ValueError: unknown `batch_norm` or `start`.
    """

    threat: ThreatModel
    num_steps: int
    step_size: float
    batch_norm: str = "eval"
    start: str = "uniform"
    start_fraction: float = 1.0
    noise: float = 0.001
    targets: Callable[[Key, Array, Array], Array] | None = None

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field.split(".")[1])
            if value not in choices:
                raise ValueError(f"{field}={value!r} is unknown; choose {', '.join(choices)}")

    def __call__(
        self,
        network: Network,
        key: Key,
        inputs: StepInput,
        *,
        loss: str | Objective = "ce",
        compare: Any = None,
    ) -> Array:
        """Returns adversarial images `[B, H, W, C]` that ascend `loss(logits [K], target)`.

        They lie within `inputs.radius * epsilon` of `inputs.images` and in the bounds; a
        factor of zero returns the images.

        Args:
          network: the model with its parameters and running statistics.
          key: the key is consumed.
          inputs: images, targets, labels, and the factors of radius and step size.
          loss: see `attacks.pgd`.
          compare: what `loss` compares with, leading `B`; `inputs.targets` if `None`.
        """
        loss, compare = objective(loss), inputs.targets if compare is None else compare
        if self.targets is not None:
            target_key, key = jax.random.split(key)
            if inputs.index is not None:  # a part of a batch, with the key of the whole
                target_key = jax.random.fold_in(target_key, inputs.index[0])
            probabilities = jax.nn.softmax(network(inputs.images, train=False)[0])
            loss, compare = (
                _towards(loss),
                (compare, self.targets(target_key, probabilities, inputs.labels)),
            )

        def logits_fn(images: Array) -> Array:
            return network(images, train=self.batch_norm == "train")[0]

        run = pgd if self.batch_norm == "eval" else _coupled_pgd
        return run(
            logits_fn,
            key,
            inputs.images,
            inputs.labels,
            threat=self.threat,
            num_steps=self.num_steps,
            step_size=self.step_size,
            loss=loss,
            start=self._starts(key, inputs),
            targets=compare,
            scale=inputs.radius,
            step_scale=inputs.step_size,
        )

    def _starts(self, key: Key, inputs: StepInput) -> Array:
        def one(key: Key, image: Array, radius: Array) -> Array:
            if self.start == "none":
                return image
            if self.start == "normal":
                return image + self.noise * jax.random.normal(key, image.shape, image.dtype)
            epsilon = self.start_fraction * radius * self.threat.epsilon
            offset = random_offset(key, image.shape, norm=self.threat.norm, epsilon=epsilon)
            return image + offset.astype(image.dtype)

        index = jnp.arange(len(inputs.images)) if inputs.index is None else inputs.index
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 0), index)
        return jax.vmap(one)(keys, inputs.images, inputs.radius)


def _towards(loss: Objective) -> Objective:
    """`loss`, or where a class is given to move to, minus the cross-entropy of that class."""

    def either(logits: Array, compare: Any) -> Array:
        own, towards = compare
        targeted = -cross_entropy(logits, jnp.maximum(towards, 0))
        return jnp.where(towards < 0, loss(logits, own), targeted)

    return either


def _coupled_pgd(
    logits_fn, key: Key, images: Array, labels: Array, *, threat: ThreatModel, num_steps: int,
    step_size: float, loss: Objective, start: Array, targets: Any, scale: Array, step_scale: Array,
) -> Array:  # fmt: skip
    """As `pgd`, for networks in which examples influence each other."""
    del key, labels

    def total(x: Array) -> Array:
        return jnp.sum(jax.vmap(loss)(adopt(logits_fn)(x), targets))

    def inside(x: Array, image: Array, scale: Array) -> Array:
        epsilon = scale * threat.epsilon
        return project(x, image, norm=threat.norm, epsilon=epsilon, bounds=threat.bounds)

    def move(x: Array, gradient: Array, image: Array, scale: Array, step_scale: Array) -> Array:
        direction = steepest_direction(gradient, threat.norm)
        return inside(x + step_scale * step_size * direction, image, scale)

    def step(_, x: Array) -> Array:
        return jax.vmap(move)(x, jax.grad(total)(x), images, scale, step_scale)

    first = jax.vmap(inside)(start, images, scale)
    return lax.stop_gradient(lax.fori_loop(0, num_steps, step, first))
