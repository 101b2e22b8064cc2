"""Networks of RobustBench's own architecture files, saved by PyTorch, as ours.

The torch side computes in float64 with weights of float32, so that every difference is ours. The
package itself is not imported: it wants timm, torchvision and more.
"""

import importlib.util
import json
import sys
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_torch_networks import close

from fairmix_jax.export import (
    _torch_card,
    _torch_file,
    _torch_names,
    load_model,
    read_card,
    read_weights,
    torch_import,
)
from fairmix_jax.export._torch_file import Tensor
from fairmix_jax.export.torch_import import Told, import_model
from fairmix_jax.models.described import build_model, weights_template
from fairmix_jax.runtime.errors import UsageError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
package = importlib.util.find_spec("robustbench")
if package is None:
    pytest.skip("robustbench is not installed", allow_module_level=True)
FOLDER = Path(package.submodule_search_locations[0]) / "model_zoo"
CIFAR10 = dict(mean=[0.4914, 0.4822, 0.4465], std=[0.2471, 0.2435, 0.2616])
PLAIN = dict(mean=[0.0] * 3, std=[1.0] * 3)


@cache
def architecture(name):
    """One file of the package as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / "architectures" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trades(**options):
    return architecture("wide_resnet").WideResNet(num_classes=7, **options)


def deepmind(kind, **options):
    make = getattr(architecture("dm_wide_resnet"), kind)
    return make(num_classes=10, activation_fn=torch.nn.SiLU, **options)


def resnet(kind, block, blocks, **options):
    module = architecture("resnet")
    return getattr(module, kind)(getattr(module, block), blocks, num_classes=7, **options)


def preact(block, **options):
    return resnet("PreActResNet", block, [1, 1, 1, 1], **options)


def wide(depth, width, **options):
    usual = dict(norm="batch", activation="relu", padding="torch", shortcut="activated")
    return dict(name="wide_resnet", depth=depth, width=width, last_norm=True) | usual | options


def narrow(**options):
    return wide(10, 64, **options) | dict(name="preact_resnet")


SMOOTH = dict(activation="silu", padding="same")
NETWORKS = {  # how it is made, our model, and what it normalises with
    "TRADES": (lambda: trades(depth=10, widen_factor=1), wide(10, 1), PLAIN),
    "TRADES, sub_block1": (
        lambda: trades(depth=16, widen_factor=2, sub_block1=True), wide(16, 2), PLAIN,
    ),
    "DeepMind": (
        lambda: deepmind("DMWideResNet", depth=10, width=1), wide(10, 1, **SMOOTH), CIFAR10,
    ),
    "DeepMind, wider": (
        lambda: deepmind("DMWideResNet", depth=16, width=2), wide(16, 2, **SMOOTH), CIFAR10,
    ),
    "DeepMind, PreActResNet": (
        lambda: deepmind("DMPreActResNet", depth=18),
        dict(narrow(shortcut="raw3x3", **SMOOTH), depth=18), CIFAR10,
    ),
    "ResNet": (
        lambda: resnet("ResNet", "BasicBlock", [1, 1, 1, 1]),
        dict(name="resnet", depth=10, width=64, norm="batch"), PLAIN,
    ),
    "ResNet, bottlenecks": (
        lambda: resnet("ResNet", "Bottleneck", [1, 1, 1, 1]),
        dict(name="resnet", depth=14, width=64, norm="batch"), PLAIN,
    ),
    "PreActResNet of x, no last norm": (
        lambda: preact("PreActBlock"), narrow(shortcut="raw", last_norm=False), PLAIN,
    ),
    "PreActResNet of a": (lambda: preact("PreActBlockV2", bn_before_fc=True), narrow(), PLAIN),
    "PreActResNet of a, by its switch": (
        lambda: preact("PreActBlock", bn_before_fc=True, out_shortcut=True), narrow(), PLAIN,
    ),
}  # fmt: skip


def drawn(module, seed=0):
    """Gives a network random weights and statistics: no mean or bias is 0, no variance is 1."""
    key = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name in ("mu", "sigma"):
                continue
            if value.ndim == 4:
                value.normal_(generator=key).mul_((2 / value[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                value.copy_(10 ** torch.empty_like(value).uniform_(-0.5, 0.5, generator=key))
            elif value.ndim == 1 and name.endswith("weight"):
                value.uniform_(0.5, 1.5, generator=key)
            elif value.is_floating_point():
                value.normal_(generator=key).mul_(0.3)
    return module.eval()


def written(state, path, form):
    """Writes a state dict in one of three forms; returns the file."""
    if form == "safetensors":
        safetensors_torch.save_file(state, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    return path


def classes_of(module):
    """The flag for a network whose classes are not CIFAR's."""
    head = list(module.state_dict().values())[-1]
    return "" if len(head) == 10 else "a,b,c,d,e,f,g"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((2, 32, 32, 3)).astype(np.float32)


def theirs(module, images):
    """Logits and the gradient of their weighted sum by the images, both in float64."""
    x = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    logits = module.double()(x)
    (logits * torch.linspace(-1, 2, logits.shape[1])).sum().backward()
    return logits.detach(), x.grad.permute(0, 2, 3, 1)


def our_gradient(folder, images):
    """The same gradient of an exported model, in float64.

    In float32 one of the million inputs of a ReLU may fall on the other side of zero.
    """
    model = build_model(read_card(folder))
    weights = read_weights(folder, weights_template(model))

    def summed(x, weights):
        logits, _ = model.apply(*weights, x, train=False)
        return (logits * jnp.linspace(-1, 2, logits.shape[1])[None]).sum()

    with jax.enable_x64(True):
        weights = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf, np.float64)), weights)
        return jax.jit(jax.grad(summed))(jnp.asarray(images, jnp.float64), weights)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_input_gradients_are_the_zoo_s(name, images, tmp_path):
    make, model, constants = NETWORKS[name]
    module = drawn(make())
    told, cards = Told(classes=classes_of(module)), []
    for form in ("zip", "legacy", "safetensors"):
        file = written(module.state_dict(), tmp_path / "theirs.pt", form)
        cards.append(import_model(file, tmp_path / form, told)[1])
        assert (
            json.loads((tmp_path / form / "model.json").read_text())["sha256"] == cards[0]["sha256"]
        )
    assert cards[0]["model"] | model == cards[0]["model"]
    assert {n: cards[0][n] for n in constants} == constants
    logits, gradient = theirs(module, images)
    close(jax.jit(load_model(tmp_path / "zip")[0])(images), logits, 1e-4)
    close(our_gradient(tmp_path / "zip", images), gradient, 1e-6)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_tensors_of_all_kinds_are_read_as_pytorch_wrote_them(form, tmp_path):
    """Halves, integers, views that share a storage, parameters, beside an optimizer's state."""
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "half": torch.tensor([0.1, -2]).half(), "bfloat16": torch.tensor([0.1, -2]).bfloat16(),
        "double": torch.tensor(0.1).double(), "long": torch.arange(3), "bool": torch.ones(2) > 0,
        "transposed": whole.T, "column": whole[:, 1], "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(whole[1:]), "expanded": torch.ones(1).expand(5),
    }  # fmt: skip
    optimizer = torch.optim.Adam([state["parameter"]])
    state["parameter"].sum().backward()
    optimizer.step()
    content = {"epoch": 3, "lr": 0.1, "optimizer": optimizer.state_dict(), "state_dict": state}
    file = written(content, tmp_path / "f.pt", form)
    with _torch_file.opened(file) as found:
        name, tensors = _torch_names.state_dict(found)
        assert name == "state_dict" and list(tensors) == list(state)
        for name, tensor in tensors.items():
            expected = state[name].detach()
            assert tensor.shape == tuple(expected.shape)
            assert f"torch.{tensor.dtype}" == str(expected.dtype)
            np.testing.assert_array_equal(
                tensor.array().astype(np.float64), expected.double().numpy()
            )


UNREAD = {
    "float8": (lambda: {"w": torch.zeros(2).to(torch.float8_e4m3fn)}, "_rebuild_tensor_v3"),
    "complex": (lambda: {"w": torch.zeros(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
    "quantised": (
        lambda: {"w": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)},
        "_rebuild_qtensor",
    ),
    "a model": (lambda: torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
    "a number of NumPy": (lambda: {"state_dict": {}, "time": np.float64(3)}, r"multiarray\.scalar"),
}


@pytest.mark.filterwarnings("ignore")  # quantised tensors are deprecated
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("what", UNREAD)
def test_what_else_pytorch_writes_is_refused(what, form, tmp_path):
    make, said = UNREAD[what]
    file = written(make(), tmp_path / "f.pt", form)
    with pytest.raises(UsageError, match=f"{said}.*none of it was run"):
        import_model(file, tmp_path / "out", Told())


WRONG = {  # the network, and what is told of it that is not so
    "padding": ("DeepMind", dict(padding="torch")),
    "activation": ("DeepMind", dict(activation="relu")),
    "shortcut of x": ("PreActResNet of a", dict(shortcut="raw")),
    "shortcut of a": ("PreActResNet of x, no last norm", dict(shortcut="activated")),
    "mean and std": ("DeepMind", PLAIN),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_told_wrongly_moves_the_logits(what, images, tmp_path):
    """By more than a hundredth of the largest, so the test of equality above would see it."""
    name, wrong = WRONG[what]
    module = drawn(NETWORKS[name][0]())
    file = written(module.state_dict(), tmp_path / "theirs.pt", "zip")
    normalised = {n: wrong[n] for n in ("mean", "std") if n in wrong}
    options = {n: value for n, value in wrong.items() if n not in normalised}
    told = Told(classes=classes_of(module), model=options, **normalised)
    import_model(file, tmp_path / "out", told)
    with torch.no_grad():
        right = module(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    found = load_model(tmp_path / "out")[0](jnp.asarray(images))
    assert np.abs(found - right).max() > 0.01 * np.abs(right).max()


def test_a_last_norm_is_neither_lost_nor_made_up(images, tmp_path):
    """Its tensors show it; without them the logits are others."""
    with_norm, without = (
        drawn(NETWORKS[name][0]()).state_dict()
        for name in ("PreActResNet of a", "PreActResNet of x, no last norm")
    )
    told = Told(classes="a,b,c,d,e,f,g", model=dict(shortcut="activated"))
    file = written(with_norm, tmp_path / "theirs.pt", "zip")
    with pytest.raises(UsageError, match=r"last_norm=False it has bn\.weight, for which"):
        import_model(file, tmp_path / "out", told._replace(model=dict(last_norm=False)))
    import_model(file, tmp_path / "with", told)
    bare = {name: value for name, value in with_norm.items() if not name.startswith("bn.")}
    import_model(written(bare, tmp_path / "bare.pt", "zip"), tmp_path / "without", told)
    right, wrong = (load_model(tmp_path / n)[0](jnp.asarray(images)) for n in ("with", "without"))
    assert np.abs(right - wrong).max() > 0.01 * np.abs(right).max()
    file = written(without, tmp_path / "without.pt", "zip")
    with pytest.raises(UsageError, match=r"last_norm=True it lacks bn\.bias$"):
        import_model(file, tmp_path / "out", told._replace(model=dict(last_norm=True)))


def test_mu_and_sigma_in_the_file_win(images, tmp_path):
    """As RobustBench's classes keep them, which it loads from the file if they are there."""

    class Normalised(architecture("wide_resnet").WideResNet):
        def __init__(self):
            super().__init__(depth=10, widen_factor=1)
            self.register_buffer("mu", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
            self.register_buffer("sigma", torch.tensor([0.5, 0.25, 0.125]).view(1, 3, 1, 1))

        def forward(self, x):
            return super().forward((x - self.mu) / self.sigma)

    module = drawn(Normalised())
    file = written(module.state_dict(), tmp_path / "theirs.pt", "zip")
    _, card = import_model(file, tmp_path / "out", Told(zoo="cifar10/Linf/Rice2020Overfitting"))
    np.testing.assert_allclose(card["mean"], [0.1, 0.2, 0.3], rtol=1e-6)
    assert card["std"] == [0.5, 0.25, 0.125] and card["dataset"] == "cifar10"
    logits = jax.jit(load_model(tmp_path / "out")[0])(images)
    close(logits, theirs(module, images)[0], 1e-4)


def test_a_trained_model_is_imported_by_the_command(tmp_path, monkeypatch, capsys):
    """The ResNet-18 that pyautoattack ships, in the format before 1.6, on foolbox's 20 images."""
    foolbox = pytest.importorskip("foolbox")
    file = resources.files(pytest.importorskip("pyautoattack")) / "examples" / "model_test.pt"
    monkeypatch.setattr(sys, "argv", ["torch_import", str(file), str(tmp_path / "out")])
    torch_import.main()
    said = capsys.readouterr().out
    assert "resnet depth=18 width=64 norm=batch" in said
    assert "assumed      mean, std, classes, ReLU, strides in place of pooling, epsilon" in said
    folder = resources.files(foolbox) / "data"
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("cifar10_"))
    images, labels = [], []
    for name in names:
        images.append(np.asarray(Image.open(str(folder / name)), np.float32) / 255)
        labels.append(int(name.split("_")[2].partition(".")[0]))
    assert len(images) == 20
    logits = load_model(tmp_path / "out")[0](jnp.asarray(np.stack(images)))
    np.testing.assert_array_equal(np.asarray(logits).argmax(1), labels)


class Stub(ModuleType):
    """A module with any class in it, in place of one that needs what is not installed."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


def entries():
    """Of each entry of the zoo for CIFAR its name, and its network without memory for weights."""
    names = [f"robustbench.model_zoo.architectures.{n}" for n in (
        "resnext", "resnest", "robust_wide_resnet", "boosting_wide_resnet", "CARD_resnet",
        "paf_wide_resnet", "sodef_layers", "comp_model", "robustarch_wide_resnet",
        "sparsified_model", "xcit", "robust_resnet",
    )]  # fmt: skip
    parents = (
        "timm",
        "robustbench",
        "robustbench.model_zoo",
        "robustbench.model_zoo.architectures",
    )
    found = {name: Stub(name) for name in (*parents, *names)}
    for name in ("resnet", "wide_resnet", "dm_wide_resnet"):
        found[f"robustbench.model_zoo.architectures.{name}"] = architecture(name)
    spec = importlib.util.spec_from_file_location("enums", FOLDER / "enums.py")
    found["robustbench.model_zoo.enums"] = enums = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(enums)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in found.items():
            patch.setitem(sys.modules, name, module)
        for dataset in ("cifar10", "cifar100"):
            spec = importlib.util.spec_from_file_location(dataset, FOLDER / f"{dataset}.py")
            zoo = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(zoo)
            for threat, models in ("Linf", zoo.linf), ("L2", getattr(zoo, "l2", {})):
                for name, entry in models.items():
                    yield f"{dataset}/{threat}/{name}", entry["model"]


def normalisation(module, monkeypatch):
    """What a network of the zoo does to an image of ones and of zeros before its first layer."""
    for kind in type(module).__mro__:
        if kind.__module__ in ("resnet", "wide_resnet"):
            monkeypatch.setattr(kind, "forward", lambda self, x: x)
    if hasattr(module, "mean"):
        return module.mean.flatten(), module.std.flatten()
    low, high = (module(torch.full((1, 3, 1, 1), v, device="cpu")).flatten() for v in (0.0, 1.0))
    return -low / (high - low), 1 / (high - low)


OURS = ("ResNet", "PreActResNet", "WideResNet", "DMWideResNet", "DMPreActResNet")


def test_all_that_the_zoo_has_of_our_families_is_known(monkeypatch):
    """Of 109 entries normalisation, options, and the names and shapes of all tensors are right.

    The other 26 are refused by their names. Files are taken not to hold `mu` and `sigma`.
    """
    constant, seen, counts = torch.tensor, set(), {"ours": 0, "refused": 0}
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: constant(*a, **{"device": "cpu"} | k))
    monkeypatch.setattr(torch_import, "_converted", lambda tensor, key, shape, card: (
        sorted(tensor.shape) == sorted(shape) or pytest.fail(key)
    ))  # fmt: skip
    for name, make in list(entries()):
        try:
            entry = torch_import._zoo.entry(name)
        except UsageError:
            counts["refused"] += 1
            continue
        counts["ours"] += 1
        with torch.device("meta"):
            module = make()
        bases = {kind.__name__ for kind in type(module).__mro__}
        assert bases & {*OURS}, name
        state = {
            key: Tensor(tuple(value.shape), np.dtype(np.float32), None)
            for key, value in module.state_dict().items()
            if key not in ("mu", "sigma")
        }
        _, state = _torch_names.state_dict(state)
        family, tensors = _torch_names.renamed(state)
        card = _torch_card.card_of(tensors, family, Told(zoo=name), entry)
        own = card["model"]
        with monkeypatch.context() as patch:
            mean, std = normalisation(module, patch)
        np.testing.assert_allclose(
            [card["mean"], card["std"]], [mean, std], rtol=1e-5, err_msg=name
        )
        smooth = type(getattr(module, "relu", None)).__name__ in ("Swish", "SiLU")
        assert (own.get("activation") == "silu") == smooth == (family.options != {}), name
        if "PreActResNet" in bases:
            block = module.layer2[0]
            activated = type(block).__name__ == "PreActBlockV2" or block.out_shortcut
            assert own["shortcut"] == ("activated" if activated else "raw"), name
        assert len(card["classes"]) == (100 if "cifar100" in name else 10)
        if json.dumps(own) not in seen:
            seen.add(json.dumps(own))
            torch_import._weights(tensors, card)
    assert counts == {"ours": 109, "refused": 26}
