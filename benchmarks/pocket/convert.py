"""Convert the pocket model of chains to GGUF for llama.cpp; ``scripts/llama`` runs it.

    .llama/bin/python -m benchmarks.pocket.convert FILE

The weights and the chat template are those of the model folder, unchanged; bfloat16 becomes float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy

__all__ = ["convert"]

MODEL = Path(__file__).parent / "models" / "chains"
# llama.cpp selects a pre-tokenizer by name, and none is equal to ours. "starcoder" splits digits as
# ours does; texts that only it would split become user-defined tokens, which are matched first.
_PRE_TOKENIZER = "starcoder"
_SINGLE_TOKENS = (" + ", " - ", " * ", " = ", "\n\n")
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm"}


def convert(target: Path) -> None:
    """Write the model to the file ``target``."""
    config = json.loads((MODEL / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(str(target), "qwen3")
    writer.add_name("pocket")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, config)
    for name, values in _read_tensors((MODEL / "model.safetensors").read_bytes()):
        writer.add_tensor(_gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, config: dict) -> None:
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text("utf-8"))
    settings = json.loads((MODEL / "tokenizer_config.json").read_text("utf-8"))
    single_tokens = {_to_byte_level(text): text for text in _SINGLE_TOKENS}
    tokens = [""] * config["vocab_size"]
    types = [gguf.TokenType.NORMAL] * config["vocab_size"]
    for token, index in vocabulary["model"]["vocab"].items():
        tokens[index] = single_tokens.get(token, token)
        if token in single_tokens:
            types[index] = gguf.TokenType.USER_DEFINED
    for added in vocabulary["added_tokens"]:
        tokens[added["id"]] = added["content"]
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        types[added["id"]] = special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


def _to_byte_level(text: str) -> str:
    """The text as a byte-level vocabulary writes it."""
    return text.replace(" ", "\u0120").replace("\n", "\u010a")


def _gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").removeprefix("model.").split(".", 2)
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
    return f"{_OTHER_NAMES[parts[0]]}.weight"


def _read_tensors(data: bytes):
    """(name, float32 values) of a bfloat16 safetensors file; bfloat16 is the upper half of float32."""
    length = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        halves = numpy.frombuffer(data[begin:end], dtype="<u2").astype("<u4") << 16
        yield name, halves.view("<f4").reshape(entry["shape"])


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
