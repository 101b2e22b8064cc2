"""The names of `evaluate.attacks`, and what each of them does."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fairmix_jax.attacks.autoattack import attack_makers
from fairmix_jax.errors import UsageError

_ENSEMBLES = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-rand": "rand",
    "fast": "fast",
}
UNION = "union"
"""The name of the union of all attacks among the results of an evaluation."""
_STEPS = re.compile(r"(pgd|mifgsm)([1-9]\d*)")


class Named(NamedTuple):
    """One entry of the list.

    Attributes:
      name: as written.
      kind: `"clean"`, `"fgsm"`, `"mifgsm"`, `"pgd"` or `"ensemble"`.
      num_steps: of PGD and MI-FGSM, else 0.
      version: of an ensemble, as `attacks.autoattack` takes it.
      num_examples: of the class-balanced subset of the images that it attacks; 0 for all.
    """

    name: str
    kind: str
    num_steps: int = 0
    version: str | tuple[str, ...] = ()
    num_examples: int = 0


def parse(names: str, *, field: str = "evaluate.attacks") -> list[Named]:
    """Returns the attacks in a list such as `"clean,pgd20,autoattack"`, without repeats.

    Known are `clean`, `fgsm`, `pgdN` and `mifgsmN` (`N` steps), single members of
    AutoAttack (`apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t`, `square`), its versions
    `autoattack`, `autoattack-plus` and `autoattack-rand`, and `fast`, which is `apgd-ce`
    and `apgd-t`. `NAME@N` attacks the first `N / K` images of each of the `K` classes only.

    Args:
      names: the list.
      field: of the config, which errors name.

    Raises:
      UsageError: the list is empty or a name is not understood.
    """
    parsed = list(dict.fromkeys(_parse_all(names, field)))
    if not parsed:
        raise UsageError(f"{field} is empty; name at least one, e.g. clean,pgd20")
    return parsed


def _parse_all(names: str, field: str) -> Iterator[Named]:
    for written in filter(None, (part.strip() for part in names.split(","))):
        name, at, number = written.partition("@")
        if at and not (number.isdigit() and int(number)):
            raise UsageError(
                f"{field}={written!r} is not understood; give a number of images "
                "after '@', e.g. autoattack@500"
            )
        yield _parse(name, field)._replace(name=written, num_examples=int(number or 0))


def _parse(name: str, field: str) -> Named:
    if name in ("clean", "fgsm"):
        return Named(name, name)
    if match := _STEPS.fullmatch(name):
        return Named(name, match[1], num_steps=int(match[2]))
    if name in _ENSEMBLES:
        return Named(name, "ensemble", version=_ENSEMBLES[name])
    if name in attack_makers():
        return Named(name, "ensemble", version=(name,))
    known = ["clean", "fgsm", "pgdN", "mifgsmN", *attack_makers(), *_ENSEMBLES]
    raise UsageError(
        f"{field}={name!r} is unknown; choose from {', '.join(known)}, with N a number "
        "of steps, e.g. pgd20"
    )
