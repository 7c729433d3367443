"""Tensors of the original GroundingDINO files, as the modules of its repository make them (models/GroundingDINO)."""

from itertools import pairwise
from typing import Any

Shape = tuple[int, ...]


class Tensors(dict[str, Shape]):
    """Names to shapes, added layer by layer."""

    def pair(self, name: str, *weight: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = weight, weight[:1]

    def pairs(self, names: str, *weight: int) -> None:
        for name in names.split():
            self.pair(name, *weight)

    def attention(self, name: str) -> None:  # torch.nn.MultiheadAttention
        self[f"{name}.in_proj_weight"], self[f"{name}.in_proj_bias"] = (768, 256), (768,)
        self.pair(f"{name}.out_proj", 256, 256)

    def deformable(self, name: str) -> None:  # 8 heads, 4 levels, 4 points
        self.pairs(f"{name}.sampling_offsets {name}.value_proj {name}.output_proj", 256, 256)
        self.pair(f"{name}.attention_weights", 128, 256)

    def feed_forward(self, name: str, inner: int) -> None:
        self.pair(f"{name}.linear1", inner, 256)
        self.pair(f"{name}.linear2", 256, inner)

    def perceptron(self, name: str, *widths: int) -> None:
        for i, (before, after) in enumerate(pairwise(widths)):
            self.pair(f"{name}.layers.{i}", after, before)


def original_shapes(swin: dict[str, Any]) -> dict[str, Shape]:
    """Of a file whose Swin has these sizes."""
    found = Tensors()
    _swin(found, **swin)
    _bert(found)
    widths = [swin["embed_dim"] * 2**stage for stage in (1, 2, 3)]
    for i, shape in enumerate([*((width, 1, 1) for width in widths), (widths[-1], 3, 3)]):
        found.pair(f"input_proj.{i}.0", 256, *shape)
        found.pair(f"input_proj.{i}.1", 256)
    for i in range(6):
        _encoder_layer(found, "transformer.encoder", i)
        _decoder_layer(found, f"transformer.decoder.layers.{i}")
        found.perceptron(f"bbox_embed.{i}", 256, 256, 256, 4)
        found.perceptron(f"transformer.decoder.bbox_embed.{i}", 256, 256, 256, 4)
    found.perceptron("transformer.decoder.ref_point_head", 512, 256, 256)
    found.perceptron("transformer.enc_out_bbox_embed", 256, 256, 256, 4)
    found.pairs("transformer.decoder.norm transformer.enc_output_norm", 256)
    found.pairs("feat_map", 256, 768)
    found.pairs("transformer.enc_output", 256, 256)
    found |= {"transformer.level_embed": (4, 256), "transformer.tgt_embed.weight": (900, 256)}
    # Of the files alone, as the original code says when it reads them:
    return found | {"label_enc.weight": (2001, 256), "bert.embeddings.position_ids": (1, 512)}


def _encoder_layer(found: Tensors, encoder: str, i: int) -> None:
    image, text, fusion = (f"{encoder}.{kind}layers.{i}" for kind in ("", "text_", "fusion_"))
    found.deformable(f"{image}.self_attn")
    found.feed_forward(image, 2048)
    found.attention(f"{text}.self_attn")
    found.feed_forward(text, 1024)
    found.pairs(f"{image}.norm1 {image}.norm2 {text}.norm1 {text}.norm2", 256)
    for letter in "vl":
        found[f"{fusion}.gamma_{letter}"] = (256,)
        found.pair(f"{fusion}.layer_norm_{letter}", 256)
        found.pairs(f"{fusion}.attn.{letter}_proj {fusion}.attn.values_{letter}_proj", 1024, 256)
        found.pair(f"{fusion}.attn.out_{letter}_proj", 256, 1024)


def _decoder_layer(found: Tensors, layer: str) -> None:
    found.deformable(f"{layer}.cross_attn")
    found.attention(f"{layer}.ca_text")
    found.attention(f"{layer}.self_attn")
    found.feed_forward(layer, 2048)
    found.pairs(f"{layer}.norm1 {layer}.norm2 {layer}.norm3 {layer}.catext_norm", 256)


def _swin(
    found: Tensors, embed_dim: int, depths: list[int], num_heads: list[int], window_size: int, image_size: int
) -> None:
    found.pair("backbone.0.patch_embed.proj", embed_dim, 3, 4, 4)
    found.pair("backbone.0.patch_embed.norm", embed_dim)
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        width, layer = embed_dim * 2**stage, f"backbone.0.layers.{stage}"
        for block in (f"{layer}.blocks.{i}" for i in range(depth)):
            found[f"{block}.attn.relative_position_bias_table"] = ((2 * window_size - 1) ** 2, heads)
            found[f"{block}.attn.relative_position_index"] = (window_size**2, window_size**2)
            found.pair(f"{block}.attn.qkv", 3 * width, width)
            found.pair(f"{block}.attn.proj", width, width)
            found.pairs(f"{block}.norm1 {block}.norm2", width)
            found.pair(f"{block}.mlp.fc1", 4 * width, width)
            found.pair(f"{block}.mlp.fc2", width, 4 * width)
        if stage < 3:
            found[f"{layer}.downsample.reduction.weight"] = (2 * width, 4 * width)
            found.pair(f"{layer}.downsample.norm", 4 * width)
        if stage > 0:
            found.pair(f"backbone.0.norm{stage}", width)


def _bert(found: Tensors) -> None:
    for name, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        found[f"bert.embeddings.{name}_embeddings.weight"] = (rows, 768)
    found.pair("bert.embeddings.LayerNorm", 768)
    found.pair("bert.pooler.dense", 768, 768)
    for layer in (f"bert.encoder.layer.{i}" for i in range(12)):
        attention = f"{layer}.attention"
        found.pairs(f"{attention}.self.query {attention}.self.key {attention}.self.value", 768, 768)
        found.pair(f"{attention}.output.dense", 768, 768)
        found.pairs(f"{attention}.output.LayerNorm {layer}.output.LayerNorm", 768)
        found.pair(f"{layer}.intermediate.dense", 3072, 768)
        found.pair(f"{layer}.output.dense", 768, 3072)
