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


class Normalised(nn.Module):
    """A network on images in [0, 1]."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network = network
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images):
        return self.network((images - self.mean) / self.std)


class PreActBlock(nn.Module):
    """Normalisation and ReLU before each of two convolutions."""

    def __init__(self, inputs, features, stride, norm):
        super().__init__()
        self.bn1, self.conv1 = _norm(norm, inputs), _conv(inputs, features, stride=stride)
        self.bn2, self.conv2 = _norm(norm, features), _conv(features, features)
        if stride > 1 or inputs != features:
            self.shortcut = nn.Sequential(_conv(inputs, features, size=1, stride=stride))

    def forward(self, x):
        active = F.relu(self.bn1(x))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class BasicBlock(nn.Module):
    """Normalisation after each of two convolutions, ReLU after the first and the sum."""

    def __init__(self, inputs, features, stride, norm):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, features, stride=stride), _norm(norm, features)
        self.conv2, self.bn2 = _conv(features, features), _norm(norm, features)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != features:
            self.shortcut.append(_conv(inputs, features, size=1, stride=stride))
            self.shortcut.append(_norm(norm, features))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


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


def resnet(num_classes, channels, stem, features, blocks, norm, *, is_preact):
    """A convolution, stages of blocks, global average and a linear layer.

    With pre-activation blocks the last normalisation is `bn`, else the first one `bn1`.
    """
    layers, inputs = OrderedDict(conv1=_conv(channels, stem)), stem
    if not is_preact:
        layers |= {"bn1": _norm(norm, stem), "relu": nn.ReLU()}
    make = PreActBlock if is_preact else BasicBlock
    for stage, (width, number) in enumerate(zip(features, blocks, strict=True)):
        stack = []
        for block in range(number):
            stack.append(make(inputs, width, 2 if stage > 0 and block == 0 else 1, norm))
            inputs = width
        layers[f"layer{stage + 1}"] = nn.Sequential(*stack)
    if is_preact:
        layers |= {"bn": _norm(norm, inputs), "relu": nn.ReLU()}
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(layers | {"linear": nn.Linear(inputs, num_classes)})


def build(card):
    """Returns the untrained network that `model.json` describes, without normalisation."""
    chosen = dict(card["model"])
    name, norm = chosen.pop("name"), chosen.get("norm", "batch")
    classes, shape = len(card["classes"]), card["image_shape"]
    if name == "linear":
        layers = {"flatten": nn.Flatten(), "linear": nn.Linear(math.prod(shape), classes)}
        return nn.Sequential(OrderedDict(layers))
    if name == "small_cnn":
        return small_cnn(classes, shape, **chosen)
    if name == "wide_resnet":
        features = [16 * chosen["width"] * 2**i for i in range(3)]
        blocks = [(chosen["depth"] - 4) // 6] * 3
        return resnet(classes, shape[-1], 16, features, blocks, norm, is_preact=True)
    if name in ("preact_resnet", "resnet"):
        features = [chosen["width"] * 2**i for i in range(4)]
        return resnet(
            classes, shape[-1], features[0], features, _BLOCKS[chosen["depth"]], norm,
            is_preact=name == "preact_resnet",
        )  # fmt: skip
    raise ValueError(f"model {name!r} is not known here")


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


def _conv(inputs, features, size=3, stride=1):
    return nn.Conv2d(inputs, features, size, stride=stride, padding=size // 2, bias=False)


def _norm(kind, features):
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(features // 8, features, eps=1e-6)
    return nn.BatchNorm2d(features)  # also "batch:N", which differs in training only
