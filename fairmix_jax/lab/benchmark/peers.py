"""Other libraries, timed on the same weights, images and cores; skipped if not installed."""

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

from fairmix_jax.export import tensors, torch_export
from fairmix_jax.lab.benchmark import subject as ours
from fairmix_jax.lab.benchmark.subject import Contender, Subject
from fairmix_jax.models.convolution import lowering
from fairmix_jax.models.described import logits_partial
from fairmix_jax.runtime import cpu
from fairmix_jax.runtime.console import console

SEPARATOR = " | "
"""Between what a contender does, which is one of ours, and who does it."""

_PGD_AT = ours.TRAINING_STEP + "pgd_at"
_Contenders = Iterator[tuple[str, str, Contender]]  # what is done, and who does it


def contenders(subject: Subject) -> dict[str, Contender]:
    """Returns `{"pgd20 | Foolbox (PyTorch)": ...}`, for each of ours what there is.

    PyTorch itself runs in both memory formats, libraries on it in the faster one.
    """
    found = {}
    for names, add in {
        "": _plain_jax, "torch": _torch, "foolbox": _foolbox_jax, "torch foolbox": _foolbox_torch,
        "torch torchattacks": _torchattacks, "torch pyautoattack": _pyautoattack,
    }.items():  # fmt: skip
        try:
            modules = [importlib.import_module(name) for name in names.split()]
        except ImportError as error:
            console.print(f"benchmark.peers: without {names}: {error}")
            continue
        for what, who, contender in add(subject, *modules):
            found[f"{what}{SEPARATOR}{who}"] = contender
    return found


def _pgd(subject: Subject) -> Iterator[tuple[str, int]]:
    """Our PGD attacks and their steps, under L-inf, which all peers have."""
    for name in subject.contenders:
        if subject.threat.norm == "linf" and (match := re.fullmatch(r"pgd(\d+)", name)):
            yield name, int(match[1])


def _plain_jax(subject: Subject) -> _Contenders:
    """Flax's own layers under XLA's own settings, and PGD as a loop of their gradients."""
    logits_fn = logits_partial(subject.task.model.apply, subject.weights)
    passes, threat = ours.passes_of(subject, logits_fn), subject.threat
    gradient, *arguments = passes[ours.INPUT_GRADIENT]

    def attack(num_steps: int, x: Any, labels: Any, logits_fn: Partial) -> Any:
        def step(_: Any, adversarial: Any) -> Any:
            slope = gradient(adversarial, labels, logits_fn)[1]
            moved = adversarial + threat.epsilon / 4 * jnp.sign(slope)
            return jnp.clip(jnp.clip(moved, x - threat.epsilon, x + threat.epsilon), *threat.bounds)

        return lax.fori_loop(0, num_steps, step, x)

    programs = [(name, "plain flax", program) for name, program in passes.items()]
    for name, num_steps in _pgd(subject):
        programs.append((name, "plain flax, fori_loop", (partial(attack, num_steps), *arguments)))
    options = cpu.DEFAULT if jax.default_backend() == "cpu" else None
    for name, who, (function, *given) in programs:
        with lowering("plain"):
            compiled = jax.jit(function, compiler_options=options).lower(*given).compile()
        yield name, who, Contender(partial(compiled, *given))


def _foolbox_jax(subject: Subject, foolbox: Any) -> _Contenders:
    """Foolbox drives its loop from Python; the model it calls is jitted, plain flax."""
    logits_fn = jax.jit(logits_partial(subject.task.model.apply, subject.weights))
    model = foolbox.JAXModel(logits_fn, bounds=subject.threat.bounds)
    yield from _foolbox("Foolbox (JAX)", foolbox, subject, model, subject.images, subject.labels)


def _foolbox(who: str, foolbox: Any, subject: Subject, *arguments: Any) -> _Contenders:
    epsilon = subject.threat.epsilon

    def run(attack: Any) -> None:
        with lowering("plain"):
            attack.run(*arguments, epsilon=epsilon)

    for name, steps in _pgd(subject):
        attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 4, steps=steps, random_start=True)
        yield name, who, Contender(partial(run, attack))


def _in_format(subject: Subject, torch: Any, memory_format: Any) -> tuple[Any, Any, Any]:
    """The same network as a PyTorch module, the images `[B, C, H, W]` and the labels."""
    from fairmix_jax.export import torch_model

    torch.set_num_threads(os.cpu_count() or 1)
    card = subject.task.model_card
    network = torch_model.build(card)
    arrays = torch_export.state_dict(tensors(subject.weights), card)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    normalised: Any = torch_model.Normalised(network, card["mean"], card["std"]).eval()
    images = torch.tensor(np.asarray(subject.images)).permute(0, 3, 1, 2)
    labels = torch.tensor(np.asarray(subject.labels), dtype=torch.int64)
    images = images.contiguous(memory_format=memory_format)
    return normalised.to(memory_format=memory_format), images, labels


def _torch(subject: Subject, torch: Any) -> _Contenders:
    """The passes and the PGD-AT step as one writes them in PyTorch, in both memory formats."""
    for layout in ("contiguous_format", "channels_last"):
        network, images, labels = _in_format(subject, torch, getattr(torch, layout))
        who = f"PyTorch, {layout}"
        for kind, function in _torch_passes(torch, network, images, labels).items():
            yield kind, who, Contender(function)
        if _PGD_AT in subject.contenders:
            trained, *batch = _in_format(subject, torch, getattr(torch, layout))
            step = partial(_torch_step(torch, trained, subject), *batch)
            yield _PGD_AT, who, Contender(step)


def _torch_passes(torch: Any, network: Any, images: Any, labels: Any) -> dict[str, Callable]:
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

    names = ours.FORWARD, ours.INPUT_GRADIENT, ours.PARAMETER_GRADIENT
    return dict(zip(names, (forward, input_gradient, parameter_gradient), strict=True))


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


def _foolbox_torch(subject: Subject, torch: Any, foolbox: Any) -> _Contenders:
    network, *batch = _in_format(subject, torch, torch.channels_last)
    model = foolbox.PyTorchModel(network, bounds=subject.threat.bounds, device="cpu")
    yield from _foolbox("Foolbox (PyTorch)", foolbox, subject, model, *batch)


def _torchattacks(subject: Subject, torch: Any, torchattacks: Any) -> _Contenders:
    network, *batch = _in_format(subject, torch, torch.channels_last)
    epsilon = subject.threat.epsilon
    for name, num_steps in _pgd(subject):
        attack = torchattacks.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=num_steps)
        yield name, "torchattacks", Contender(partial(attack, *batch))


def _pyautoattack(subject: Subject, torch: Any, pyautoattack: Any) -> _Contenders:
    if "autoattack" in subject.contenders:
        network, images, labels = _in_format(subject, torch, torch.channels_last)
        norm = {"linf": "Linf", "l2": "L2"}[subject.threat.norm]
        attack = pyautoattack.AutoAttack(
            network, norm=norm, eps=subject.threat.epsilon, seed=subject.config.seed
        )
        attack.verbose = False

        def run() -> None:
            _, found = attack.run_standard_evaluation(images, labels, batch_size=len(images))
            contender.facts["robust_images"] = int((found == labels).sum())

        contender = Contender(run)
        yield "autoattack", "pyautoattack", contender
