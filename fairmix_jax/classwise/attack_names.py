"""The names in `evaluate.attacks`, read."""

import re
from typing import NamedTuple

from fairmix_jax.attacks.autoattack import attack_makers
from fairmix_jax.runtime.declared import shown
from fairmix_jax.runtime.errors import UsageError

UNION = "union"
"""The name of the union of all attacks among the results of an evaluation."""

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # ASCII, and what 32 bits hold
_WITH_STEPS = re.compile(rf"(pgd|mifgsm)({_NUMBER.pattern})")
_ENSEMBLES = {
    "autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand", "fast": "fast",
}  # fmt: skip


class AttackChoice(NamedTuple):
    """One entry of `evaluate.attacks`."""

    name: str  # as written
    kind: str  # `"clean"`, `"fgsm"`, `"mifgsm"` or `"pgd"`, of `step_attacks`, or `"ensemble"`
    num_steps: int = 0  # of PGD and MI-FGSM
    version: str | tuple[str, ...] = ()  # of an ensemble, as `attacks.autoattack` takes it
    num_examples: int = 0  # size of the class-balanced subset of images that it attacks; 0 for all


def parse(names: str, *, field: str = "evaluate.attacks") -> list[AttackChoice]:
    """Returns the attacks in a list such as `"clean,pgd20,autoattack"`, without repeats.

    Known are `clean`, `fgsm`, `pgdN` and `mifgsmN` (`N` steps), single members of
    AutoAttack (`apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square`), its versions
    `autoattack`, `autoattack-plus` and `autoattack-rand`, and `fast`, which is `apgd-ce`
    and `apgd-t`. `NAME@N` attacks the first `N / K` images of each of the `K` classes only.

    Raises a `UsageError` if the list is empty or a name unknown, which names the config's `field`.
    """
    parsed = [_parse(part.strip(), field) for part in names.split(",") if part.strip()]
    if not parsed:
        raise UsageError(f"{field} is empty; name at least one, e.g. clean,pgd20")
    return list(dict.fromkeys(parsed))


def _parse(written: str, field: str) -> AttackChoice:
    name, at, number = written.partition("@")
    if at and not _NUMBER.fullmatch(number):
        remedy = "give a number of images after '@', e.g. autoattack@500"
        raise UsageError(f"{field}={shown(written)} is not understood; {remedy}")
    num_examples = int(number or 0)
    if name in ("clean", "fgsm"):
        return AttackChoice(written, name, num_examples=num_examples)
    if match := _WITH_STEPS.fullmatch(name):
        return AttackChoice(written, match[1], int(match[2]), num_examples=num_examples)
    if name in _ENSEMBLES or name in attack_makers():
        return AttackChoice(written, "ensemble", 0, _ENSEMBLES.get(name, (name,)), num_examples)
    known = ", ".join(["clean", "fgsm", "pgdN", "mifgsmN", *attack_makers(), *_ENSEMBLES])
    remedy = f"choose from {known}, with N a number of steps, e.g. pgd20"
    raise UsageError(f"{field}={shown(name)} is unknown; {remedy}")
