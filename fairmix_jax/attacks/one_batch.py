"""An attack on one batch, as a function that can be jitted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fairmix_jax.attacks import slots, stepwise
from fairmix_jax.attacks.projections import as_radius
from fairmix_jax.attacks.stepwise import Classifier, Randomized, Stepwise
from fairmix_jax.runtime import inputs
from fairmix_jax.types import Array, Key, ThreatModel


def run_attack(
    make: Callable[..., Stepwise], *arguments: Any, threat: ThreatModel,
    index: Array | None = None, early_exit: bool = True, **options: Any,
) -> Array:  # fmt: skip
    """Returns `attack_batch` of what `make` makes with the `options`, all checked first."""
    logits_fn, _, images, labels = arguments
    inputs.check_batch(images, labels, threat)
    attack = make(norm=threat.norm, bounds=threat.bounds, **options)
    if not isinstance(logits_fn, Randomized):
        inputs.check_model(logits_fn, images, by_gradient=attack.passes(2)[1] > 0)
    how: Any = dict(epsilon=threat.epsilon, index=index, early_exit=early_exit)
    return attack_batch(attack, *arguments, **how)


def attack_batch(
    attack: Stepwise, logits_fn: Classifier, key: Key, images: Array, labels: Array, *,
    epsilon: Array | float, index: Array | None = None, early_exit: bool = True,
) -> Array:  # fmt: skip
    """Returns the adversarial images of an attack where it finds any, else the images.

    Pure, and can be jitted. Guarantees: the result lies in the ball, with the exact difference
    to the image, and in the bounds; an example's result depends on its own image, label, key
    and `index` only; an image that is misclassified as it is comes back unchanged.

    Args:
      logits_fn: images `[B, H, W, C]` to logits `[B, K]`; must not couple examples.
      key: of all randomness; consumed.
      images, labels: `[B, H, W, C]` float, inside the threat's bounds; `[B]` int, true classes.
      index: `[B]` int, numbers that tell the examples' keys apart; `0 .. B - 1` if `None`.
      early_exit: whether to stop at an example's first success; without, the last one of
        its run is returned. The verdict is the same.

    A ValueError names what is not as above, of the arguments or what `logits_fn` returns.
    """
    inputs.check_batch(images, labels)
    size = len(images)
    index = jnp.arange(size) if index is None else jnp.asarray(index)
    inputs.check_rows("index", index, size)
    images, given = inputs.as_single(jnp.asarray(images)), labels
    labels = jnp.asarray(labels, jnp.int32)
    clean_key, attack_key = jax.random.split(inputs.threefry(key))
    apply = stepwise.partial_of(logits_fn, images)
    logits = slots.clean_logits(apply, images, index, clean_key)
    inputs.check_labels(given, size, logits.shape[1])
    queue = slots.Queue(
        images,
        labels,
        rivals=slots.rivals(logits, labels),
        index=index,
        key=jax.random.key_data(attack_key),
        epsilon=jnp.asarray(as_radius(epsilon, images.dtype)),
        size=jnp.asarray(size, jnp.int32),
    )
    pool = slots.empty(attack, queue, num_slots=size)
    steps = attack.num_runs(logits.shape[1]) * attack.num_steps
    pool = slots.advance(attack, apply, queue, pool, num_steps=steps, early_exit=early_exit)
    is_wrong = stepwise.misclassified(logits, labels)[:, None, None, None]
    return lax.stop_gradient(jnp.where(is_wrong, images, pool.results.adversarial))
