"""Every contract of the package: the types its functions pass to each other.

Dimensions in shape comments: `B` batch, `H, W, C` image height, width and channels,
`K` classes. Images are float32 in the data set's bounds (`[0, 1]` for pictures), so a
radius `epsilon` is always in pixel units; normalisation happens inside the model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
from flax import struct

Array = jax.Array
Key = jax.Array
Params = Any
BatchStats = Any
LogitsFn = Callable[[Array], Array]
"""Maps images `[B, H, W, C]` to logits `[B, K]`."""


class Batch(NamedTuple):
    """A batch of examples.

    Attributes:
      images: `[B, H, W, C]` float32.
      labels: `[B]` int32, in `0 .. K - 1`.
      index: `[B]` int32, the examples' positions in their split (the same in every run).
      mask: `[B]` bool, false for the padding of a last batch, which counts nowhere.
    """

    images: Array
    labels: Array
    index: Array
    mask: Array


class Knobs(NamedTuple):
    """What a rule sets, one number a class, `[K]` float32 each; all ones change nothing.

    Attributes:
      loss_weight: factor of the training loss of a class's examples.
      radius: factor of the training attack's `epsilon` and `step_size`.
      beta: factor of the robustness weight of bases that have one (TRADES).
      sampling: relative frequency with which a class's examples are drawn.
      mixing: factor of the mixing probability.
    """

    loss_weight: Array
    radius: Array
    beta: Array
    sampling: Array
    mixing: Array


class ClassCounts(NamedTuple):
    """Integer counts per class, `[K]` int32 each; counts of disjoint sets add.

    Attributes:
      total: examples seen.
      correct: of these, classified correctly.
    """

    total: Array
    correct: Array


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """The perturbations an attack may use.

    Attributes:
      norm: `"linf"` or `"l2"`, of the difference to the clean image.
      epsilon: radius in pixel units, at least 0; `8 / 255` on CIFAR-10 by convention.
      bounds: `(low, high)`, the valid pixel range; infinite for unbounded data.

    Raises:
      ValueError: unknown norm, negative or non-finite radius, empty range.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose 'linf' or 'l2'")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(
                f"epsilon={self.epsilon} is not a radius; give a number >= 0 in pixel units"
            )
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds={self.bounds} is empty; give (low, high) with low < high")


class ApplyFn(Protocol):
    """The model as a pure function; the only view of it outside `fairmix_jax.models`."""

    def __call__(
        self,
        params: Params,
        batch_stats: BatchStats,
        images: Array,
        *,
        train: bool,
        hidden: Callable[[Array], Array] = lambda features: features,
    ) -> tuple[Array, BatchStats]:
        """Returns logits `[B, K]` and the new batch statistics.

        With `train=False` the running statistics normalise, examples do not influence each
        other, and the statistics come back unchanged. `hidden` is applied to the hidden
        features, `[B, ...]`, half-way through the network; a linear model has none, and
        applies it to its input.
        """
        ...


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: `key -> (params, batch_stats)`; the key is consumed.
      apply: see `ApplyFn`.
    """

    init: Callable[[Key], tuple[Params, BatchStats]]
    apply: ApplyFn


class Attack(Protocol):
    """A training attack with its threat model, steps and step size already chosen."""

    def __call__(
        self,
        logits_fn: LogitsFn,
        key: Key,
        images: Array,
        labels: Array,
        *,
        targets: Any,
        scale: Array,
        loss: str | Callable[[Array, Any], Array] = "ce",
    ) -> Array:
        """Returns adversarial images `[B, H, W, C]` that ascend `loss(logits [K], target)`.

        `targets` is any pytree with leading `B`; `scale` `[B]` multiplies radius and step
        size. The key is consumed. No gradient flows through the result.
        """
        ...


class StepInput(NamedTuple):
    """What a base loss sees of a batch, after augmentation and mixing.

    Attributes:
      images: `[B, H, W, C]`.
      targets: `[B, K]` class probabilities, one-hot unless classes were mixed.
      labels: `[B]` int32, the class an example is counted under.
      radius: `[B]`, factor of the attack's radius.
      beta: `[B]`, factor of the robustness weight.
      after_attack: to apply to the attacked images before the loss (mixing).
      hidden: to apply to hidden features where the loss is taken (mixing).
    """

    images: Array
    targets: Array
    labels: Array
    radius: Array
    beta: Array
    after_attack: Callable[[Array], Array] = lambda images: images
    hidden: Callable[[Array], Array] = lambda features: features


class BaseLoss(NamedTuple):
    """What a base returns for a batch.

    Attributes:
      losses: `[B]`, differentiable in the parameters.
      logits: `[B, K]` at the inputs trained on (adversarial where there is an attack).
      batch_stats: the new batch statistics.
    """

    losses: Array
    logits: Array
    batch_stats: BatchStats


Base = Callable[[Params, BatchStats, Key, StepInput], BaseLoss]
"""A per-example training loss with the attack inside it; the key is consumed."""


class Rule(NamedTuple):
    """From class statistics to knobs: a pure triple.

    Attributes:
      init: `() -> rule_state`, a pytree of arrays with a fixed structure.
      knobs: `rule_state -> Knobs`.
      update: `(rule_state, ClassCounts) -> rule_state`, called after every validation
        with its counts under PGD of the training attack's radius and step size.
    """

    init: Callable[[], Any]
    knobs: Callable[[Any], Knobs]
    update: Callable[[Any, ClassCounts], Any]


class Weights(NamedTuple):
    """Parameters with the batch statistics that belong to them."""

    params: Params
    batch_stats: BatchStats


class Averaging(NamedTuple):
    """Which weights are evaluated: a pure triple.

    Attributes:
      init: `Weights -> average`, a pytree of arrays, `()` when nothing is averaged.
      update: `(average, Weights, step) -> average`, after every optimizer step; `step` is
        the number of completed steps.
      weights: `(average, Weights) -> Weights`, the weights to evaluate.
    """

    init: Callable[[Weights], Any]
    update: Callable[[Any, Weights, Array], Any]
    weights: Callable[[Any, Weights], Weights]


class TrainState(struct.PyTreeNode):
    """Everything that changes during training; all leaves are arrays.

    Attributes:
      step: `[]` int32, number of completed updates.
      params, batch_stats: the model's.
      opt_state: the optimizer's.
      rule_state: the rule's, see `Rule`.
      average: averaged weights, or `()` when averaging is off.
    """

    step: Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    rule_state: Any
    average: Any
