"""Shapes of Llamas, small and real, for models with random weights."""

from typing import NamedTuple


class Shape(NamedTuple):
    """What decides the sizes of a Llama's matrices."""

    hidden: int
    wide: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def kv(self):
        """Width of keys and values."""
        return self.hidden // self.heads * self.kv_heads

    def projections(self):
        """The matrices of a layer: names in Hugging Face's and in GGUF's words, rows, columns."""
        return [
            ("self_attn.q_proj", "attn_q", self.hidden, self.hidden),
            ("self_attn.k_proj", "attn_k", self.kv, self.hidden),
            ("self_attn.v_proj", "attn_v", self.kv, self.hidden),
            ("self_attn.o_proj", "attn_output", self.hidden, self.hidden),
            ("mlp.gate_proj", "ffn_gate", self.wide, self.hidden),
            ("mlp.up_proj", "ffn_up", self.wide, self.hidden),
            ("mlp.down_proj", "ffn_down", self.hidden, self.wide),
        ]


SHAPES = {
    "tiny": Shape(128, 256, 2, 4, 2, 1024, True),
    "135m": Shape(576, 1536, 30, 9, 3, 49152, True),  # SmolLM2 135M
    "0.5b": Shape(1024, 4096, 24, 16, 4, 49152, True),
    "1b": Shape(2048, 8192, 16, 32, 8, 128256, True),  # Llama 3.2 1B
    "7b": Shape(4096, 11008, 32, 32, 32, 32000, False),  # Llama 2 7B
}
