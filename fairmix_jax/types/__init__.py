"""The types that functions of several rooms pass to each other.

Dimensions in shape comments: `B` batch, `H, W, C` image height, width and channels,
`K` classes. Images are float32 in the data set's bounds (`[0, 1]` for pictures), so a
radius `epsilon` is always in pixel units; normalisation happens inside the model. Every key
that a function takes is consumed by it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import jax
import numpy as np

from fairmix_jax.types.statistics import ClassCounts as ClassCounts
from fairmix_jax.types.statistics import ClassStatistics as ClassStatistics
from fairmix_jax.types.statistics import EpochStatistics as EpochStatistics
from fairmix_jax.types.threat import ThreatModel as ThreatModel

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
    """A batch of examples, stacked along the first axis."""

    images: Array  # [B, H, W, C] float32
    labels: Array  # [B] int32, in `0 .. K - 1`
    index: Array  # [B] int32, the examples' positions in their split (the same in every run)
    mask: Array  # [B] bool, false for the padding of a last batch, which counts nowhere


class Knobs(NamedTuple):
    """The knobs that a rule sets, one number a class, `[K]` float32 each; ones change nothing."""

    loss_weight: Array  # factor of the training loss of a class's examples
    ce_weight: Array  # of the loss's cross-entropy: of all of it, if a base has no robust term
    radius: Array  # of the training attack's `epsilon`
    step_size: Array  # of the training attack's `step_size`
    beta: Array  # of the robust term of bases that have one (TRADES, MART)
    sampling: Array  # relative frequency with which a class's examples are drawn
    mixing: Array  # factor of the mixing probability


def _same(value: Any, *_: Any) -> Any:
    return value


class ApplyFn(Protocol):
    """The model as a pure function; the only view of it outside `fairmix_jax.models`."""

    def __call__(
        self, params: Params, batch_stats: BatchStats, images: Array, *, train: bool,
        hidden: Callable[[Array], Array] = _same,
    ) -> tuple[Array, BatchStats]:  # fmt: skip
        """Returns logits `[B, K]` and the new batch statistics.

        With `train=False` the running statistics normalise, examples do not influence each
        other, and the statistics come back unchanged. `hidden` is applied to features `[B, ...]`
        half-way through the network, or to the normalised input of a model that has none.
        """
        ...


class Model(NamedTuple):
    """A network as two pure functions; `init` is `key -> (params, batch_stats)`."""

    init: Callable[[Key], tuple[Params, BatchStats]]
    apply: ApplyFn


class StepInput(NamedTuple):
    """A batch as a base sees it, after augmentation and mixing."""

    images: Array  # [B, H, W, C]
    targets: Array  # [B, K] class probabilities, one-hot unless classes were mixed
    labels: Array  # [B] int32, the class an example is counted under
    radius: Array  # [B] each: the `Knobs` of each example's class
    step_size: Array
    ce_weight: Array
    beta: Array
    after_attack: Callable[[Array], Array] = _same  # of images, before the loss (mixing)
    hidden: Callable[[Array], Array] = _same  # of hidden features, where the loss is taken
    index: Array | None = None  # [B] int32, tells random starts apart; `0 .. B - 1` if `None`


class BaseLoss(NamedTuple):
    """What a base makes of a batch."""

    losses: Array  # [B], differentiable in the parameters
    logits: Array  # [B, K], at the inputs trained on, adversarial where there is an attack
    batch_stats: BatchStats  # the new ones


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
    """Everything that changes during training; all leaves are arrays."""

    step: Array  # [] int32, completed updates
    params: Params
    batch_stats: BatchStats
    opt_state: Any
    rule_state: Any  # as `Rule.init` made it
    average: Any  # as `Averaging.init` made it

    def replace(self, **changes: Any) -> "TrainState":
        """Returns the state with some fields changed."""
        return dataclasses.replace(self, **changes)
