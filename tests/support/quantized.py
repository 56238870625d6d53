"""Random checkpoints stored as published quantized ones are."""

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_project import ROOT, make_tiny
from transformers import GptOssConfig, GptOssForCausalLM

from mergemoe.checkpoints import model_folder

# The 256 values of E4M3 (bias 7, no infinity, 0x7f and 0xff are NaN) and the 16 of E2M1.
BYTES = np.arange(256)
EXPONENT, FRACTION = BYTES >> 3 & 15, (BYTES & 7) / 8
E4M3 = np.where(EXPONENT, (1 + FRACTION) * 2.0 ** (EXPONENT - 7), FRACTION * 2.0**-6) * np.where(BYTES < 128, 1, -1)
E4M3[[0x7F, 0xFF]] = np.nan
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nearest(x, values):
    """The index of the nearest value to each x, zero as the positive one."""
    order = np.argsort(values, kind="stable")
    order = order[~np.isnan(values[order]) & ~(np.signbit(values[order]) & (values[order] == 0))]
    middles = (values[order][1:] + values[order][:-1]) / 2
    return order[np.searchsorted(middles, x)]


def bfloat16(x):
    """The 16 bits of float32 numbers, rounded to the nearest even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bits(tensor):
    """The 16 bits of a bfloat16 tensor."""
    assert tensor.dtype == torch.bfloat16
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


def store_fp8(weight, block, scales):
    """Quantize a matrix by blocks, cut off at its edges: its bytes, its scales, and what they say in bfloat16."""
    x = weight.float().numpy()
    padded = np.pad(x, [(0, -size % side) for size, side in zip(x.shape, block, strict=True)])
    grid = padded.reshape(padded.shape[0] // block[0], block[0], -1, block[1])
    peaks = abs(grid).max((1, 3))
    if scales == torch.uint8:  # the exponent, with bias 127
        stored = torch.tensor(np.ceil(np.log2(peaks / 448)) + 127).to(scales)
        scale = 2.0 ** (stored.numpy().astype(np.float32) - 127)
    else:
        stored = torch.tensor(peaks / 448).to(scales)
        scale = stored.float().numpy()
    codes = nearest(grid / scale[:, None, :, None], E4M3).astype(np.uint8)
    inside = slice(x.shape[0]), slice(x.shape[1])
    expected = (E4M3[codes].astype(np.float32) * scale[:, None, :, None]).reshape(padded.shape)[inside]
    codes = np.ascontiguousarray(codes.reshape(padded.shape)[inside])
    return torch.from_numpy(codes).view(torch.float8_e4m3fn), stored, bfloat16(expected)


def store_mxfp4(weight):
    """Quantize [E, in, out] by 32 numbers of `in` as gpt_oss stores it: blocks, scales, and what they say."""
    experts, inside, outside = weight.shape
    x = weight.float().numpy().transpose(0, 2, 1).reshape(experts, outside, inside // 32, 32)
    exponent = np.floor(np.log2(abs(x).max(-1))) - 2
    codes = nearest(x / 2.0 ** exponent[..., None], E2M1).astype(np.uint8)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4  # the first of two numbers in the low half
    values = (E2M1[codes] * 2.0 ** exponent[..., None]).reshape(experts, outside, inside).transpose(0, 2, 1)
    scales = np.ascontiguousarray(exponent + 127, dtype=np.uint8)
    return torch.from_numpy(blocks), torch.from_numpy(scales), bfloat16(values)


def quantize(folder, settings, store_one):
    """Put quantized tensors in a checkpoint's place; return {key: bits expected of the plain copy}."""
    tensors, expected = {}, {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        made = store_one(key, tensor)
        *stored, expected[key] = made or (bits(tensor),)
        tensors |= dict(stored) if made else {key: tensor}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model_folder.read_config(folder) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def make_fp8(folder, scales=torch.float32, block=(128, 128), method="fp8", **changes):
    """Save a random qwen3_moe as Qwen3-30B-A3B-FP8 is stored."""

    def store_one(key, tensor):
        if key.endswith("_proj.weight"):
            weight, scale, expected = store_fp8(tensor, block, scales)
            return (key, weight), (f"{key}_scale_inv", scale), expected

    sizes = {"hidden_size": 128, "moe_intermediate_size": 128, "intermediate_size": 256, "head_dim": 32}
    sizes["num_hidden_layers"] = 2
    make_tiny(folder, **{**sizes, **changes})
    settings = {"quant_method": method, "activation_scheme": "dynamic", "weight_block_size": list(block)}
    return quantize(folder, {**settings, "fmt": "e4m3", "modules_to_not_convert": ["lm_head"]}, store_one)


def make_mxfp4(folder):
    """Save a random gpt_oss as openai/gpt-oss-20b is stored."""

    def store_one(key, tensor):
        if key.endswith(("gate_up_proj", "down_proj")):
            blocks, scales, expected = store_mxfp4(tensor)
            return (f"{key}_blocks", blocks), (f"{key}_scales", scales), expected

    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    GptOssForCausalLM(GptOssConfig(**sizes, **heads)).to(torch.bfloat16).save_pretrained(folder)
    for path in (ROOT / "data" / "demo-moe").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    expected = quantize(folder, settings, store_one)
    config = model_folder.read_config(folder)
    del config["dtype"]  # the original does not say it
    (folder / "config.json").write_text(json.dumps(config))
    return expected
