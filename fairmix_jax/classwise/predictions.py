"""Predictions of a study: statements written into its config that its runs can refute.

`config.study` names the methods of a study and says what is expected of them:

    config.study.arms = {"none": "mixing.name=none", "pairs": "mixing.name=same_class"}
    config.study.predictions = ("P1: gap(pgd20): pairs < none",)

`config.json` keeps both from the moment the study begins, and its report tests each of them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fairmix_jax.classwise import attack_names
from fairmix_jax.classwise.metrics import STATISTICS
from fairmix_jax.runtime.errors import UsageError

EASY_MINUS_HARD = "easy_minus_hard"
"""A gap with its sign: mean accuracy of `study.easy_classes` less that of `study.hard_classes`."""
_FORM = re.compile(r"([^:]+): (\w+)\((\S+)\): (.+) ([<>]) (.+)")


class Prediction(NamedTuple):
    """A statement about a weighted sum of methods."""

    name: str  # e.g. `"P1"`
    statistic: str  # a name in `metrics.STATISTICS`, or `EASY_MINUS_HARD`
    attack: str  # as in `config.evaluate.attacks`
    claim: str  # in words, e.g. `"pairs < none"`
    arms: tuple[str, ...]  # the methods
    weights: tuple[int, ...]  # of each
    sign: int  # of the weighted sum if the claim is true, `-1` or `+1`


def parse(study: Mapping[str, Any]) -> list[Prediction]:
    """Returns the predictions of `config.study`.

    The form is `NAME: STATISTIC(ATTACK): SIDE < SIDE`, or with `>`; a side is an arm, or on
    both sides `ARM - ARM`, the difference of two. No arm appears twice.

    Raises:
      UsageError: a prediction is not of that form or names an unknown arm, attack or statistic, or
        a class is both easy and hard, or one of the two groups is empty where it is used.
    """
    easy, hard = (list(study[f"{name}_classes"]) for name in ("easy", "hard"))
    groups = f"study.easy_classes={easy} and study.hard_classes={hard}"
    if set(easy) & set(hard):
        raise UsageError(f"{groups} overlap; give a class to one")
    found = [_parse(text, study["arms"]) for text in study["predictions"]]
    if any(one.statistic == EASY_MINUS_HARD for one in found) and not (easy and hard):
        raise UsageError(f"{groups} leave {EASY_MINUS_HARD} without classes; name one of each")
    return found


def _parse(text: str, arms: Mapping[str, str]) -> Prediction:
    match = _FORM.fullmatch(text)
    if not match:
        raise _refused(f"{text!r} is not understood; write 'NAME: STATISTIC(ATTACK): ARM < ARM'")
    name, statistic, attack, left, relation, right = match.groups()
    known = (*STATISTICS, EASY_MINUS_HARD)
    if statistic not in known:
        raise _refused(f"{statistic!r} in {text!r} is unknown; choose one of {', '.join(known)}")
    if "," in attack:
        raise _refused(f"{attack!r} in {text!r} is a list; name one attack")
    if attack != attack_names.UNION:
        attack_names.parse(attack, field="study.predictions")
    sides = [side.split(" - ") for side in (left, right)]
    if len(sides[0]) != len(sides[1]) or len(sides[0]) > 2:
        remedy = "write an arm on both sides, or 'ARM - ARM'"
        raise _refused(f"{text!r} compares unlike things; {remedy}")
    named = tuple(sides[0] + sides[1])
    for arm in named:
        if arm not in arms:
            remedy = f"choose one of {', '.join(arms)}, or add it to study.arms"
            raise _refused(f"arm {arm!r} in {text!r} is unknown; {remedy}")
    if len(set(named)) < len(named):
        wrong = "names an arm twice, whose runs would count twice; compare different arms"
        raise _refused(f"{text!r} {wrong}")
    weights = (1, -1) if len(named) == 2 else (1, -1, -1, 1)
    sign = -1 if relation == "<" else 1
    return Prediction(name, statistic, attack, f"{left} {relation} {right}", named, weights, sign)


def _refused(wrong: str) -> UsageError:
    return UsageError(f"study.predictions: {wrong}")
