"""MATEY's weights, under the names of this package."""

from __future__ import annotations

import numpy as np
import torch

import adaptok
from adaptok.tokenizers.embeddings import HmlpEmbedding


def weights(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k[3:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w::")}


def load_blocks(vit: torch.nn.Module, w: dict[str, torch.Tensor]) -> None:
    """Queries, keys and values lie head by head in MATEY's one projection."""
    for i, block in enumerate(vit.blocks):
        own = {k.split("spatialtemporal.")[1]: v for k, v in w.items() if f"blocks.{i}." in k}
        heads = block.attention.heads
        q, k, v = own["input_head.weight"].unflatten(0, (heads, 3, -1)).unbind(1)
        qb, kb, vb = own["input_head.bias"].unflatten(0, (heads, 3, -1)).unbind(1)
        state = {
            "norm_attention.weight": own["norm1_mask.gamma"],
            "norm_attention.bias": own["norm1_mask.beta"],
            "attention.q.weight": q.flatten(0, 1),
            "attention.q.bias": qb.flatten(),
            "attention.kv.weight": torch.cat([k.flatten(0, 1), v.flatten(0, 1)]),
            "attention.kv.bias": torch.cat([kb.flatten(), vb.flatten()]),
            "attention.norm_q.weight": own["qnorm.weight"],
            "attention.norm_q.bias": own["qnorm.bias"],
            "attention.norm_k.weight": own["knorm.weight"],
            "attention.norm_k.bias": own["knorm.bias"],
            "attention.norm_out.weight": own["norm2_mask.gamma"],
            "attention.norm_out.bias": own["norm2_mask.beta"],
            "attention.out.weight": own["output_head.weight"],
            "attention.out.bias": own["output_head.bias"],
            "norm_mlp.weight": own["mlp_norm_mask.gamma"],
            "norm_mlp.bias": own["mlp_norm_mask.beta"],
            "mlp.up.weight": own["mlp.fc1.weight"],
            "mlp.up.bias": own["mlp.fc1.bias"],
            "mlp.down.weight": own["mlp.fc2.weight"],
            "mlp.down.bias": own["mlp.fc2.bias"],
            "scale_attention": own["gamma_att"],
            "scale_mlp": own["gamma_mlp"],
        }
        block.load_state_dict(state)


def load_positions(vit: torch.nn.Module, w: dict[str, torch.Tensor], prefix: str) -> None:
    names = {"time": "time_embed", "center": "pos_embed", "volume": "scale_embed"}
    state = {
        f"{ours}.{kind}": w[f"{prefix}{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    vit.positions.load_state_dict(state)


def load_lift(
    embedding: HmlpEmbedding, w: dict[str, torch.Tensor], labels: torch.Tensor, prefix: str
) -> None:
    """The columns of the fields at hand; the whole map scales with the share of fields."""
    weight = w[f"{prefix}weight"]
    scale = (weight.shape[1] / len(labels)) ** 0.5
    state = {"weight": weight[:, labels] * scale, "bias": w[f"{prefix}bias"] * scale}
    embedding.lift.load_state_dict(state)


def load_sequence(module: torch.nn.Sequential, w: dict[str, torch.Tensor], prefix: str) -> None:
    """Layers of the same numbers."""
    state = {k.removeprefix(prefix): v for k, v in w.items() if k.startswith(prefix)}
    module.load_state_dict({k: flat(v) for k, v in state.items()})


def flat(kernel: torch.Tensor) -> torch.Tensor:
    """Kernels of MATEY's later code have an axis z of extent 1."""
    return kernel.squeeze(2) if kernel.ndim == 5 else kernel


def mix_model(arrays: dict[str, np.ndarray]):
    """The later code's ViT on a mixed sequence: (tokenizer, processor, decoder)."""
    w, labels = weights(arrays), torch.from_numpy(arrays["labels"])
    tokenizer = adaptok.create_tokenizer(
        "matey", ndim=2, in_channels=4, dim=48, sizes=(4, 16), gamma=0.2, embedding="hmlp"
    )
    vit = adaptok.create_processor("vit", tokenizer.spec, positions="fourier", **BLOCKS)
    decoder = adaptok.create_decoder("hmlp", tokenizer.spec, 4)
    heads = "tokenizer_ensemble_heads.0.tk."
    load_lift(tokenizer.embedding, w, labels, "space_bag.0.")
    for level, theirs in ((0, 1), (1, 0)):
        load_sequence(tokenizer.embedding.levels[level], w, f"{heads}embed.{theirs}.in_proj.")
        prefix = f"{heads}debed.{theirs}."
        state = {k.removeprefix(f"{prefix}out_proj."): v for k, v in w.items() if prefix in k}
        state["6.weight"] = state.pop(f"{prefix}out_head.weight")[:, labels]
        state["6.bias"] = state.pop(f"{prefix}out_head.bias")[labels]
        decoder.levels[level].load_state_dict({k: flat(v) for k, v in state.items()})
    load_positions(vit, w, "posbias.0.")
    load_blocks(vit, w)
    return tokenizer, vit, decoder


def paper_model(arrays: dict[str, np.ndarray], *, legacy_positions: bool):
    """The paper-era ViT with fine tokens beside the coarse ones."""
    w, labels = weights(arrays), torch.from_numpy(arrays["labels"])
    tokenizer = adaptok.create_tokenizer(
        "matey",
        ndim=2,
        in_channels=4,
        dim=48,
        sizes=(4, 16),
        gamma=0.2,
        mode="add",
        embedding={"name": "hmlp", "version": "paper"},
        legacy_positions=legacy_positions,
    )
    fourier = {"name": "fourier", "space": (1e-3, 1.0), "volume": (1e-5, 1.0)}
    vit = adaptok.create_processor("vit", tokenizer.spec, positions=fourier, **BLOCKS)
    decoder = adaptok.create_decoder("hmlp", tokenizer.spec, 4, version="paper")
    load_lift(tokenizer.embedding, w, labels, "space_bag.")
    for level, theirs in ((0, 1), (1, 0)):
        stem = tokenizer.embedding.levels[level]
        load_sequence(stem, w, f"embed_ensemble.{theirs}.in_proj.")
        prefix = f"debed_ensemble.{theirs}."
        state = {k.removeprefix(f"{prefix}out_proj."): v for k, v in w.items() if prefix in k}
        state["6.weight"] = state.pop(f"{prefix}out_kernel")[:, labels]
        state["6.bias"] = state.pop(f"{prefix}out_bias")[labels]
        decoder.levels[level].load_state_dict(state)
    load_positions(vit, w, "posbias.")
    load_blocks(vit, w)
    return tokenizer, vit, decoder


BLOCKS = {
    "depth": 2,
    "heads": 3,
    "qk_norm": True,
    "norm": "instance",
    "norm_placement": "matey",
    "layer_scale": 1e-6,
}
