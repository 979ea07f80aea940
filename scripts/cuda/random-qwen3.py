#!/usr/bin/env python3
"""Writes a model of Qwen3-8B's shape with random weights: random-qwen3.py FOLDER TOKENIZER-FOLDER [LAYERS=36]

Wants PyTorch and safetensors. What such a model answers says nothing; its pace is that of the real one's forward pass.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

VOCAB, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 151936, 4096, 12288, 32, 8, 128
LAYERS_A_FILE = 6

folder, tokenizer, layers = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 36
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(1)
os.makedirs(folder)
weights, total = {}, 0


def matrix(rows, columns):
    return (torch.randn(rows, columns, device=device) * 0.02).to(torch.bfloat16).cpu()


def norm(width):
    return (1 + 0.1 * torch.randn(width, device=device)).to(torch.bfloat16).cpu()


def save(tensors):
    global total
    name = f"model-{len(set(weights.values())) + 1:05}.safetensors"
    save_file(tensors, os.path.join(folder, name))
    weights.update(dict.fromkeys(tensors, name))
    total += sum(2 * tensor.numel() for tensor in tensors.values())


def layer(number):
    at = f"model.layers.{number}."
    return {
        at + "self_attn.q_proj.weight": matrix(HEADS * HEAD_DIM, HIDDEN),
        at + "self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
        at + "self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_DIM, HIDDEN),
        at + "self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_DIM),
        at + "self_attn.q_norm.weight": norm(HEAD_DIM),
        at + "self_attn.k_norm.weight": norm(HEAD_DIM),
        at + "mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        at + "mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
        at + "mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
        at + "input_layernorm.weight": norm(HIDDEN),
        at + "post_attention_layernorm.weight": norm(HIDDEN),
    }


save({"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "model.norm.weight": norm(HIDDEN), "lm_head.weight": matrix(VOCAB, HIDDEN)})
for first in range(0, layers, LAYERS_A_FILE):
    tensors = {}
    for number in range(first, min(first + LAYERS_A_FILE, layers)):
        tensors.update(layer(number))
    save(tensors)
with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
    json.dump({"metadata": {"total_size": total}, "weight_map": weights}, file)
with open(os.path.join(folder, "config.json"), "w") as file:
    json.dump(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "attention_bias": False,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "torch_dtype": "bfloat16",
        },
        file,
    )
for name in ["tokenizer.json", "tokenizer_config.json"]:
    shutil.copy(os.path.join(tokenizer, name), folder)
