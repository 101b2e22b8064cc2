"""The attack inside the training step: PGD with what training papers differ in."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.attacks.losses import Objective, cross_entropy, objective
from fairmix_jax.attacks.pgd import pgd
from fairmix_jax.attacks.projections import project, random_offset, steepest_direction
from fairmix_jax.models.rewrite_convolutions import rewrite_convolutions
from fairmix_jax.types import Array, BatchStats, Key, LogitsFn, StepInput, ThreatModel

Network = Callable[..., tuple[Array, BatchStats]]
"""`(images [B, H, W, C], *, train) -> (logits [B, K], batch_stats)`: bound parameters."""

Start = Literal["uniform", "normal", "none"]
_CHOICES = {"attack.batch_norm": ("eval", "train"), "base.start": get_args(Start)}


@dataclasses.dataclass(frozen=True)
class TrainingAttack:
    """Projected gradient ascent with the radius and step size of each example's class.

    With `batch_norm="eval"` running statistics normalise, so that no example influences another;
    with `"train"` those of the batch under attack, as Rice et al. 2020 (arXiv 2002.11569) and Wong
    et al. 2020 do: the ascent is then on the batch's summed loss. Neither writes statistics.
    """

    threat: ThreatModel
    num_steps: int  # no step at all is allowed
    step_size: float  # as in `attacks.pgd`
    batch_norm: str = "eval"
    start: str = "uniform"  # in the ball, or `"normal"`, or `"none"`, at the image itself
    start_fraction: float = 1.0  # the part of the radius that a uniform start fills
    noise: float = 0.001  # the standard deviation of a normal start, in pixel units
    targets: Callable[[Key, Array, Array], Array] | None = None  # see `types.Rule`

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field.split(".")[1])
            if value not in choices:
                raise ValueError(f"{field}={value!r} is unknown; choose {', '.join(choices)}")

    def __call__(
        self, network: Network, key: Key, inputs: StepInput, *, loss: str | Objective = "ce",
        compare: Any = None,
    ) -> Array:  # fmt: skip
        """Returns adversarial images `[B, H, W, C]` that ascend `loss(logits [K], target)`.

        They lie within `inputs.radius * epsilon` of `inputs.images` and in the bounds. Targets are
        `compare`, with leading `B`, or `inputs.targets` if that is `None`.
        """
        loss, compare = objective(loss), inputs.targets if compare is None else compare
        if self.targets is not None:
            target_key, key = jax.random.split(key)
            if inputs.index is not None:  # a part of a batch, with the key of the whole
                target_key = jax.random.fold_in(target_key, inputs.index[0])
            probabilities = jax.nn.softmax(network(inputs.images, train=False)[0])
            towards = self.targets(target_key, probabilities, inputs.labels)
            loss, compare = _towards(loss), (compare, towards)

        def logits_fn(images: Array) -> Array:
            return network(images, train=self.batch_norm == "train")[0]

        start = self._starts(key, inputs)
        if self.batch_norm == "train":
            return self._ascend_together(logits_fn, inputs, loss, compare, start)
        return pgd(
            logits_fn, key, inputs.images, inputs.labels, threat=self.threat,
            num_steps=self.num_steps, step_size=self.step_size, loss=loss, start=start,
            targets=compare, scale=inputs.radius, step_scale=inputs.step_size,
        )  # fmt: skip

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

    def _ascend_together(
        self, logits_fn: LogitsFn, inputs: StepInput, loss: Objective, compare: Any, start: Array
    ) -> Array:
        """As `pgd`, which couples no examples, for networks in which they influence each other."""
        threat, network = self.threat, rewrite_convolutions(logits_fn)

        def inside(x: Array, image: Array, radius: Array) -> Array:
            epsilon = radius * threat.epsilon
            return project(x, image, norm=threat.norm, epsilon=epsilon, bounds=threat.bounds)

        def move(x: Array, gradient: Array, image: Array, radius: Array, factor: Array) -> Array:
            direction = steepest_direction(gradient, threat.norm)
            return inside(x + factor * self.step_size * direction, image, radius)

        def step(_, x: Array) -> Array:
            gradient = jax.grad(lambda x: jnp.sum(jax.vmap(loss)(network(x), compare)))(x)
            return jax.vmap(move)(x, gradient, inputs.images, inputs.radius, inputs.step_size)

        first = jax.vmap(inside)(start, inputs.images, inputs.radius)
        return lax.stop_gradient(lax.fori_loop(0, self.num_steps, step, first))


def _towards(loss: Objective) -> Objective:
    """`loss`, or where a class is given to move to, minus the cross-entropy of that class."""

    def either(logits: Array, compare: Any) -> Array:
        own, towards = compare
        targeted = -cross_entropy(logits, jnp.maximum(towards, 0))
        return jnp.where(towards < 0, loss(logits, own), targeted)

    return either
