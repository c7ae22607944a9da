# SPDX-License-Identifier: Apache-2.0
"""The LLaDA architecture at a small size, its first weights, and its model folders."""
import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

PREFIX = "model.transformer."
BLOCK_NAMES = (
    "attn_norm q_proj k_proj v_proj attn_out ff_norm ff_proj up_proj ff_out".split()
)


def rms_norm(x, weight, epsilon):
    return F.rms_norm(x, x.shape[-1:], weight, epsilon)


def rope_frequencies(config):
    size = config["d_model"] // config["n_heads"]
    return 1.0 / config["rope_theta"] ** (torch.arange(0, size, 2).float() / size)


def rope_tables(config, length, dtype):
    angles = torch.outer(torch.arange(length).float(), rope_frequencies(config))
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


def matrix(rows, columns, deviation):
    return nn.Parameter(torch.randn(rows, columns) * deviation)


class Block(nn.Module):
    """Attention over all positions and SwiGLU; products in `dtype`, residual in float32."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        d, ffn = config["d_model"], config["mlp_hidden_size"]
        deviation = 0.6 / math.sqrt(d)
        into_residual = 1 / math.sqrt(2 * config["n_layers"])
        self.attn_norm = nn.Parameter(torch.ones(d))
        self.q_proj = matrix(d, d, deviation)
        self.k_proj = matrix(d, d, deviation)
        self.v_proj = matrix(d, d, deviation)
        self.attn_out = matrix(d, d, deviation * into_residual)
        self.ff_norm = nn.Parameter(torch.ones(d))
        self.ff_proj = matrix(ffn, d, deviation)
        self.up_proj = matrix(ffn, d, deviation)
        self.ff_out = matrix(d, ffn, 0.6 / math.sqrt(ffn) * into_residual)

    def forward(self, x, rope, dtype, bias=None, last=None):
        """With `last`, only that many positions at the end are carried on."""
        batch, length, d = x.shape
        heads, epsilon = self.config["n_heads"], self.config["rms_norm_eps"]
        normed = rms_norm(x, self.attn_norm, epsilon).to(dtype)
        weight = torch.cat([self.q_proj, self.k_proj, self.v_proj]).to(dtype)
        qkv = F.linear(normed, weight).view(batch, length, 3, heads, d // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if last is not None:
            q, x = q[:, :, -last:], x[:, -last:]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = x + F.linear(mixed, self.attn_out.to(dtype))
        normed = rms_norm(x, self.ff_norm, epsilon).to(dtype)
        gate = F.silu(F.linear(normed, self.ff_proj.to(dtype)))
        hidden = gate * F.linear(normed, self.up_proj.to(dtype))
        return x + F.linear(hidden, self.ff_out.to(dtype))


class Network(nn.Module):
    """Logits of chosen positions of a batch of token rows."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        d, symbols = config["d_model"], config["embedding_size"]
        self.wte = matrix(symbols, d, 0.3)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["n_layers"]))
        self.ln_f = nn.Parameter(torch.ones(d))
        self.ff_out = matrix(symbols, d, 0.02)

    def forward(self, tokens, wanted, padding=None, dtype=torch.bfloat16):
        """Logits of the positions where `wanted` is true; those of `padding` are not seen."""
        length = tokens.shape[1]
        last = length - int(wanted.any(0).int().argmax())
        bias = None
        if padding is not None:
            bias = torch.zeros(padding.shape, dtype=dtype).masked_fill(padding, -math.inf)
            bias = bias[:, None, None, :]
        rope = rope_tables(self.config, length, dtype)
        x = F.embedding(tokens, self.wte)
        for i, block in enumerate(self.blocks):
            is_last = i == len(self.blocks) - 1
            x = block(x, rope, dtype, bias, last if is_last else None)
        x = rms_norm(x[wanted[:, -last:]], self.ln_f, self.config["rms_norm_eps"])
        return F.linear(x.to(dtype), self.ff_out.to(dtype)).float()


@torch.no_grad()
def prepare_for_copying(network, offsets=(-1, 1, -2, 2), constant=2.0):
    """First weights from which copying is learnt in minutes.

    One embedding dimension is the same for all symbols, so that the heads of the first layer can
    start by looking at fixed offsets: queries and keys of that dimension differ by the phase that
    RoPE gives the offset. The next two layers start with equal query and key weights on the pairs
    that RoPE turns slowly, which makes positions with equal content find each other.
    """
    config = network.config
    d, heads = config["d_model"], config["n_heads"]
    size = d // heads
    half = size // 2
    frequencies = rope_frequencies(config)

    network.wte[:, 0] = constant
    others = 0.3**2 * (d - 1)
    normed_constant = constant / math.sqrt((others + constant**2) / d)
    used = 6 * size // 64
    amplitude = 5.4 / normed_constant * math.sqrt(size / 64 * 6 / used)
    first = network.blocks[0]
    first.q_proj.mul_(0.5)
    first.k_proj.mul_(0.5)
    first.v_proj[:, 0] = 0
    for head in range(heads):
        offset = offsets[head % len(offsets)]
        rows = head * size + torch.arange(used)
        first.q_proj[rows, 0] = amplitude * torch.cos(frequencies[:used] * offset)
        first.q_proj[rows + half, 0] = amplitude * torch.sin(frequencies[:used] * offset)
        first.k_proj[rows, 0] = amplitude
        first.k_proj[rows + half, 0] = 0
    first.attn_out.normal_(std=0.3 / (math.sqrt(size) * 0.55))

    slow = (frequencies < 1 / 300).float()
    slow_rows = torch.cat([slow, slow]).repeat(heads)
    deviation = math.sqrt(4 * math.sqrt(size) / (2 * int(slow.sum()) * d))
    for block in network.blocks[1:3]:
        shared = torch.randn(d, d) * deviation * slow_rows[:, None]
        shared[:, 0] = 0
        block.q_proj.mul_(0.3).add_(shared)
        block.k_proj.mul_(0.3).add_(shared)
        block.attn_out.mul_(2)


def file_names(config):
    """The name of each weight in a model folder and in the network."""
    names = {f"{PREFIX}{name}.weight": name for name in ("wte", "ln_f", "ff_out")}
    for i in range(config["n_layers"]):
        for name in BLOCK_NAMES:
            names[f"{PREFIX}blocks.{i}.{name}.weight"] = f"blocks.{i}.{name}"
    return names


def load_network(folder):
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    network = Network(config)
    stored = load_file(Path(folder) / "model.safetensors")
    names = file_names(config)
    network.load_state_dict({ours: stored[theirs].float() for theirs, ours in names.items()})
    return network


def export_network(config, weights, vocabulary, folder):
    """Writes a model folder: the weights in bfloat16, the configuration and the symbols."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = file_names(config)
    stored = {theirs: weights[ours].bfloat16().contiguous() for theirs, ours in names.items()}
    unfinished = folder / "model.safetensors.part"
    save_file(stored, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(folder / "model.safetensors")
    text = json.dumps(config | {"torch_dtype": "bfloat16"}, indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    if Path(vocabulary).resolve() != (folder / "vocab.txt").resolve():
        shutil.copyfile(vocabulary, folder / "vocab.txt")
