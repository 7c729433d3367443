"""The original code of SAM, HQ-SAM and MobileSAM (PyPI: segment-anything-py, segment_anything_hq), tiny and random.

Sizes are literals, the same as in `tiny_families`; weights are seeded by their original names.
"""

import warnings
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from torch import nn

from anymask.types import Image
from tiny_families import seed_sam

CLEAR = 1e-4  # logits this close to zero may fall on either side
SIDE, WIDTH, HEADS = 128, 32, 4  # input, channels of prompts and decoder, its attention heads
TINY_STAGES = {"embed_dims": [16, 32, 48, 320], "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 10]}


def sam_package() -> ModuleType:
    return pytest.importorskip("segment_anything", reason="needs segment-anything-py")


def hq_package() -> ModuleType:
    """Its import warns of a moved module of timm, and takes timm's own TinyViTs out of timm's catalogue."""
    own = {name: timm.model_entrypoint(name) for name in timm.list_models("tiny_vit*")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("segment_anything_hq", reason="needs segment_anything_hq")
    timm.models._registry._model_entrypoints.update(own)
    return package


def original_sam(side: int = SIDE, window: int = 3) -> nn.Module:
    """Two blocks, the first with windows of 3 (which do not fit 8 cells), the second global."""
    modeling = sam_package().modeling
    return _assembled(modeling, _vit(modeling, side, window), "MaskDecoder", side=side)


def original_hq() -> nn.Module:
    modeling = hq_package().modeling
    return _assembled(modeling, _vit(modeling), "MaskDecoderHQ", vit_dim=WIDTH)


def original_mobile() -> nn.Module:
    """The TinyViT of HQ-SAM's package, which is MobileSAM's, with SAM's own heads."""
    return _assembled(sam_package().modeling, _TinyViT(False), "MaskDecoder", width=256, heads=8)


def original_light_hq() -> nn.Module:
    return _assembled(hq_package().modeling, _TinyViT(True), "MaskDecoderHQ", width=256, heads=8, vit_dim=48)


class _TinyViT(nn.Module):
    """The package's layers without its literal 64 x 64, so that a small input will do."""

    def __new__(cls, with_early: bool) -> nn.Module:
        base = hq_package().modeling.TinyViT

        class AnySize(base):  # type: ignore[misc, valid-type]
            def forward(self, x: torch.Tensor):
                x = self.layers[1](self.layers[0](self.patch_embed(x)))
                side = int(x.shape[1] ** 0.5)
                early = x.unflatten(1, (side, side))
                x = self.layers[3](self.layers[2](x)).unflatten(1, (side, side))
                image = self.neck(x.permute(0, 3, 1, 2))
                return (image, [early]) if with_early else image

        return AnySize(img_size=SIDE, window_sizes=[7, 7, 14, 7], drop_path_rate=0.0, num_classes=10, **TINY_STAGES)


def _vit(modeling: ModuleType, side: int = SIDE, window: int = 3) -> nn.Module:
    return modeling.ImageEncoderViT(
        img_size=side,
        patch_size=16,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        out_chans=WIDTH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=[1],
    )


def _assembled(
    modeling: ModuleType,
    encoder: nn.Module,
    decoder: str,
    width: int = WIDTH,
    heads: int = HEADS,
    side: int = SIDE,
    **extra: int,
) -> nn.Module:
    cells = side // 16
    network = modeling.Sam(
        image_encoder=encoder,
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=width, image_embedding_size=(cells, cells), input_image_size=(side, side), mask_in_chans=16
        ),
        mask_decoder=getattr(modeling, decoder)(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=64, num_heads=heads),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
            **extra,
        ),
    )
    seed_sam(network)
    return network.eval()


def picture(size, seed=0):
    """Smooth blobs over noise: what the encoder sees depends on the place."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (*size, 3))
    y, x = np.mgrid[: size[0], : size[1]]
    waves = 127 + 120 * np.sin(x / 9.0 + seed)[..., None] * np.cos(y / 13.0)[..., None] * [1, 0.5, -1]
    return Image((0.7 * waves + 0.3 * noise).clip(0, 255).astype(np.uint8))


def reference(predictor, prompt, multimask):
    """The original's masks as logits of the original size, predicted IoU, low-resolution logits."""
    return predictor.predict(
        point_coords=prompt.point_coords if len(prompt.point_coords) else None,
        point_labels=prompt.point_labels if len(prompt.point_coords) else None,
        box=None if prompt.box_coords is None else np.asarray(prompt.box_coords),
        mask_input=None if prompt.mask_input is None else prompt.mask_input[None],
        multimask_output=multimask,
        return_logits=True,
    )


def assert_same(ours, theirs):
    full, iou, low = theirs
    np.testing.assert_allclose(ours.logits, low, atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours.scores, iou, atol=1e-4, rtol=0)
    clear = np.abs(full) > CLEAR
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ours.masks[clear], (full > 0)[clear])


def assert_equal_weights(network, other):
    weights, others = network.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert not [name for name in weights if not torch.equal(weights[name], others[name])]
