"""The settings of a training run, each with its default, range and meaning."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fairmix_jax import classwise
from fairmix_jax.methods import mixing
from fairmix_jax.runtime.declared import declared
from fairmix_jax.types import Amount, Count, Natural, Share

_FILE = "best, last or NAME.safetensors (import .pt with python -m fairmix_jax.export.torch_import)"


@dataclasses.dataclass(frozen=True)
class Member:
    """A member of an axis, such as a rule: its name, and all arguments of its `make`."""

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data(Member):
    """A data set, and what is made of it."""

    name: str = declared(
        "digits", "the data set, see docs/extend.md for others", form="a name, e.g. cifar10:3.0.2",
        pattern=r"(?!.*\.\.)[A-Za-z0-9][\w.+:/-]{0,199}",
    )  # fmt: skip
    dir: str = declared("", "folder of prepared data sets; if empty, that in TFDS_DATA_DIR")
    val_fraction: Annotated[float, ("low", 0), ("high", 0.9)] = declared(
        0.1, "share of each class's training images that is kept for validation"
    )
    num_train: Natural = declared(0, "number of training images, equal in each class; 0 for all")
    crop_padding: Natural = declared(
        0, "largest shift of training images in pixels, drawn at random"
    )
    flip: bool = declared(False, "whether to mirror training images left to right at random")


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The mixing of images; see `methods.mixing`."""

    name: str = declared("none", "which images are mixed with each other", choices=mixing.NAMES)
    num_samples: Count = declared(2, "number of images in each mixture")
    law: str = declared("dirichlet", "law of the mixing weights", choices=("dirichlet", "uniform"))
    alpha: Amount = declared(1.0, "concentration of Dirichlet weights; large ones are nearly equal")
    weights: tuple[Share, ...] = declared((), "fixed mixing weights of sum 1; empty to draw them")
    probability: Share = declared(1.0, "probability that an image is mixed at all")
    class_strength: tuple[Amount, ...] = declared(
        (), "factor of mixing.probability for each class; empty for 1 in all of them"
    )
    per_batch: bool = declared(False, "whether a whole batch shares one draw of mixing weights")
    stage: str = declared("before_attack", "when images are mixed", choices=mixing.STAGES)
    num_groups: Count = declared(1, "number of equal parts of a batch that are mixed apart")
    off_epochs: Natural = declared(0, "number of epochs without mixing at the end of training")


@dataclasses.dataclass(frozen=True)
class Attack:
    """The attack in training; norm and radius are those of the evaluation as well."""

    norm: Literal["linf", "l2"] = declared(
        "linf", "norm that limits perturbations, in training and evaluation"
    )
    epsilon: Amount = declared(8 / 255, "radius: largest perturbation, where pixels are 0 to 1")
    step_size: Amount = declared(
        2 / 255, "size of a step of PGD in training, where pixels are 0 to 1"
    )
    num_steps: Natural = declared(10, "number of steps of PGD in training")
    batch_norm: Literal["eval", "train"] = declared(
        "eval",
        "batch-norm statistics in the attack: `eval` for running ones, `train` for the batch's",
    )


@dataclasses.dataclass(frozen=True)
class WeightPerturbation:
    """Adversarial weight perturbation around the step; see `methods.awp`."""

    gamma: Amount = declared(0.0, "size of weight perturbations, relative to weights; 0 for none")
    warmup_epochs: Natural = declared(0, "number of epochs before weights are perturbed")


@dataclasses.dataclass(frozen=True)
class HotStart:
    """Other weights than random ones to start from."""

    workdir: str = declared(
        "", "folder of a run, or a .safetensors file, to start from; empty for random weights"
    )
    weights: Literal["best", "last"] = declared("last", "which weights of that run to start from")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer and its learning rate; see `training.assembly`."""

    name: Literal["sgd", "adam"] = declared("sgd", "optimizer of the network's weights")
    learning_rate: Amount = declared(0.1, "largest learning rate of the schedule")
    momentum: Share = declared(0.9, "momentum of SGD")
    nesterov: bool = declared(True, "whether the momentum of SGD is Nesterov's")
    weight_decay: Amount = declared(5e-4, "L2 penalty: this times the weights joins their gradient")
    decay_biases: bool = declared(True, "whether the penalty includes biases and norm layers")
    schedule: Literal["piecewise", "cosine", "linear", "constant"] = declared(
        "piecewise", "how the learning rate changes during training"
    )
    milestones: tuple[Share, ...] = declared(
        (0.5, 0.75), "when `piecewise` lowers the learning rate, in parts of training", rises=True
    )
    decay: Share = declared(0.1, "factor of the learning rate at each milestone")
    decays: tuple[Share, ...] = declared((), "factors at milestones, instead of optim.decay")
    warmup: Share = declared(0.0, "part of training in which the learning rate rises from 0")


@dataclasses.dataclass(frozen=True)
class Validation:
    """The measurements on the validation part."""

    every_epochs: Count = declared(1, "number of epochs from one validation to the next")
    num_steps: Natural = declared(10, "number of steps of PGD in validation, of attack.step_size")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When a run saves, apart from its end and a signal to stop."""

    every_epochs: Count = declared(1, "number of epochs from one checkpoint to the next")


@dataclasses.dataclass(frozen=True)
class Evaluation(classwise.Settings):
    """The evaluation of the trained network on the test set."""

    num_examples: Natural = declared(0, "number of test images, equal in each class; 0 for all")
    weights: Annotated[str, ("pattern", r"best|last|.+\.safetensors"), ("form", _FILE)] = declared(
        "best", "weights to evaluate: `best` by validation, `last`, or a .safetensors file"
    )
    search_dtype: Literal["float32", "bfloat16"] = declared(
        "float32", "number type in which AutoAttack searches; float32 decides what it found"
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a training run and its evaluation are told."""

    seed: Annotated[int, ("low", 0), ("high", 2**32 - 1)] = declared(
        0, "random seed of initial weights, image order, augmentation and attacks"
    )
    total_epochs: Count = declared(30, "number of passes over the training set")
    batch_size: Count = declared(128, "number of images in a step of training, over all devices")
    num_devices: Natural = declared(0, "number of devices that share a batch; 0 for all")
    num_parts: Count = declared(1, "number of parts of a batch, done in turn to save memory")
    data: Data = Data()
    model: Member = Member("small_cnn")
    base: Member = Member("pgd_at")
    rule: Member = Member("none")
    averaging: Member = Member("none")
    calibration: Member = Member("none")
    mixing: Mixing = Mixing()
    attack: Attack = Attack()
    awp: WeightPerturbation = WeightPerturbation()
    hot_start: HotStart = HotStart()
    optim: Optimizer = Optimizer()
    validation: Validation = Validation()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluation = Evaluation()
