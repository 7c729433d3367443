"""EfficientNet-Lite (Tan & Le 2019; the Lite variant drops squeeze-and-excitation and uses ReLU6) as a feature encoder.

The names of the tensors are timm's (`tf_efficientnet_lite0`), and a test compares the two. timm itself is not imported
where a photo is segmented: it pulls in torchvision and TorchDynamo, which cost 0.2 GB and two seconds of every start.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights


@dataclass(frozen=True)
class Stage:
    """A row of the paper's table: blocks of one kernel size and width; the first of them has the stride."""

    kernel: int
    stride: int
    expansion: int
    width: int
    repeats: int


ENCODERS: dict[str, tuple[int, tuple[Stage, ...]]] = {
    "tf_efficientnet_lite0": (
        32,
        (
            Stage(3, 1, 1, 16, 1),
            Stage(3, 2, 6, 24, 2),
            Stage(5, 2, 6, 40, 2),
            Stage(3, 2, 6, 80, 3),
            Stage(5, 1, 6, 112, 3),
            Stage(5, 2, 6, 192, 4),
            Stage(3, 1, 6, 320, 1),
        ),
    ),
    "tiny": (
        8,
        (
            Stage(3, 1, 1, 8, 1),
            Stage(3, 2, 2, 8, 1),
            Stage(5, 2, 2, 12, 2),
            Stage(3, 2, 2, 16, 1),
            Stage(5, 1, 2, 16, 1),
            Stage(5, 2, 2, 24, 1),
            Stage(3, 1, 2, 32, 1),
        ),
    ),
}
NORM_AFTER = {  # which convolution a norm follows, by kind of block
    "bn1": {"EfficientNetLite": "conv_stem", "DepthwiseSeparable": "conv_dw", "InvertedResidual": "conv_pw"},
    "bn2": {"DepthwiseSeparable": "conv_pw", "InvertedResidual": "conv_dw"},
    "bn3": {"InvertedResidual": "conv_pwl"},
}
OUTPUTS = (1, 2, 4, 6)  # stages that end strides 4, 8, 16, 32


class EfficientNetLite(nn.Module):
    """Features at strides 4, 8, 16 and 32; `channels` are their widths."""

    def __init__(self, name: str) -> None:
        super().__init__()
        stem, stages = ENCODERS[name]
        self.conv_stem, self.bn1 = SameConv(3, stem, 3, 2), _norm(stem)
        self.blocks = nn.ModuleList()
        width = stem
        for stage in stages:
            blocks = nn.ModuleList()
            for i in range(stage.repeats):
                blocks.append(_block(width, stage, stage.stride if i == 0 else 1))
                width = stage.width
            self.blocks.append(blocks)
        self.channels = [stages[i].width for i in OUTPUTS]

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        x = functional.relu6(self.bn1(self.conv_stem(pixels)), inplace=True)
        levels = []
        for i, blocks in enumerate(self.blocks):
            for block in blocks:  # type: ignore[attr-defined]  # a ModuleList
                x = block(x)
            if i in OUTPUTS:
                levels.append(x)
        return levels

    @torch.no_grad()
    def fold(self) -> None:
        """Merges every batch norm into the convolution before it: the same features in less time and memory.

        For use alone: a folded encoder cannot be trained on or saved.
        """
        for module in self.modules():
            for norm, conv in NORM_AFTER.items():
                if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                    _fold(module, getattr(module, conv[type(module).__name__]), norm)


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: at the right and bottom where the sides differ."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        if self.stride[0] > 1:
            x = functional.pad(x, (*self._sides(x.shape[3]), *self._sides(x.shape[2])))
        return super().forward(x)

    def _sides(self, length: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        return missing // 2, missing - missing // 2


class DepthwiseSeparable(nn.Module):
    """The block without expansion."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = SameConv(inputs, inputs, kernel, stride, groups=inputs), _norm(inputs)
        self.conv_pw, self.bn2 = SameConv(inputs, outputs, 1, 1), _norm(outputs)
        self.keeps = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        out: Tensor = self.bn2(self.conv_pw(functional.relu6(self.bn1(self.conv_dw(x)), inplace=True)))
        return x + out if self.keeps else out


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project (MobileNetV2, Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.conv_pw, self.bn1 = SameConv(inputs, wide, 1, 1), _norm(wide)
        self.conv_dw, self.bn2 = SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.conv_pwl, self.bn3 = SameConv(wide, outputs, 1, 1), _norm(outputs)
        self.keeps = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        wide = functional.relu6(self.bn1(self.conv_pw(x)), inplace=True)
        out: Tensor = self.bn3(self.conv_pwl(functional.relu6(self.bn2(self.conv_dw(wide)), inplace=True)))
        return x + out if self.keeps else out


def _block(width: int, stage: Stage, stride: int) -> nn.Module:
    if stage.expansion == 1:
        return DepthwiseSeparable(width, stage.width, stage.kernel, stride)
    return InvertedResidual(width, stage.width, stage.kernel, stride, stage.expansion)


def _fold(module: nn.Module, conv: nn.Conv2d, norm_name: str) -> None:
    norm: nn.BatchNorm2d = getattr(module, norm_name)
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    setattr(module, norm_name, nn.Identity())


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
