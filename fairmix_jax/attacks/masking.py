"""Is the robustness real? Signs that gradients are masked, each with its reason."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fairmix_jax.attacks.apgd import make as make_apgd
from fairmix_jax.attacks.ensemble import ensemble
from fairmix_jax.attacks.losses import cross_entropy
from fairmix_jax.attacks.plan import batches, predict
from fairmix_jax.attacks.projections import lp_norm, surface_start
from fairmix_jax.attacks.report import AttackReport
from fairmix_jax.attacks.stepwise import Classifier, network_of, partial_of
from fairmix_jax.runtime.inputs import are_probabilities, as_single, check_batch
from fairmix_jax.types import Array, Key, ThreatModel

_TOO_FEW = "too few to tell"
SEVERITY = ("pass", _TOO_FEW, "suspicious", "fail")
"""The verdicts, the most serious last."""
_SIGNS = {  # limits of suspicious and fail, a number of images that says nothing, words
    "zero_gradient": ((0.01, 0.10), 2, "have no gradient to follow"),
    "non_finite_gradient": ((0.0, 0.10), 0, "have a gradient that is not finite"),
    "square_gain": ((0.002, 0.05), 2, "are broken by Square alone"),
    "more_steps_gain": ((0.02, 0.10), 2, "break with twice the steps only"),
    "restarts_gain": ((0.05, 0.20), 2, "break at one of four more restarts only"),
    "large_radius_accuracy": ((0.0, 0.05), 0, "survive when the ball is the whole box"),
}


class Finding(NamedTuple):
    """One sign."""

    name: str  # what was looked at
    verdict: str  # one of `SEVERITY`
    value: float  # of all images
    per_class: tuple[float, ...]  # of each class; empty where it makes no sense
    reason: str  # the verdict in words


class Masking(NamedTuple):
    """The verdict, the worst of the findings', and the findings."""

    verdict: str
    findings: tuple[Finding, ...]


def examine(
    logits_fn: Classifier, images: Any, labels: Any, *, threat: ThreatModel,
    report: AttackReport | None = None, num_steps: int = 50, seed: int = 0, batch_size: int = 256,
    **options: Any,
) -> Masking:  # fmt: skip
    """Looks for signs that a model hides its gradients rather than being robust.

    A robust accuracy that rests on masked gradients is too high: the attacks were blind. The
    signs and their limits, shares of all images, are those of docs/metrics.md. There

    * the gradient is that of the cross-entropy of a correctly classified image, there and at a
      random point of the ball; it is none if to first order the loss changes by less than 1e-5
      in the ball, or by less than 1e-6 a unit of any logit;
    * two forward passes differ if by more than 1e-4 of the largest logit;
    * in a ball that is the whole box every classifier must fall.

    `square_gain` needs a `report` of attacks on these images with Square last; `num_steps` are
    those of APGD-CE. All other arguments are those of `ensemble`.

    Reference: Carlini et al. 2019, arXiv 1902.06705, sections 4 and 5; Athalye et al. 2018,
    arXiv 1802.00420; the checks of Croce and Hein's code.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_batch(images, labels, threat)
    images, labels = np.asarray(as_single(images)), labels.astype(np.int32)
    apply, key = partial_of(logits_fn, images), jax.random.key(seed, impl="threefry2x32")
    options |= dict(seed=seed, batch_size=batch_size)

    def apgd_ce(radius: Array | float, num_steps: int, num_restarts: int) -> AttackReport:
        steps = dict(num_steps=num_steps, num_restarts=num_restarts)
        attacks = {"apgd-ce": make_apgd(norm=threat.norm, bounds=threat.bounds, **steps)}
        ball = dataclasses.replace(threat, epsilon=radius)
        return ensemble(logits_fn, images, labels, threat=ball, attacks=attacks, **options)

    once = apgd_ce(threat.epsilon, num_steps, 5)
    twice = apgd_ce(threat.epsilon, 2 * num_steps, 1)
    is_first_run = once.gradient_passes[1] <= num_steps + 1
    no_gradient = [
        _vanishes(apply, images[rows], labels[rows], rows, key, threat)
        for rows in batches(len(images), batch_size)
    ]
    vanishes, is_lost = np.concatenate(no_gradient, axis=1)
    signs = {
        "zero_gradient": vanishes[: len(images)] & (once.broken_by != 0),
        "non_finite_gradient": is_lost[: len(images)] & (once.broken_by != 0),
        "more_steps_gain": (twice.broken_by == 1) & ~((once.broken_by == 1) & is_first_run),
        "restarts_gain": (once.broken_by == 1) & ~is_first_run,
    }
    if np.isfinite(threat.bounds).all():
        low, high = threat.bounds
        size = images[0].size if threat.norm == "l2" else 1
        signs["large_radius_accuracy"] = apgd_ce((high - low) * size**0.5, num_steps, 5).robust
    if report is not None and report.attacks[-1] == "square" and len(report.attacks) > 2:
        signs["square_gain"] = report.broken_by == len(report.attacks) - 1
    findings = [_finding(name, chosen, labels, once.num_classes) for name, chosen in signs.items()]
    findings += _outputs(apply, images[:batch_size], key)
    return Masking(max((f.verdict for f in findings), key=SEVERITY.index), tuple(findings))


def _finding(name: str, chosen: np.ndarray, labels: np.ndarray, num_classes: int) -> Finding:
    """The verdict on the share of images that are `chosen`."""
    limits, few, what = _SIGNS[name]
    total = np.bincount(labels, minlength=num_classes)
    per_class = np.bincount(labels[chosen], minlength=num_classes) / np.maximum(total, 1)
    share, count = float(chosen.mean()), int(chosen.sum())
    verdict = ("pass", "suspicious", "fail")[sum(share > limit for limit in limits)]
    bound = f"more than {limits[1]:.1%}" if verdict == "fail" else f"the limit is {limits[0]:.1%}"
    if (verdict != "pass" and count <= few) or len(chosen) <= few:
        verdict = bound = _TOO_FEW
    reason = f"{share:.1%} of the images {what}; {bound}"
    return Finding(name, verdict, share, tuple(per_class.tolist()), reason)


def _outputs(apply: Partial, images: np.ndarray, key: Key) -> list[Finding]:
    """Looks at the outputs of a batch, and at those of the same batch again."""
    index, keys = np.arange(len(images)), (key, key, jax.random.fold_in(key, 1))
    first, again, other = (np.asarray(predict(apply, images, index, k)) for k in keys)
    scale = max(float(np.nanmax(np.abs(first))), 1e-12)
    change = max(float(np.nanmax(np.abs(first - x))) / scale for x in (again, other))
    is_random = change > 1e-4
    remedy = "attack with the version 'rand'" if is_random else "the limit is 1e-4"
    differ = f"two forward passes differ by {change:.1e} of the largest logit; {remedy}"
    is_probability = are_probabilities(first)
    look = "look like probabilities; give logits" if is_probability else "are not probabilities"
    look, value = f"the outputs {look}", float(is_probability)
    return [
        Finding("randomness", "suspicious" if is_random else "pass", change, (), differ),
        Finding("probabilities", "suspicious" if is_probability else "pass", value, (), look),
    ]


@jax.jit
def _vanishes(apply: Partial, images, labels, index, key: Key, threat: ThreatModel) -> Array:
    network = network_of(apply)

    def at(image: Array, label: Array, key: Key) -> Array:
        logits, pull_back = jax.vjp(lambda x: network(x, key), image)
        slope = jax.grad(cross_entropy)(logits, label)
        (gradient,) = pull_back(slope)
        change = jnp.sum(jnp.abs(gradient)) if threat.norm == "linf" else lp_norm(gradient, "l2")
        is_useful = (threat.epsilon * change > 1e-5) & (jnp.max(jnp.abs(slope)) > 1e-6)
        return jnp.stack([~(is_useful & jnp.isfinite(change)), ~jnp.isfinite(change)])

    def one(image: Array, label: Array, index: Array) -> Array:
        start_key, *network_keys = jax.random.split(jax.random.fold_in(key, index), 3)
        radius = jnp.asarray(threat.epsilon, image.dtype)
        start = surface_start(start_key, image, radius, threat.norm)
        start = jnp.clip(start, *threat.bounds)
        return at(image, label, network_keys[0]) | at(start, label, network_keys[1])

    return jax.vmap(one, out_axes=1)(images, labels, index)
