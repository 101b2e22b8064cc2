"""What people use instead, on the same weights, images and cores; skipped where not installed."""

import importlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fairmix_jax import cpu, torch_export
from fairmix_jax.benchmark.timing import Contender
from fairmix_jax.conv import lowering
from fairmix_jax.export import tensors
from fairmix_jax.progress import console

if TYPE_CHECKING:
    from fairmix_jax.benchmark.throughput import Subject

SEPARATOR = " | "
"""Between what a contender does, which is one of ours, and who does it."""

_STEPS = 20
_TRAINING_STEPS = 10


def contenders(subject: "Subject") -> dict[str, Contender]:
    """Returns `{"pgd20 | Foolbox (PyTorch)": ...}`, for each of ours what there is.

    PGD has 20 steps and AutoAttack is run if ours is. PyTorch runs in both memory formats.
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


def _plain_jax(subject: "Subject") -> Iterator[tuple[str, Contender]]:
    """Plain flax convolutions under XLA's own settings, and PGD as a loop of their gradients."""
    images, labels, threat = subject.images, subject.labels, subject.threat
    apply = subject.experiment.model.apply
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels

    def logits_of(params: Any, batch_stats: Any, x: Any) -> Any:
        return apply(params, batch_stats, x, train=False)[0]

    def input_loss(x: Any, params: Any, batch_stats: Any) -> Any:
        return jnp.sum(cross_entropy(logits_of(params, batch_stats, x), labels))

    def parameter_loss(params: Any, batch_stats: Any, x: Any) -> Any:
        logits, batch_stats = apply(params, batch_stats, x, train=True)
        return jnp.mean(cross_entropy(logits, labels)), batch_stats

    def attack(x: Any, params: Any, batch_stats: Any) -> Any:
        def step(_: Any, adversarial: Any) -> Any:
            gradient = jax.grad(input_loss)(adversarial, params, batch_stats)
            moved = adversarial + threat.epsilon / 4 * jnp.sign(gradient)
            return jnp.clip(jnp.clip(moved, x - threat.epsilon, x + threat.epsilon), *threat.bounds)

        return lax.fori_loop(0, _STEPS, step, x)

    params, batch_stats = subject.weights
    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "forward": (logits_of, (params, batch_stats, images)),
        "input gradient": (jax.value_and_grad(input_loss), (images, params, batch_stats)),
        "parameter gradient": (
            jax.value_and_grad(parameter_loss, has_aux=True), (params, batch_stats, images)
        ),
        f"pgd{_STEPS}": (attack, (images, params, batch_stats)),
    }  # fmt: skip
    options = cpu.DEFAULT if jax.default_backend() == "cpu" else None
    with lowering("plain"):
        for kind, (function, arguments) in programs.items():
            program = jax.jit(function, compiler_options=options).lower(*arguments).compile()
            who = "plain flax, fori_loop" if kind.startswith("pgd") else "plain flax"
            yield _named(kind, who), partial(program, *arguments)


def _foolbox_jax(subject: "Subject", foolbox: Any) -> Iterator[tuple[str, Contender]]:
    """Foolbox drives its loop from Python; the model it calls is jitted, plain flax."""
    if subject.threat.norm != "linf":
        return
    params, batch_stats = subject.weights
    apply = subject.experiment.model.apply
    logits_fn = jax.jit(lambda x: apply(params, batch_stats, x, train=False)[0])
    model = foolbox.JAXModel(logits_fn, bounds=subject.threat.bounds)
    attack = partial(_foolbox_attack(foolbox, subject), model, subject.images, subject.labels)
    yield _named(f"pgd{_STEPS}", "Foolbox (JAX)"), attack


def _foolbox_attack(foolbox: Any, subject: "Subject") -> Callable[..., Any]:
    epsilon = subject.threat.epsilon
    attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 4, steps=_STEPS, random_start=True)

    def run(model: Any, images: Any, labels: Any) -> Any:
        with lowering("plain"):
            attack.run(model, images, labels, epsilon=epsilon)

    return run


def _network(subject: "Subject", torch: Any) -> Any:
    """The network with the same weights as a PyTorch module."""
    from fairmix_jax import torch_model

    torch.set_num_threads(os.cpu_count() or 1)
    card = subject.experiment.model_card
    network = torch_model.build(card)
    arrays = torch_export.state_dict(tensors(subject.weights), card)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return torch_model.Normalised(network, card["mean"], card["std"]).eval()


def _batch(subject: "Subject", torch: Any) -> tuple[Any, Any]:
    images = torch.tensor(np.asarray(subject.images)).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(np.asarray(subject.labels), dtype=torch.int64)


def _torch(subject: "Subject", torch: Any) -> Iterator[tuple[str, Contender]]:
    """The passes and the PGD-AT step as one writes them in PyTorch, in both memory formats."""
    for layout in ("contiguous_format", "channels_last"):
        network = _network(subject, torch).to(memory_format=getattr(torch, layout))
        images, labels = _batch(subject, torch)
        images = images.to(memory_format=getattr(torch, layout))
        who = f"PyTorch, {layout}"
        for kind, function in _torch_passes(torch, network, images, labels).items():
            yield _named(kind, who), function
        step = _torch_step(
            torch, _network(subject, torch).to(memory_format=getattr(torch, layout)), subject
        )
        yield _named("training step, pgd_at", who), partial(step, images, labels)


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
        "forward": forward,
        "input gradient": input_gradient,
        "parameter gradient": parameter_gradient,
    }


def _torch_step(torch: Any, network: Any, subject: "Subject") -> Callable[..., None]:
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


def _fastest(subject: "Subject", torch: Any) -> tuple[Any, Any, Any]:
    """The network and the batch in channels_last, the faster format on recent CPUs."""
    network = _network(subject, torch).to(memory_format=torch.channels_last)
    images, labels = _batch(subject, torch)
    return network, images.to(memory_format=torch.channels_last), labels


def _foolbox_torch(subject: "Subject", torch: Any, foolbox: Any) -> Iterator[tuple[str, Contender]]:
    if subject.threat.norm == "linf":
        network, images, labels = _fastest(subject, torch)
        model = foolbox.PyTorchModel(network, bounds=subject.threat.bounds, device="cpu")
        attack = _foolbox_attack(foolbox, subject)
        yield _named(f"pgd{_STEPS}", "Foolbox (PyTorch)"), partial(attack, model, images, labels)


def _torchattacks(
    subject: "Subject", torch: Any, torchattacks: Any
) -> Iterator[tuple[str, Contender]]:
    if subject.threat.norm == "linf":
        network, images, labels = _fastest(subject, torch)
        epsilon = subject.threat.epsilon
        attack = torchattacks.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=_STEPS)
        yield _named(f"pgd{_STEPS}", "torchattacks"), partial(attack, images, labels)


def _pyautoattack(
    subject: "Subject", torch: Any, pyautoattack: Any
) -> Iterator[tuple[str, Contender]]:
    if "autoattack" in subject.contenders:
        network, images, labels = _fastest(subject, torch)
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
