"""Small torch networks of the two published shapes, with random weights: what pretrained.py is compared with."""

from __future__ import annotations

import torch
from torch import nn


def _norm(grouped: bool, width: int) -> nn.Module:
    return nn.GroupNorm(4, width) if grouped else nn.BatchNorm2d(width)


class Grouped(nn.Module):
    """A stage of SERL's ResNet-10, by its published names."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.norm1 = _norm(True, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = _norm(True, width)
        self.shortcut = None
        if width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), _norm(True, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Batched(nn.Module):
    """torchvision's basic block, by its names."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = _norm(False, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = _norm(False, width)
        self.downsample = None
        if width_in != width or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), _norm(False, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet10(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), _norm(True, 64), nn.ReLU())
        stages = [Grouped(64, 64, 1), Grouped(64, 128, 2), Grouped(128, 256, 2), Grouped(256, 512, 2)]
        self.encoder = nn.Module()
        self.encoder.stages = nn.ModuleList(stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(self.embedder(x), (0, 1, 0, 1), value=-float("inf"))
        x = nn.functional.max_pool2d(x, 3, 2)
        for stage in self.encoder.stages:
            x = stage(x)
        return x


class ResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), _norm(False, 64)
        widths = (64, 64, 128, 256, 512)
        for index in range(4):
            first = Batched(widths[index], widths[index + 1], 1 if index == 0 else 2)
            layer = nn.Sequential(first, Batched(widths[index + 1], widths[index + 1], 1))
            setattr(self, f"layer{index + 1}", layer)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for index in range(4):
            x = getattr(self, f"layer{index + 1}")(x)
        return x


def random(network: nn.Module, seed: int = 0) -> nn.Module:
    """``network`` in use, with weights and statistics that are all different from their defaults."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
                fill(module.weight, 0.5, 1.0)
                fill(module.bias, -0.2, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                fill(module.running_mean, -0.3, 0.3)
                fill(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.Conv2d):
                scale = (2.0 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * scale)
    return network.eval()
