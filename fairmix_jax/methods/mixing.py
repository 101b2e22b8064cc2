"""Mixing as a choice of the config: what is mixed, with what, and at which stage."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairmix_jax import mixup
from fairmix_jax.runtime.inputs import check_finite
from fairmix_jax.types import Array, Key, Source, StepInput

MEMBERS = {
    "none": ("Nothing is mixed.", Source("-")),
    "same_class": (
        "Convex combinations of images of one class, label kept.",
        Source("Zhong and Tandon 2024, arXiv 2411.14424 (abstract and opening read)"),
    ),
    "cross_class": (
        "Ordinary mixup, labels mixed as well: the control.",
        Source(
            "Zhang et al. 2018, arXiv 1710.09412; before PGD Rice et al. 2020, arXiv 2002.11569"
        ),
    ),
}
NAMES = tuple(MEMBERS)
STAGES = ("before_attack", "after_attack", "hidden")

Mixing = Callable[[Key, Array, Array, Array], StepInput]
"""`(key, images [B, H, W, C], labels [B], strength [K]) -> StepInput`; the key is consumed."""


def unmixed(images: Array, labels: Array, num_classes: int) -> StepInput:
    """Returns a batch as it is: targets one-hot, all factors one."""
    ones, targets = jnp.ones(len(labels)), jax.nn.one_hot(labels, num_classes)
    return StepInput(images, targets, labels, ones, ones, ones, ones)


def make(
    name: str, num_classes: int, *, stage: str = "before_attack", weights: Sequence[float] = (),
    class_strength: Sequence[float] = (), probability: float = 1.0, law: str = "dirichlet",
    num_groups: int = 1, **options: Any,
) -> Mixing:  # fmt: skip
    """Returns the mixing that a config names.

    Args:
      stage: `"before_attack"` mixes, then attacks the mixed images (the seed idea);
        `"after_attack"` attacks each image, then mixes; `"hidden"` attacks each image,
        then mixes hidden features. The last two keep classes apart: not for `cross_class`.
      weights: fixed weights, used instead of `law` if not empty.
      class_strength: `K` factors of `probability`; all ones if empty. The strength that
        the mixing is called with multiplies them, up to a probability of 1.
      probability, law, num_groups, **options: as in `mixup.draw_plan`.

    A ValueError names what does not fit.
    """
    if name not in NAMES:
        raise ValueError(f"mixing.name={name!r} is unknown; choose one of {', '.join(NAMES)}")
    if stage not in STAGES:
        raise ValueError(f"mixing.stage={stage!r} is unknown; choose {', '.join(STAGES)}")
    if name == "cross_class" and stage != "before_attack":
        raise ValueError(f"mixing.stage={stage!r} is for same_class only; use before_attack")
    if class_strength and len(class_strength) != num_classes:
        raise ValueError(
            f"mixing.class_strength has {len(class_strength)} numbers for {num_classes} classes"
        )
    check_finite(0, 1, probability=probability)
    check_finite(0, class_strength=class_strength)
    if weights:
        mixup.mixing_weights(jax.random.key(0), len(weights), law=weights)  # raises if not convex
    base_probability = probability * np.asarray(class_strength or np.ones(num_classes), np.float32)

    def mixing(key: Key, images: Array, labels: Array, strength: Array) -> StepInput:
        inputs = unmixed(images, labels, num_classes)
        if name == "none":
            return inputs
        plan = mixup.draw_plan(
            key, labels, across_classes=name == "cross_class", law=weights or law,
            probability=jnp.clip(base_probability * strength, 0, 1),
            num_groups=num_groups, **options,
        )  # fmt: skip
        apply = partial(mixup.mix, plan=plan, num_groups=num_groups)
        if name == "cross_class":
            inputs = inputs._replace(targets=apply(inputs.targets))
        if stage == "before_attack":
            return inputs._replace(images=apply(images))
        if stage == "after_attack":
            return inputs._replace(after_attack=apply)
        return inputs._replace(hidden=apply)

    return mixing
