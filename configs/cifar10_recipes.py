"""How each method was published, and how `configs/cifar10.py:RECIPE` trains it on CIFAR-10.

Command:  TFDS_DATA_DIR=DIR python launch.py --config=configs/cifar10.py:RECIPE

Numbers without a source in this file were not available to us. `docs/methods.md` explains
the methods.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

_NONE: Mapping[str, Any] = MappingProxyType({})


class Recipe(NamedTuple):
    """A recipe: where it comes from, and what it changes in the recipe that it starts from.

    Attributes:
      title: what it is.
      source: whose recipe it is, its settings in words, and where ours differs.
      published: class-wise numbers that we could read.
      ours: what our runs gave.
      after: the recipe that it starts from; empty for the plain `configs/cifar10.py`.
      changes: config fields and their values, as in `{"attack.epsilon": 0.031}`.
      full: further ones, not made in the smoke variant.
      smoke: those that only the smoke variant makes.
    """

    title: str
    source: str
    published: str
    ours: str = "not run"
    after: str = ""
    changes: Mapping[str, Any] = _NONE
    full: Mapping[str, Any] = _NONE
    smoke: Mapping[str, Any] = _NONE


RECIPES = {
    "small": Recipe(
        "PGD-AT with a network that two CPU cores can train.",
        "The recipe of `configs/cifar10.py` on a PreActResNet-10 of width 16 (0.3 million "
        "parameters) and with a cosine schedule over 15 epochs. Runtime: about 1.5 s a training "
        "step on two cores of an Intel Xeon with AVX-512 (jax 0.10.2, 2026-11-23), so about 9 "
        "minutes an epoch.",
        published="not available, this network is ours",
        changes={
            "model.depth": 10,
            "model.width": 16,
            "optim.schedule": "cosine",
            "optim.warmup": 0.05,
            "checkpoint.every_epochs": 1,
        },
        full={"total_epochs": 15, "averaging.decay": 0.998},
        smoke={
            "batch_size": 128,
            "attack.num_steps": 3,
            "data.num_train": 1_000,
            "evaluate.attacks": "clean,pgd20",
            "evaluate.num_examples": 200,
            "evaluate.batch_size": 512,
        },
    ),
    "standard": Recipe(
        "Standard training: what adversarial training is measured against.",
        "The recipe of `pgd_at` without the attack.",
        published="class-wise numbers are not available",
        after="pgd_at",
        changes={"base.name": "standard"},
    ),
    "pgd_at": Recipe(
        "PGD-AT, the published recipe: the reference of most methods here.",
        "Recipe of Rice et al. 2020 (arXiv 2002.11569) for the method of Madry et al. 2018: "
        "PreActResNet-18, 200 epochs, batches of 128, SGD with momentum 0.9 and learning rate "
        "0.1, divided by ten at epochs 100 and 150, weight decay 5e-4, PGD-10 with step 2/255 at "
        "L-inf 8/255, batch norm in training mode inside the attack. Differs from the original: "
        "crops are padded with zeros, not reflected; 2 % of the training set validate; the best "
        "weights are chosen there; no further clean pass updates the batch statistics.",
        published=(
            "average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460, "
            "table 1, best chosen on the test set, PreActResNet-18, 5 seeds): best 82.3 / 63.9; "
            "46.7 / 20.1, last 84.1 / 65.1; 43.0 / 15.5"
        ),
        changes={
            "attack.batch_norm": "train",
            "optim.nesterov": False,
            "averaging.name": "none",
            "averaging.decay": None,
        },
        full={"evaluate.attacks": "clean,pgd20,autoattack"},
    ),
    "trades": Recipe(
        "TRADES, the published recipe.",
        "Recipe of the official code of Zhang et al. 2019 (arXiv 1901.08573) on a ResNet-18: "
        "beta 6, L-inf 0.031, 10 steps of 0.007 from normal noise, weight decay 2e-4, 76 epochs "
        "(the code's default), learning rate 0.1, divided by ten from epoch 75 on, counted from "
        "1.",
        published=(
            "average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460, "
            "table 1, best chosen on the test set, PreActResNet-18, 200 epochs and the loss "
            "divided by 7): best 82.3 / 67.8; 48.3 / 21.7, last 83.9 / 66.9; 46.9 / 18.5. PGD-20 "
            "average of a ResNet-18 after 100 epochs (logs in the repository of Rice et al. "
            "2020, their evaluation): best 82.2 clean; 53.5, last 82.0; 53.3"
        ),
        after="pgd_at",
        changes={
            "model.name": "resnet",
            "base.name": "trades",
            "base.beta": 6.0,
            "attack.epsilon": 0.031,
            "attack.step_size": 0.007,
            "attack.batch_norm": "eval",
            "optim.weight_decay": 2e-4,
            "optim.milestones": (74 / 76,),
        },
        full={"total_epochs": 76},
    ),
    "mart": Recipe(
        "MART, the published recipe.",
        "Recipe of the official code of Wang et al. 2020: ResNet-18, beta 5, L-inf 0.031, 10 "
        "steps of 0.007 from normal noise, 120 epochs, learning rate 0.01, divided by ten from "
        "epochs 75, 90 and 100 on, counted from 1, weight decay 3.5e-3.",
        published="class-wise numbers are not available",
        after="pgd_at",
        changes={
            "model.name": "resnet",
            "base.name": "mart",
            "base.beta": 5.0,
            "attack.epsilon": 0.031,
            "attack.step_size": 0.007,
            "attack.batch_norm": "eval",
            "optim.learning_rate": 0.01,
            "optim.weight_decay": 3.5e-3,
            "optim.milestones": (74 / 120, 89 / 120, 99 / 120),
        },
        full={"total_epochs": 120},
    ),
    "fgsm_rs": Recipe(
        "Fast adversarial training: FGSM from a random start.",
        "Recipe of the official code of Wong et al. 2020 (arXiv 2001.03994): PreActResNet-18, 15 "
        "epochs, learning rate up to 0.2 and down again, one step of 10/255 at L-inf 8/255. The "
        "loop reports catastrophic overfitting (`catastrophic_overfitting` in metrics.jsonl).",
        published="class-wise numbers are not available",
        after="pgd_at",
        changes={
            "base.name": "fgsm_rs",
            "optim.learning_rate": 0.2,
            "optim.schedule": "linear",
            "optim.warmup": 0.5,
        },
        full={"total_epochs": 15},
    ),
    "n_fgsm": Recipe(
        "Fast adversarial training: N-FGSM.",
        "Recipe of the official code of de Jorge et al. 2022 (arXiv 2202.01181): "
        "PreActResNet-18, 30 epochs, learning rate up to 0.2 and down again, noise of twice the "
        "radius, one step of the radius, no clipping to it. The loop reports catastrophic "
        "overfitting (`catastrophic_overfitting` in metrics.jsonl).",
        published="class-wise numbers are not available",
        after="fgsm_rs",
        changes={"base.name": "n_fgsm"},
        full={"total_epochs": 30},
    ),
    "awp": Recipe(
        "PGD-AT with adversarial weight perturbation, the published recipe.",
        "Recipe of the official code of Wu et al. 2020 (arXiv 2004.05884): that of "
        "`pgd_at` with gamma 0.01 from the first epoch.",
        published=(
            "average in %, clean; PGD-20 (logs in the official repository, best chosen on the "
            "test set): best 81.2; 55.4, last 81.7; 54.3. Class-wise numbers and AutoAttack are "
            "not available"
        ),
        after="pgd_at",
        changes={"awp.gamma": 0.01},
    ),
    "trades_awp": Recipe(
        "TRADES with adversarial weight perturbation, the published recipe.",
        "Recipe of the official code of Wu et al. 2020 (arXiv 2004.05884): PreActResNet-18, beta "
        "6, L-inf 8/255, 10 steps of 2/255, 200 epochs, weight decay 5e-4, gamma 0.005 after 10 "
        "epochs.",
        published="class-wise numbers are not available",
        after="pgd_at",
        changes={
            "base.name": "trades",
            "base.beta": 6.0,
            "attack.batch_norm": "eval",
            "awp.gamma": 0.005,
            "awp.warmup_epochs": 10,
        },
    ),
    "frl": Recipe(
        "FRL (Reweight + Remargin), the published recipe: fine-tunes a robust network.",
        "Recipe of the official code of Xu et al. 2021 (arXiv 2010.06121): TRADES with beta 1.5, "
        "L-inf 8/255, 10 steps of 2/255, 40 epochs at learning rate 1e-3, 6 % of the training "
        "set validate with PGD-20. It starts from the last weights of a `pgd_at` run "
        "that has not seen these 6 %: `--config=configs/cifar10.py:pgd_at "
        "--workdir=runs/cifar10-pgd_at_val6 --config.data.val_fraction=0.06`. The original's "
        'starting weights are not available. "Reweight" alone: `--config.rule.radius_rate=0 '
        "--config.rule.tolerance=0.1`.",
        published=(
            "average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460, "
            "table 1, best chosen on the test set, PreActResNet-18, their rerun): best 82.8 / "
            "71.4; 45.9 / 25.4, last 82.8 / 72.9; 44.7 / 23.1. The paper's own tables were not "
            "read"
        ),
        after="pgd_at",
        changes={
            "base.name": "trades",
            "base.beta": 1.5,
            "rule.name": "frl",
            "attack.batch_norm": "eval",
            "optim.learning_rate": 1e-3,
            "optim.schedule": "constant",
            "data.val_fraction": 0.06,
        },
        full={
            "hot_start.workdir": "runs/cifar10-pgd_at_val6",
            "total_epochs": 40,
            "validation.num_steps": 20,
        },
    ),
    "cfa": Recipe(
        "CFA with PGD-AT, the published recipe.",
        "Recipe of Wei et al. 2023 (arXiv 2303.14460): that of `pgd_at`, class-wise "
        "radii 0.5 + training robustness after 10 epochs, and gated weight averaging (FAWA). "
        "Paper and code disagree on the average; see `averaging/fawa.py`.",
        published=(
            "average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460, "
            "table 1, PreActResNet-18, best chosen on the test set): best 80.8 / 64.6; 50.1 / "
            "24.4, last 83.6 / 68.7; 47.7 / 20.5. Plain AT with EMA: best 81.9 / 61.6; 49.6 / "
            "21.3"
        ),
        after="pgd_at",
        changes={"rule.name": "cfa", "rule.radius_offset": 0.5, "averaging.name": "fawa"},
    ),
    "cfa_trades": Recipe(
        "CFA with TRADES, the published recipe.",
        "Recipe of Wei et al. 2023 (arXiv 2303.14460): the schedule of `pgd_at`, TRADES "
        "with beta 6 divided by 1 + beta, class-wise radii 0.3 + t and betas 0.5 + t, with t the "
        "training robustness, after 10 epochs, and gated weight averaging (FAWA).",
        published=(
            "average / worst class in %, clean; AutoAttack (Wei et al. 2023, arXiv 2303.14460, "
            "table 1, PreActResNet-18, best chosen on the test set): best 80.4 / 66.2; 50.1 / "
            "26.5, last 83.0 / 68.1; 49.3 / 21.5. Plain TRADES with EMA: best 81.2 / 65.0; 49.7 "
            "/ 24.2"
        ),
        after="pgd_at",
        changes={
            "base.name": "trades",
            "base.beta": 6.0,
            "base.normalize": True,
            "attack.batch_norm": "eval",
            "rule.name": "cfa",
            "rule.radius_offset": 0.3,
            "rule.beta_offset": 0.5,
            "averaging.name": "fawa",
        },
    ),
    "wat": Recipe(
        "WAT, the published recipe.",
        "Recipe of the official code of Li and Liu 2023 (arXiv 2302.04025): ResNet-18, TRADES "
        "with beta 6, L-inf 0.031, 10 steps of 0.007, 100 epochs, learning rate 0.1, divided by "
        "ten from epochs 75, 90 and 100 on, counted from 1, weight decay 2e-4, eta 0.1, 6 % of "
        "the training set validate.",
        published="not available (the paper's tables were not read)",
        after="trades",
        changes={
            "rule.name": "wat",
            "optim.milestones": (0.74, 0.89, 0.99),
            "data.val_fraction": 0.06,
        },
        full={"total_epochs": 100},
    ),
    "dafa": Recipe(
        "DAFA, the published recipe.",
        "Recipe of the official code of Lee et al. 2024 (arXiv 2401.12532): ResNet-18, TRADES "
        "with beta 6, L-inf 0.031, 10 steps of 0.007, 110 epochs, learning rate 0.1, divided by "
        "ten for the last 11 and the last 6 epochs, weight decay 5e-4, Nesterov momentum (a flag "
        "of the code is inverted), class weights of strength 1 after 70 epochs. The original "
        "does not normalise its inputs.",
        published="not available (the table is an image, not read)",
        after="trades",
        changes={
            "rule.name": "dafa",
            "optim.nesterov": True,
            "optim.weight_decay": 5e-4,
            "optim.milestones": (99 / 110, 104 / 110),
        },
        full={"rule.warmup_epochs": 70, "total_epochs": 110},
        smoke={"rule.warmup_epochs": 1},
    ),
    "trix": Recipe(
        "TRIX, the published recipe.",
        "Recipe of the official code of Medi et al. 2025 (arXiv 2507.07768): that of "
        "`dafa` for 150 epochs, learning rate divided by ten for the last 11 and the "
        "last 6 epochs; the original does not normalise its inputs; class weights after 70 "
        "epochs, targeted attacks on strong classes from the first.",
        published="not available (the paper was not read)",
        after="dafa",
        changes={"rule.name": "trix", "optim.milestones": (139 / 150, 144 / 150)},
        full={"total_epochs": 150},
    ),
    "cfol": Recipe(
        "CFOL, the published recipe.",
        "Recipe of the official experiment of Pethick et al. 2023 (arXiv 2302.08872): PGD-7 with "
        "step 0.00797 at L-inf 0.031, 100 epochs, learning rate 0.1, divided by ten at epochs 75 "
        "and 90, classes drawn by Exp3 with gamma 0.5 and rate 5e-6. ResNet-18, batches of 128, "
        "weight decay 5e-4 and batch norm in evaluation mode inside the attack are ours; we did "
        "not find theirs described.",
        published=(
            "worst class in %, attack as in the paper (abstract): 32, against 23 without. The "
            "rest is not available"
        ),
        after="pgd_at",
        changes={
            "model.name": "resnet",
            "rule.name": "cfol",
            "attack.epsilon": 0.031,
            "attack.step_size": 0.00797,
            "attack.batch_norm": "eval",
            "optim.milestones": (0.75, 0.9),
        },
        full={"attack.num_steps": 7, "total_epochs": 100},
    ),
    "faal": Recipe(
        "FAAL, the published recipe: two epochs of fine-tuning.",
        "Recipe of the official code of Zhang et al. 2024 (arXiv 2402.17729): two epochs from a "
        "robust network, here the last weights of `pgd_at`, learning rate 0.01, then "
        "0.001, PGD-10 with step 2/255, batch norm in evaluation mode inside the attack, ball "
        "radius 0.5, the whole training set. With AWP: `--config.awp.gamma=0.005`.",
        published=(
            "average / worst class in % (logs in the official repository, checkpoint chosen on "
            "test images): clean 80.7 / 65.9 (radius 1.0), AutoAttack 45.5 / 31.1 (radius 0.5)"
        ),
        after="pgd_at",
        changes={
            "rule.name": "faal",
            "rule.ball_radius": 0.5,
            "attack.batch_norm": "eval",
            "optim.learning_rate": 0.01,
            "optim.milestones": (0.5,),
        },
        full={
            "hot_start.workdir": "runs/cifar10-pgd_at",
            "data.val_fraction": 0.0,
            "evaluate.weights": "last",
            "total_epochs": 2,
        },
    ),
    "chi2_dro": Recipe(
        "Chi-square DRO over classes.",
        "The recipe of `pgd_at` with the worst class weights in a chi-square ball around "
        "each batch. The ball radius of 0.05 is our choice. The method nearest to it, CODAT 2025 "
        "(arXiv 2501.04527), was not read.",
        published="not available",
        after="pgd_at",
        changes={"rule.name": "chi2_dro", "rule.ball_radius": 0.05},
    ),
    "variance": Recipe(
        "The variance penalty of Ma et al. 2022, the published recipe.",
        "Recipe of the official code: WideResNet of width 10, PGD-10 with step 0.007 at L-inf "
        "0.031, 120 epochs, batches of 512, learning rate 0.1, from epochs 60, 90 and 110 on "
        "0.01, 0.001 and 0.0005, weight decay 2e-4, alpha 0.1. Its WRN-32-10 is not of the form "
        "6 n + 4; we take depth 34. The variance is over the ten classes; the code's is over a "
        "hundred, see `rules/variance.py`.",
        published="class-wise numbers are not available (not read)",
        after="pgd_at",
        changes={
            "model.name": "wide_resnet",
            "rule.name": "variance",
            "rule.alpha": 0.1,
            "attack.epsilon": 0.031,
            "attack.step_size": 0.007,
            "attack.batch_norm": "eval",
            "optim.weight_decay": 2e-4,
            "optim.milestones": (60 / 120, 90 / 120, 110 / 120),
            "optim.decays": (0.1, 0.1, 0.5),
        },
        full={"model.depth": 34, "model.width": 10, "batch_size": 512, "total_epochs": 120},
        smoke={"model.depth": 10, "model.width": 1},
    ),
    "head_norm": Recipe(
        "Head normalisation of a PGD-AT network: no training of its own.",
        "Starts from the last weights of `pgd_at`, trains one epoch at learning rate "
        "zero, and evaluates with the rows of the last layer brought to norm one. (The epoch "
        "renews the batch statistics.)",
        published="not available (the rejected submission behind it was not read)",
        after="pgd_at",
        changes={"calibration.name": "head_norm", "optim.learning_rate": 0.0, "total_epochs": 1},
        full={"hot_start.workdir": "runs/cifar10-pgd_at"},
    ),
    "same_class": Recipe(
        "Same-class mixup before PGD-AT: the idea of the seed paper.",
        "After Zhong and Tandon 2024 (arXiv 2411.14424), whose details are not available to us: "
        "the recipe of `pgd_at` with averages of two images of a class, and weight "
        "averaging.",
        published="not available",
        after="pgd_at",
        changes={
            "mixing.name": "same_class",
            "mixing.num_samples": 2,
            "mixing.law": "uniform",
            "averaging.name": "ema",
        },
        full={"averaging.decay": 0.999},
        smoke={"averaging.decay": 0.9},
    ),
    "cross_class": Recipe(
        "Ordinary mixup before PGD-AT: the control for same-class mixing.",
        "Recipe of Rice et al. 2020 (arXiv 2002.11569): that of `pgd_at` with one weight "
        "a batch from Beta(1.4, 1.4), the best of those they tried.",
        published=(
            "average in %, clean; PGD-10 (logs in the official repository, best chosen on the "
            "test set): best 80.4; 53.7, last 80.5; 52.9. Class-wise numbers are not available"
        ),
        after="pgd_at",
        changes={"mixing.name": "cross_class", "mixing.alpha": 1.4, "mixing.per_batch": True},
    ),
    "fairmix_adaptive": Recipe(
        "fairmix_adaptive: mixing strength per class from validation risk.",
        "The recipe of `same_class` with a mixing probability of 0.5, raised for the "
        "classes of low robust validation risk and lowered for the others; see "
        "`rules/fairmix_adaptive.py`. Robust risks on CIFAR-10 are mostly above 15.9 %, where "
        "the theory favours mixing the hard classes: `--config.rule.signal=boundary`.",
        published="not available, this method is ours",
        after="same_class",
        changes={"mixing.probability": 0.5, "rule.name": "fairmix_adaptive"},
    ),
}
