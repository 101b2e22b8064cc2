"""Every contract of the package: the types its functions pass to each other.

Dimensions in shape comments: `B` batch, `H, W, C` image height, width and channels,
`K` classes. Images are float32 in the data set's bounds (`[0, 1]` for pictures), so a
radius `epsilon` is always in pixel units; normalisation happens inside the model. Every key
that a function takes is consumed by it.
"""

import dataclasses
from collections.abc import Callable, Iterable
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from jax.core import Tracer

Count = Annotated[int, ("low", 1)]
Natural = Annotated[int, ("low", 0)]
Amount = Annotated[float, ("low", 0)]
Positive = Annotated[float, ("above", 0)]
Share = Annotated[float, ("low", 0), ("high", 1)]
PositiveShare = Annotated[float, ("above", 0), ("high", 1)]
ShareBelowOne = Annotated[float, ("low", 0), ("below", 1)]
"""Numbers with limits, which `runtime.declared` reads."""

Array = jax.Array
Key = jax.Array
Params = Any
BatchStats = Any
LogitsFn = Callable[[Array], Array]
"""Maps images `[B, H, W, C]` to logits `[B, K]`."""


class Batch(NamedTuple):
    """A batch of examples, stacked along the first axis.

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
    """The knobs that a rule sets, one number a class, `[K]` float32 each; ones change nothing.

    Attributes:
      loss_weight: factor of the training loss of a class's examples.
      ce_weight: factor of the loss's cross-entropy, which is all of it for bases without a
        robust term of its own.
      radius, step_size: factors of the training attack's `epsilon` and `step_size`.
      beta: factor of the robust term of bases that have one (TRADES, MART).
      sampling: relative frequency with which a class's examples are drawn.
      mixing: factor of the mixing probability.
    """

    loss_weight: Array
    ce_weight: Array
    radius: Array
    step_size: Array
    beta: Array
    sampling: Array
    mixing: Array


class ClassCounts(NamedTuple):
    """`[K]` int32: examples seen, and of these correct ones; counts of disjoint sets add."""

    total: Array
    correct: Array


class ClassStatistics(NamedTuple):
    """Sums over a set of examples, one row a class; those of disjoint sets add.

    They are taken at the inputs that a base trains on: adversarial where there is an attack.

    Attributes:
      counts: examples, and how many were classified correctly.
      loss: `[K]`, of the base's losses, before `Knobs.loss_weight`.
      margin: `[K]`, of `max_{k != y} p_k - p_y`, in [-1, 1], with `p` the softmax.
      probabilities: `[K, K]`; row `c` is the sum of `p` over the examples of class `c`.
    """

    counts: ClassCounts
    loss: Array
    margin: Array
    probabilities: Array


class EpochStatistics(NamedTuple):
    """The statistics that a rule gets after an epoch.

    Of `clean`, `robust` and `base` only what `Rule.reads` names is measured; else zeros.

    Attributes:
      epoch: `[]` int32, completed epochs.
      train: of the epoch's training batches, in training mode, weights changing on the way.
      clean, robust: validation counts of the current weights (not averaged ones), clean and
        under PGD with the training attack's radius and step size.
      base: on the validation set, of the base's losses at the inputs that the base's own
        attack makes, with the current weights and running batch statistics.
    """

    epoch: Array
    train: ClassStatistics
    clean: ClassCounts
    robust: ClassCounts
    base: ClassStatistics


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """The perturbations an attack may use; ValueError for values that are not as required.

    A pytree whose only leaf is `epsilon`: under `jax.jit` one program attacks at any radius, and
    `jax.vmap` attacks at many. A traced radius cannot be checked, so it is not. `autoattack` and
    `classwise.evaluate` run on the host and take a number.

    Attributes:
      norm: `"linf"` or `"l2"`, of the difference to the clean image.
      epsilon: radius in pixel units, at least 0; `8 / 255` on CIFAR-10 by convention. An array
        `[E]` of radii is to be mapped over.
      bounds: `(low, high)`, the valid pixel range; infinite for unbounded data.
    """

    norm: Literal["linf", "l2"] = "linf"
    epsilon: float | Array = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose 'linf' or 'l2'")
        radii = [] if isinstance(self.epsilon, Tracer) else np.ravel(self.epsilon).tolist()
        if not all(isinstance(e, Real) and 0 <= e < float("inf") for e in radii):
            raise ValueError(
                f"epsilon={self.epsilon} is not a radius; give a number >= 0 in pixel units"
            )
        bounds = tuple(self.bounds) if isinstance(self.bounds, Iterable) else ()
        object.__setattr__(self, "bounds", bounds)
        is_pair = len(bounds) == 2 and all(isinstance(bound, Real) for bound in bounds)
        if not is_pair or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds={self.bounds} is empty; give (low, high) with low < high")


def _threat_of(static: tuple[Any, ...], leaves: tuple[Any, ...]) -> ThreatModel:
    """A threat around whatever stands for the radius: JAX puts more than numbers there."""
    threat = object.__new__(ThreatModel)
    for name, value in zip(("norm", "bounds", "epsilon"), (*static, *leaves), strict=True):
        object.__setattr__(threat, name, value)
    return threat


jax.tree_util.register_pytree_node(
    ThreatModel, lambda threat: ((threat.epsilon,), (threat.norm, threat.bounds)), _threat_of
)


class ApplyFn(Protocol):
    """The model as a pure function; the only view of it outside `fairmix_jax.models`."""

    def __call__(
        self, params: Params, batch_stats: BatchStats, images: Array, *, train: bool,
        hidden: Callable[[Array], Array] = lambda features: features,
    ) -> tuple[Array, BatchStats]:  # fmt: skip
        """Returns logits `[B, K]` and the new batch statistics.

        With `train=False` the running statistics normalise, examples do not influence each
        other, and the statistics come back unchanged. `hidden` is applied to the hidden
        features, `[B, ...]`, half-way through the network; a linear model, and a flax module
        that takes no `hidden`, has none, and applies it to its normalised input.
        """
        ...


class Model(NamedTuple):
    """A network as two pure functions; `init` is `key -> (params, batch_stats)`."""

    init: Callable[[Key], tuple[Params, BatchStats]]
    apply: ApplyFn


class StepInput(NamedTuple):
    """A batch as a base sees it, after augmentation and mixing.

    Attributes:
      images: `[B, H, W, C]`.
      targets: `[B, K]` class probabilities, one-hot unless classes were mixed.
      labels: `[B]` int32, the class an example is counted under.
      radius, step_size, ce_weight, beta: `[B]`, the `Knobs` of each example's class.
      after_attack: to apply to the attacked images before the loss (mixing).
      hidden: to apply to hidden features where the loss is taken (mixing).
      index: `[B]` int32, numbers that tell the examples' random starts apart; `0 .. B - 1`
        if `None`.
    """

    images: Array
    targets: Array
    labels: Array
    radius: Array
    step_size: Array
    ce_weight: Array
    beta: Array
    after_attack: Callable[[Array], Array] = lambda images: images
    hidden: Callable[[Array], Array] = lambda features: features
    index: Array | None = None


class BaseLoss(NamedTuple):
    """Losses `[B]`, differentiable in the parameters, and the new batch statistics.

    The logits `[B, K]` are those at the inputs trained on, adversarial where there is an attack.
    """

    losses: Array
    logits: Array
    batch_stats: BatchStats


class Base(NamedTuple):
    """A per-example training loss and the attack that comes before it.

    Attributes:
      attack: `(params, batch_stats, key, inputs) -> images [B, H, W, C]`, adversarial, or
        the inputs as they are; no gradient is taken through it.
      loss: `(params, batch_stats, inputs, adversarial) -> BaseLoss`.
      single_step: whether the attack takes one step only, so that the network may learn to
        defeat just that (catastrophic overfitting, Wong et al. 2020, arXiv 2001.03994).
    """

    attack: Callable[[Params, BatchStats, Key, StepInput], Array]
    loss: Callable[[Params, BatchStats, StepInput, Array], BaseLoss]
    single_step: bool = False


class Weights(NamedTuple):
    """Parameters with the batch statistics that belong to them."""

    params: Params
    batch_stats: BatchStats


def _same(value: Any, *_: Any) -> Any:
    return value


class Rule(NamedTuple):
    """From class statistics to knobs: pure functions of a state.

    Most rules need the first three fields and one of `observe` and `update`.

    Attributes:
      init: `() -> rule_state`, a pytree of arrays with a fixed structure.
      knobs: `rule_state -> Knobs`. The loss weight of a step is read after its batch was
        observed, the others before.
      sets: the names of the knobs that may differ from one.
      reads: of `"batch"`, `"train"`, `"clean"`, `"robust"`, `"base"`: the statistics that
        `observe` and `update` depend on. What is not named here may not be measured.
      observe: `(rule_state, ClassStatistics) -> rule_state`, in every step, with those of
        the batch; nothing is differentiated through it.
      update: `(rule_state, EpochStatistics) -> rule_state`, after every epoch; for rules
        that read the validation, after every validation.
      targets: `(key, probabilities [B, K], labels [B]) -> [B] int32`: towards which class the
        training attack shall push an example, from the clean predictions, or -1 for away
        from its own; `None` for never.
    """

    init: Callable[[], Any]
    knobs: Callable[[Any], Knobs]
    sets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    observe: Callable[[Any, ClassStatistics], Any] = _same
    update: Callable[[Any, EpochStatistics], Any] = _same
    targets: Callable[[Key, Array, Array], Array] | None = None


VALIDATION = frozenset(("clean", "robust", "base"))
"""What of `Rule.reads` is measured on the validation set."""


class Averaging(NamedTuple):
    """Pure functions that choose the weights to evaluate.

    Attributes:
      init: `Weights -> average`, a pytree of arrays, `()` when nothing is averaged.
      update: `(average, Weights, step) -> average`, after every optimizer step; `step` is
        the number of completed steps.
      weights: `(average, Weights) -> Weights`, the weights to evaluate.
      end_epoch: `(average, Weights, ClassCounts) -> average`, after every validation, with
        the robust counts of the current weights; `None` if they need not be measured.
    """

    init: Callable[[Weights], Any]
    update: Callable[[Any, Weights, Array], Any]
    weights: Callable[[Any, Weights], Weights]
    end_epoch: Callable[[Any, Weights, ClassCounts], Any] | None = None


class CalibrationData(NamedTuple):
    """What a calibration may look at: images that nothing was trained on, and the threat.

    Attributes:
      apply: the model.
      images, labels: `[N, H, W, C]` float in the threat's bounds; `[N]` int.
      index: `[N]` int, numbers that tell the images apart.
      threat: what the evaluation will allow.
      seed: of all randomness.
      workdir: where to keep work that is under way; `None` for nowhere.
    """

    apply: ApplyFn
    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    threat: ThreatModel
    seed: int
    workdir: Path | None


class Calibration(NamedTuple):
    """What is done to finished weights before they are evaluated and exported.

    Attributes:
      calibrate: `(Weights, CalibrationData) -> (Weights, facts)`; the facts are plain data for
        `evaluation.json` and the exported model's card.
      check: `Weights -> None`, of arrays or shapes; a `ValueError` if the model does not suit.
      reads_validation: whether it needs images.
    """

    calibrate: Callable[[Weights, CalibrationData], tuple[Weights, dict[str, Any]]]
    check: Callable[[Weights], Any] = lambda weights: None
    reads_validation: bool = False


class Source(NamedTuple):
    """The origin of a member: a constant `SOURCE` of its file, shown in docs/methods.md.

    `paper` has authors, year and arXiv number, `code` the original's repository, `licence` that
    repository's; we work from descriptions, whatever it says.
    """

    paper: str
    code: str = "-"
    licence: str = "-"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes during training; all leaves are arrays.

    `step`, `[]` int32, counts completed updates; `rule_state` is as `Rule.init` made it and
    `average` as `Averaging.init` did.
    """

    step: Array
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    rule_state: Any
    average: Any

    def replace(self, **changes: Any) -> "TrainState":
        """Returns the state with some fields changed."""
        return dataclasses.replace(self, **changes)
