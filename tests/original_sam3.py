"""The original SAM 3 (PyPI: sam3), tiny and random, on the CPU; sizes as `tiny_sam3.tiny_sam3` has them."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import nn

from tiny_sam3 import TINY_VOCABULARY, seeded

D = 32  # channels of everything but ViT and text


def sam3_package() -> ModuleType:
    """Its import warns of `torch.jit.script` and of a missing GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("iopath", reason="sam3 needs iopath")
        pytest.importorskip("einops", reason="sam3 needs einops")
        return pytest.importorskip("sam3.model_builder", reason="needs sam3")


def original_sam3() -> nn.Module:
    """With the children `detector` and `tracker`, as in sam3.pt."""
    whole = nn.Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.detector, whole.tracker = _detector(sam3_package()), _tracker(sam3_package())
    return seeded(whole)


def answer(
    detector: Any, merges: Path, pixels: np.ndarray, name: str, boxes: np.ndarray | None, labels: list[int]
) -> dict[str, torch.Tensor]:
    """The original's outputs for a name and boxes (centre x y, w, h, in shares of the image)."""
    from sam3.model.sam3_image_processor import Sam3Processor
    from sam3.model.tokenizer_ve import SimpleTokenizer

    processor = Sam3Processor(detector, resolution=56, device="cpu")
    detector.backbone.language_backbone.tokenizer = SimpleTokenizer(merges)
    with torch.inference_mode():
        out = processor.set_image(PillowImage.fromarray(pixels))["backbone_out"]
        out.update(detector.backbone.forward_text([name], device="cpu"))
        prompt = detector._get_dummy_prompt()
        for box, label in zip(boxes if boxes is not None else (), labels, strict=True):
            prompt.append_boxes(torch.tensor(box).view(1, 1, 4), torch.tensor([[label]], dtype=torch.bool))
        stage = processor.find_stage
        found: dict[str, torch.Tensor] = detector.forward_grounding(out, stage, None, prompt)
    return found


def interactive(original: Any, pixels: np.ndarray) -> Any:
    """The predictor for clicks with the features that `Sam3Image.predict_inst` gives it."""
    from sam3.model.sam1_task_predictor import SAM3InteractiveImagePredictor
    from sam3.model.sam3_image_processor import Sam3Processor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.script
        predictor = SAM3InteractiveImagePredictor(original.tracker, max_hole_area=0.0)
    heads = original.tracker.sam_mask_decoder
    processor = Sam3Processor(original.detector, resolution=56, device="cpu")
    with torch.inference_mode():
        features = processor.set_image(PillowImage.fromarray(pixels))["backbone_out"]["sam2_backbone_out"]
        fine, middle, coarse = features["backbone_fpn"]
        predictor._features = {
            "image_embed": coarse + original.tracker.no_mem_embed.view(1, -1, 1, 1),
            "high_res_feats": [heads.conv_s0(fine), heads.conv_s1(middle)],
        }
    predictor._orig_hw, predictor._is_image_set = [pixels.shape[:2]], True
    return predictor


def _detector(build: Any) -> nn.Module:
    position = build.PositionEmbeddingSine(num_pos_feats=D)
    trunk = build.ViT(
        img_size=56,
        pretrain_img_size=28,
        patch_size=14,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        norm_layer="LayerNorm",
        drop_path_rate=0.0,
        window_size=2,
        use_rope=True,
        tile_abs_pos=True,
        global_att_blocks=(1,),
        rel_pos_blocks=(),
        use_interp_rope=True,
        ln_pre=True,
        return_interm_layers=False,
        bias_patch_embed=False,
        retain_cls_token=False,
    )
    neck = build.Sam3DualViTDetNeck(trunk, position, D, add_sam2_neck=True)
    text = build.VETextEncoder(D, None, width=24, heads=2, layers=2, vocab_size=TINY_VOCABULARY)
    decoder_layer = build.TransformerDecoderLayer(
        **_layer(), cross_attention=_attention(build), n_heads=4, use_text_cross_attention=True
    )
    decoder = build.TransformerDecoder(
        layer=decoder_layer,
        num_layers=2,
        num_queries=12,
        return_intermediate=True,
        dac=True,
        box_refine=True,
        num_o2m_queries=0,
        boxRPB="log",
        d_model=D,
        frozen=False,
        interaction_layer=None,
        dac_use_selfatt_ln=True,
        presence_token=True,
        use_act_checkpoint=False,
    )
    encoder_layer = build.TransformerEncoderLayer(
        **_layer(), **_encoding(build, True), pos_enc_at_attn=True, pos_enc_at_cross_attn_keys=False
    )
    encoder = build.TransformerEncoderFusion(
        layer=encoder_layer,
        num_layers=2,
        d_model=D,
        num_feature_levels=1,
        frozen=False,
        use_act_checkpoint=False,
        add_pooled_text_to_img_feat=False,
        pool_text_with_mask=True,
    )
    mlp = build.MLP(D, 48, D, 2, dropout=0.1, residual=True, out_norm=nn.LayerNorm(D))
    return build.Sam3Image(
        build.SAM3VLBackbone(visual=neck, text=text, scalp=1),
        build.TransformerWrapper(encoder=encoder, decoder=decoder, d_model=D),
        _geometry(build, position),
        build.UniversalSegmentationHead(
            hidden_dim=D,
            upsampling_stages=3,
            aux_masks=False,
            presence_head=False,
            dot_product_scorer=None,
            act_ckpt=False,
            cross_attend_prompt=_attention(build),
            pixel_decoder=build.PixelDecoder(num_upsampling_stages=3, interpolation_mode="nearest", hidden_dim=D),
        ),
        dot_prod_scoring=build.DotProductScoring(d_model=D, d_proj=D, prompt_mlp=mlp),
        use_instance_query=False,
        multimask_output=True,
    )


def _geometry(build: Any, position: nn.Module) -> nn.Module:
    layer = build.TransformerEncoderLayer(
        **_layer(), **_encoding(build, False), pos_enc_at_attn=False, pos_enc_at_cross_attn_keys=True
    )
    direct = dict.fromkeys(("points_direct_project", "points_pool", "points_pos_enc", "boxes_direct_project"), True)
    return build.SequenceGeometryEncoder(
        False, boxes_pool=True, boxes_pos_enc=True, d_model=D, pos_enc=position, num_layers=1, layer=layer, **direct
    )


def _layer() -> dict[str, Any]:
    return {"activation": "relu", "d_model": D, "dim_feedforward": 48, "dropout": 0.1}


def _encoding(build: Any, batch_first: bool) -> dict[str, Any]:
    attentions = {"self_attention": _attention(build, batch_first), "cross_attention": _attention(build, batch_first)}
    return {"pre_norm": True, "pos_enc_at_cross_attn_queries": False, **attentions}


def _attention(build: Any, batch_first: bool = False) -> nn.Module:
    attention: nn.Module = build.MultiheadAttention(num_heads=4, dropout=0.1, embed_dim=D, batch_first=batch_first)
    return attention


def _tracker(build: Any) -> nn.Module:
    from sam3.model.sam3_tracker_base import Sam3TrackerBase

    rope = {"embedding_dim": D, "num_heads": 1, "downsample_rate": 1, "feat_sizes": [4, 4], "rope_theta": 10000.0}
    layer = build.TransformerDecoderLayerv2(
        cross_attention_first=False,
        activation="relu",
        dim_feedforward=48,
        dropout=0.1,
        pos_enc_at_attn=False,
        pre_norm=True,
        d_model=D,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=build.RoPEAttention(**rope),
        cross_attention=build.RoPEAttention(**rope, kv_in_dim=64, rope_k_repeat=True),
    )
    memory = build.TransformerEncoderCrossAttention(
        remove_cross_attention_layers=[],
        batch_first=True,
        d_model=D,
        frozen=False,
        pos_enc_at_input=True,
        layer=layer,
        num_layers=1,
        use_act_checkpoint=False,
    )
    block = build.CXBlock(dim=D, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True)
    encoder = build.SimpleMaskEncoder(
        out_dim=64,
        in_dim=D,
        position_encoding=build.PositionEmbeddingSine(num_pos_feats=64),
        mask_downsampler=build.SimpleMaskDownSampler(embed_dim=D, kernel_size=3, stride=2, padding=1),
        fuser=build.SimpleFuser(layer=block, num_layers=1),
    )
    return Sam3TrackerBase(
        None,
        build.TransformerWrapper(encoder=memory, decoder=None, d_model=D),
        encoder,
        image_size=56,
        multimask_output_in_sam=True,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )
