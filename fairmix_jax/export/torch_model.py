"""PyTorch modules for models exported by fairmix_jax; needs PyTorch and safetensors only.

    import torch_model
    model = torch_model.load("FOLDER")  # of model_torch.safetensors and model.json

The module maps images `[B, C, H, W]` in [0, 1] to logits and normalises them itself.
"""

import hashlib
import json
import math
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load as load_weights
from torch import nn
from torch.nn import functional as F

_BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECKS = {
    14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
}  # fmt: skip


class Normalised(nn.Module):
    """A network on images in [0, 1]."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads below and on the right only, as `SAME` in JAX."""

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class PreActBlock(nn.Module):
    """Normalisation and activation before each of two convolutions."""

    expansion = 1

    def __init__(
        self, inputs, features, stride, norm, activation="relu", padding="torch",
        shortcut="activated",
    ):  # fmt: skip
        super().__init__()
        self.bn1, self.conv1 = _norm(norm, inputs), _conv(inputs, features, 3, stride, padding)
        self.bn2, self.conv2 = _norm(norm, features), _conv(features, features)
        self.activate, self.is_activated = getattr(F, activation), shortcut == "activated"
        if stride > 1 or inputs != features:
            size = 3 if shortcut == "raw3x3" else 1
            self.shortcut = nn.Sequential(_conv(inputs, features, size, stride, padding))

    def forward(self, x):
        active = self.activate(self.bn1(x))
        y = self.conv2(self.activate(self.bn2(self.conv1(active))))
        if hasattr(self, "shortcut"):
            x = self.shortcut(active if self.is_activated else x)
        return y + x


class BasicBlock(nn.Module):
    """Normalisation after each of two convolutions, ReLU after the first and the sum."""

    expansion = 1

    def __init__(self, inputs, features, stride, norm):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, features, stride=stride), _norm(norm, features)
        self.conv2, self.bn2 = _conv(features, features), _norm(norm, features)
        self.shortcut = _shortcut(inputs, features, stride, norm)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """Normalisation after each of three convolutions, ReLU after all but the last and the sum."""

    expansion = 4

    def __init__(self, inputs, features, stride, norm):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, features, size=1), _norm(norm, features)
        self.conv2, self.bn2 = _conv(features, features, stride=stride), _norm(norm, features)
        self.conv3, self.bn3 = _conv(features, 4 * features, size=1), _norm(norm, 4 * features)
        self.shortcut = _shortcut(inputs, 4 * features, stride, norm)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.shortcut(x))


def _shortcut(inputs, features, stride, norm):
    if stride == 1 and inputs == features:
        return nn.Sequential()
    return nn.Sequential(_conv(inputs, features, 1, stride), _norm(norm, features))


def small_cnn(num_classes, image_shape, width=16, norm="batch"):
    """Three convolutions, of which the last two halve the image, and a linear layer."""
    height, breadth, inputs = image_shape
    layers = OrderedDict()
    for number, (features, stride) in enumerate([(width, 1), (2 * width, 2), (4 * width, 2)], 1):
        layers[f"conv{number}"] = _conv(inputs, features, stride=stride)
        layers[f"bn{number}"] = _norm(norm, features)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = features
    places = -(-height // 4) * -(-breadth // 4)
    layers |= {"flatten": nn.Flatten(), "linear": nn.Linear(inputs * places, num_classes)}
    return nn.Sequential(layers)


def resnet(
    num_classes, channels, stem, features, blocks, block, norm="batch", activation="relu",
    last_norm=True, **options,
):  # fmt: skip
    """A convolution, stages of blocks, global average and a linear layer.

    With pre-activation blocks the last normalisation, if any, is `bn`; else the first is `bn1`.
    """
    is_preact, inputs = block is PreActBlock, stem
    layers = OrderedDict(conv1=_conv(channels, stem))
    if is_preact:
        options["activation"] = activation
    else:
        layers |= {"bn1": _norm(norm, stem), "relu": nn.ReLU()}
    for stage, (width, number) in enumerate(zip(features, blocks, strict=True), 1):
        stack = []
        for place in range(number):
            stride = 2 if stage > 1 and place == 0 else 1
            stack.append(block(inputs, width, stride, norm, **options))
            inputs = width * block.expansion
        layers[f"layer{stage}"] = nn.Sequential(*stack)
    if is_preact and last_norm:
        activated = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]
        layers |= {"bn": _norm(norm, inputs), "activated": activated()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(layers | {"linear": nn.Linear(inputs, num_classes)})


def build(card):
    """Returns the untrained network that `model.json` describes, without normalisation."""
    chosen = dict(card["model"])
    name = chosen.pop("name")
    classes, shape = len(card["classes"]), card["image_shape"]
    if name == "linear":
        layers = {"flatten": nn.Flatten(), "linear": nn.Linear(math.prod(shape), classes)}
        return nn.Sequential(OrderedDict(layers))
    if name == "small_cnn":
        return small_cnn(classes, shape, **chosen)
    if name not in ("wide_resnet", "preact_resnet", "resnet"):
        raise ValueError(f"model {name!r} is not known here")
    depth, width, block = chosen.pop("depth"), chosen.pop("width"), PreActBlock
    if name == "wide_resnet":
        stem, features, blocks = 16, [16 * width * 2**i for i in range(3)], [(depth - 4) // 6] * 3
    else:
        stem, features = width, [width * 2**i for i in range(4)]
        blocks = (_BLOCKS | _BOTTLENECKS)[depth]
    if name == "resnet":
        block = Bottleneck if depth in _BOTTLENECKS else BasicBlock
    return resnet(classes, shape[-1], stem, features, blocks, block, **chosen)


def load(folder):
    """Returns the trained model in `folder`, in evaluation mode; ValueError if it is damaged."""
    folder = Path(folder)
    card = json.loads((folder / "model.json").read_text())
    content = (folder / "model_torch.safetensors").read_bytes()
    if card.get("torch_sha256", own := hashlib.sha256(content).hexdigest()) != own:
        raise ValueError(f"{folder / 'model_torch.safetensors'} is damaged; export it again")
    network = build(card)
    network.load_state_dict(load_weights(content))
    return Normalised(network, card["mean"], card["std"]).eval()


def _conv(inputs, features, size=3, stride=1, padding="torch"):
    if padding == "same" and size > 1 and stride > 1:
        return SameConv2d(inputs, features, size, stride, bias=False)
    return nn.Conv2d(inputs, features, size, stride, padding=size // 2, bias=False)


def _norm(kind, features):
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(features // 8, features, eps=1e-6)
    return nn.BatchNorm2d(features)  # also "batch:N", which differs in training only
