"""What people use instead, on the same weights, images and cores; skipped where not installed."""

import importlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from fairmix_jax import cpu, torch_export
from fairmix_jax.benchmark.subject import (
    FORWARD,
    INPUT_GRADIENT,
    PARAMETER_GRADIENT,
    TRAINING_STEP,
    Subject,
    passes_of,
)
from fairmix_jax.benchmark.timing import Contender
from fairmix_jax.conv import lowering
from fairmix_jax.evaluate import logits_partial
from fairmix_jax.export import tensors
from fairmix_jax.progress import console

SEPARATOR = " | "
"""Between what a contender does, which is one of ours, and who does it."""

_PGD_AT = TRAINING_STEP + "pgd_at"


def contenders(subject: Subject) -> dict[str, Contender]:
    """Returns `{"pgd20 | Foolbox (PyTorch)": ...}`, for each of ours what there is.

    PyTorch itself runs in both memory formats, libraries on it in the faster one.
    """
    found = dict(_plain_jax(subject))
    for name, add in (
        ("torch", _torch),
        ("foolbox", _foolbox_jax),
        ("torch foolbox", _foolbox_torch),
        ("torch torchattacks", _torchattacks),
        ("torch pyautoattack", _pyautoattack),
    ):
        modules = [_imported(part) for part in name.split()]
        if None not in modules:
            found.update(add(subject, *modules))
    return found


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        console.print(f"benchmark.peers: without {name}: {error}", markup=False)
        return None


def _named(kind: str, who: str) -> str:
    return f"{kind}{SEPARATOR}{who}"


def _pgd(subject: Subject) -> Iterator[tuple[str, int]]:
    """Our PGD attacks and their steps, under L-inf, which all peers have."""
    for name in subject.contenders:
        if subject.threat.norm == "linf" and (match := re.fullmatch(r"pgd(\d+)", name)):
            yield name, int(match[1])


def _plain_jax(subject: Subject) -> dict[str, Contender]:
    """Flax's own layers under XLA's own settings, and PGD as a loop of their gradients."""
    logits_fn = logits_partial(subject.experiment.model.apply, subject.weights)
    passes, threat = passes_of(subject, logits_fn), subject.threat
    gradient, arguments = passes[INPUT_GRADIENT]

    def attack(num_steps: int, x: Any, labels: Any, logits_fn: Partial) -> Any:
        def step(_: Any, adversarial: Any) -> Any:
            slope = gradient(adversarial, labels, logits_fn)[1]
            moved = adversarial + threat.epsilon / 4 * jnp.sign(slope)
            return jnp.clip(jnp.clip(moved, x - threat.epsilon, x + threat.epsilon), *threat.bounds)

        return lax.fori_loop(0, num_steps, step, x)

    programs = {_named(name, "plain flax"): program for name, program in passes.items()} | {
        _named(name, "plain flax, fori_loop"): (partial(attack, num_steps), arguments)
        for name, num_steps in _pgd(subject)
    }
    options = cpu.DEFAULT if jax.default_backend() == "cpu" else None
    with lowering("plain"):
        return {
            name: partial(
                jax.jit(function, compiler_options=options).lower(*arguments).compile(), *arguments
            )
            for name, (function, arguments) in programs.items()
        }


def _foolbox_jax(subject: Subject, foolbox: Any) -> Iterator[tuple[str, Contender]]:
    """Foolbox drives its loop from Python; the model it calls is jitted, plain flax."""
    logits_fn = jax.jit(logits_partial(subject.experiment.model.apply, subject.weights))
    model = foolbox.JAXModel(logits_fn, bounds=subject.threat.bounds)
    for name, num_steps in _pgd(subject):
        attack = _foolbox_attack(foolbox, subject, num_steps)
        run = partial(attack, model, subject.images, subject.labels)
        yield _named(name, "Foolbox (JAX)"), run


def _foolbox_attack(foolbox: Any, subject: Subject, num_steps: int) -> Callable[..., None]:
    epsilon = subject.threat.epsilon
    attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 4, steps=num_steps, random_start=True)

    def run(model: Any, images: Any, labels: Any) -> None:
        with lowering("plain"):
            attack.run(model, images, labels, epsilon=epsilon)

    return run


def _network(subject: Subject, torch: Any) -> Any:
    """The network with the same weights as a PyTorch module."""
    from fairmix_jax import torch_model

    torch.set_num_threads(os.cpu_count() or 1)
    card = subject.experiment.model_card
    network = torch_model.build(card)
    arrays = torch_export.state_dict(tensors(subject.weights), card)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return torch_model.Normalised(network, card["mean"], card["std"]).eval()


def _in_format(subject: Subject, torch: Any, memory_format: Any) -> tuple[Any, Any, Any]:
    """The network, the images `[B, C, H, W]` and the labels."""
    images = torch.tensor(np.asarray(subject.images)).permute(0, 3, 1, 2)
    labels = torch.tensor(np.asarray(subject.labels), dtype=torch.int64)
    network = _network(subject, torch).to(memory_format=memory_format)
    return network, images.contiguous(memory_format=memory_format), labels


def _torch(subject: Subject, torch: Any) -> Iterator[tuple[str, Contender]]:
    """The passes and the PGD-AT step as one writes them in PyTorch, in both memory formats."""
    for layout in ("contiguous_format", "channels_last"):
        network, images, labels = _in_format(subject, torch, getattr(torch, layout))
        who = f"PyTorch, {layout}"
        for kind, function in _torch_passes(torch, network, images, labels).items():
            yield _named(kind, who), function
        if _PGD_AT in subject.contenders:
            trained, *batch = _in_format(subject, torch, getattr(torch, layout))
            yield _named(_PGD_AT, who), partial(_torch_step(torch, trained, subject), *batch)


def _torch_passes(torch: Any, network: Any, images: Any, labels: Any) -> dict[str, Contender]:
    loss_of = torch.nn.functional.cross_entropy

    def forward() -> None:
        with torch.no_grad():
            network(images)

    def input_gradient() -> None:
        x = images.detach().requires_grad_()
        torch.autograd.grad(loss_of(network(x), labels, reduction="sum"), x)

    def parameter_gradient() -> None:
        network.train()
        torch.autograd.grad(loss_of(network(images), labels), list(network.parameters()))
        network.eval()

    return {
        FORWARD: forward,
        INPUT_GRADIENT: input_gradient,
        PARAMETER_GRADIENT: parameter_gradient,
    }


def _torch_step(torch: Any, network: Any, subject: Subject) -> Callable[..., None]:
    """PGD-AT: the attack sees running statistics; SGD with momentum, as in the config."""
    loss_of, config = torch.nn.functional.cross_entropy, subject.config
    epsilon, step_size = config.attack.epsilon, config.attack.step_size
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-6, momentum=config.optim.momentum,
        nesterov=config.optim.nesterov, weight_decay=config.optim.weight_decay,
    )  # fmt: skip

    def step(images: Any, labels: Any) -> None:
        network.eval()
        x = images + torch.empty_like(images).uniform_(-epsilon, epsilon)
        for _ in range(config.attack.num_steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(network(x), labels), x)
            x = x.detach() + step_size * gradient.sign()
            x = torch.clamp(torch.min(torch.max(x, images - epsilon), images + epsilon), 0, 1)
        network.train()
        optimizer.zero_grad()
        loss_of(network(x.detach()), labels).backward()
        optimizer.step()

    return step


def _foolbox_torch(subject: Subject, torch: Any, foolbox: Any) -> Iterator[tuple[str, Contender]]:
    network, *batch = _in_format(subject, torch, torch.channels_last)
    model = foolbox.PyTorchModel(network, bounds=subject.threat.bounds, device="cpu")
    for name, num_steps in _pgd(subject):
        attack = _foolbox_attack(foolbox, subject, num_steps)
        yield _named(name, "Foolbox (PyTorch)"), partial(attack, model, *batch)


def _torchattacks(
    subject: Subject, torch: Any, torchattacks: Any
) -> Iterator[tuple[str, Contender]]:
    network, *batch = _in_format(subject, torch, torch.channels_last)
    epsilon = subject.threat.epsilon
    for name, num_steps in _pgd(subject):
        attack = torchattacks.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=num_steps)
        yield _named(name, "torchattacks"), partial(attack, *batch)


def _pyautoattack(
    subject: Subject, torch: Any, pyautoattack: Any
) -> Iterator[tuple[str, Contender]]:
    if "autoattack" in subject.contenders:
        network, images, labels = _in_format(subject, torch, torch.channels_last)
        norm = {"linf": "Linf", "l2": "L2"}[subject.threat.norm]
        attack = pyautoattack.AutoAttack(
            network, norm=norm, eps=subject.threat.epsilon, seed=subject.config.seed
        )
        attack.verbose = False
        name = _named("autoattack", "pyautoattack")

        def run() -> None:
            _, found = attack.run_standard_evaluation(images, labels, batch_size=len(images))
            subject.robust[name] = int((found == labels).sum())

        yield name, run
