"""Models that an audit is given: exported ones, and what functions in users' files return."""

import importlib.util
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fairmix_jax import export
from fairmix_jax.data import batches
from fairmix_jax.lab.kept_results import COMPUTES
from fairmix_jax.models.described import build_model, logits_partial, weights_template
from fairmix_jax.runtime.errors import UsageError, refused
from fairmix_jax.runtime.sealed import digest
from fairmix_jax.training.task import Task
from fairmix_jax.types import Array, LogitsFn

_PROBED = 64


class Guest(NamedTuple):
    """A model of somebody else's."""

    logits_fn: Partial
    sha256: str  # of what it computes with, or of its logits of a few images and their gradients
    zoo_name: str = ""  # in RobustBench, if its card has one


@contextmanager
def visiting(source: str) -> Generator[None]:
    """While it lasts, files beside the one of a model can be imported; then all is as it was.

    Modules that lie there, options of JAX and the working directory are not left to other models.
    A model that ends the process is a `UsageError`.
    """
    folder, place = Path(source.partition(".py:")[0]).resolve().parent, Path.cwd()
    modules, options, path = set(sys.modules), dict(jax.config.values), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    except SystemExit as stop:
        raise UsageError(f"{source} ended the process, with status {stop.code}") from stop
    finally:
        sys.path[:] = path
        os.chdir(place)
        for name, value in options.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)
        for name in set(sys.modules) - modules:
            file = Path(getattr(sys.modules[name], "__file__", None) or "/")
            if file.is_relative_to(folder) and "site-packages" not in file.parts:
                del sys.modules[name]


def load(source: str, task: Task) -> Guest:
    """Returns the model that a text names, see `audit.run`.

    Raises a `UsageError` if it cannot be had, or has not the data's classes and images.
    """
    path, _, function = source.partition(".py:")
    if function:
        images = jnp.asarray(batches.as_float(task.dataset.test.images[:_PROBED]))
        logits_fn = Partial(_made(Path(f"{path}.py"), function))
        with refused(f"{source} does not take images of shape {images.shape}"):
            seen = [logits_fn(images)]
        with suppress(Exception):  # without derivatives it is attacked by Square alone
            seen.append(jax.jit(jax.grad(_spread))(images, logits_fn))
        return Guest(logits_fn, digest(seen))
    try:
        card = export.read_card(source)
        for field in ("image_shape", "classes"):
            if card[field] != task.model_card[field]:
                raise ValueError(
                    f"its {field} is {card[field]}, the data's {task.model_card[field]}"
                )
        model = build_model(card)
        weights = export.read_weights(source, weights_template(model))
    except (OSError, ValueError) as error:
        raise UsageError(f"{source!r} cannot be audited: {error}") from error
    zoo_name = str(card.get("source", {}).get("zoo", "")).rpartition("/")[2]
    computes = str([card[field] for field in COMPUTES])
    return Guest(logits_partial(model.apply, weights), digest((weights, computes)), zoo_name)


def _spread(images: Array, logits_fn: Partial) -> Array:
    return jnp.sum(jax.nn.logsumexp(logits_fn(images), axis=1))


def _made(path: Path, function: str) -> LogitsFn:
    """What a function in a user's file returns."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    with refused(f"{path}:{function} cannot be called", "see error.txt in its folder"):
        spec.loader.exec_module(module)
        if not callable(make := getattr(module, function, None)):
            raise UsageError(f"{path} defines no function {function!r}; correct the name")
        if not callable(made := make()):
            raise UsageError(f"{path}:{function} returned {made!r}; let it return a function")
    return made
