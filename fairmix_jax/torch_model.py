"""PyTorch modules for models exported by fairmix_jax; needs PyTorch and safetensors only.

    import torch_model
    model = torch_model.load("FOLDER")  # of model_torch.safetensors and model.json

The module maps images `[B, C, H, W]` in [0, 1] to logits and normalises them itself.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
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


class SmallCNN(nn.Module):
    """Three convolutions, of which the last two halve the image, and a linear layer."""

    def __init__(self, num_classes, image_shape, width=16, norm="batch"):
        super().__init__()
        height, breadth, channels = image_shape
        self.conv1 = _conv(channels, width)
        self.conv2 = _conv(width, 2 * width, stride=2)
        self.conv3 = _conv(2 * width, 4 * width, stride=2)
        self.bn1, self.bn2, self.bn3 = (_norm(norm, width * 2**i) for i in range(3))
        places = -(-height // 4) * -(-breadth // 4)
        self.linear = nn.Linear(4 * width * places, num_classes)

    def forward(self, x):
        for number in (1, 2, 3):
            x = getattr(self, f"conv{number}")(x)
            x = F.relu(getattr(self, f"bn{number}")(x))
        return self.linear(x.flatten(1))


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
            self.shortcut = nn.Sequential(
                _conv(inputs, features, size=1, stride=stride), _norm(norm, features)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A convolution, stages of blocks, global average and a linear layer.

    With pre-activation blocks the last normalisation is `bn`, else the first one `bn1`.
    """

    def __init__(self, num_classes, channels, stem, features, blocks, norm, *, is_preact):
        super().__init__()
        self.conv1 = _conv(channels, stem)
        if is_preact:
            self.bn = _norm(norm, features[-1])
        else:
            self.bn1 = _norm(norm, stem)
        make, inputs, self.stages = PreActBlock if is_preact else BasicBlock, stem, len(blocks)
        for stage, (width, number) in enumerate(zip(features, blocks, strict=True)):
            layers = []
            for block in range(number):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(make(inputs, width, stride, norm))
                inputs = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(self.bn1(x)) if hasattr(self, "bn1") else x
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        x = F.relu(self.bn(x)) if hasattr(self, "bn") else x
        return self.linear(x.mean((2, 3)))


class Linear(nn.Module):
    """A linear layer on the flattened image."""

    def __init__(self, num_classes, image_shape):
        super().__init__()
        height, width, channels = image_shape
        self.linear = nn.Linear(height * width * channels, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


def build(card):
    """Returns the untrained network that `model.json` describes, without normalisation."""
    chosen = dict(card["model"])
    name, norm = chosen.pop("name"), chosen.get("norm", "batch")
    classes, shape = len(card["classes"]), card["image_shape"]
    if name == "linear":
        return Linear(classes, shape)
    if name == "small_cnn":
        return SmallCNN(classes, shape, **chosen)
    if name == "wide_resnet":
        features = [16 * chosen["width"] * 2**i for i in range(3)]
        blocks = [(chosen["depth"] - 4) // 6] * 3
        return ResNet(classes, shape[-1], 16, features, blocks, norm, is_preact=True)
    if name in ("preact_resnet", "resnet"):
        features = [chosen["width"] * 2**i for i in range(4)]
        return ResNet(
            classes, shape[-1], features[0], features, _BLOCKS[chosen["depth"]], norm,
            is_preact=name == "preact_resnet",
        )  # fmt: skip
    raise ValueError(f"model {name!r} is not known here")


def load(folder):
    """Returns the trained model in `folder`, in evaluation mode."""
    folder = Path(folder)
    card = json.loads((folder / "model.json").read_text())
    network = build(card)
    network.load_state_dict(load_file(str(folder / "model_torch.safetensors")))
    return Normalised(network, card["mean"], card["std"]).eval()


def _conv(inputs, features, size=3, stride=1):
    return nn.Conv2d(inputs, features, size, stride=stride, padding=size // 2, bias=False)


def _norm(kind, features):
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(features // 8, features, eps=1e-6)
    return nn.BatchNorm2d(features)  # also "batch:N", which differs in training only
