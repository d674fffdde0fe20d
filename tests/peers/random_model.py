#!/usr/bin/env python3
"""Writes a Llama with random weights and the shapes of a real model, as a Q4_0 GGUF file.

    python3 tests/peers/random_model.py 1b model-1b.gguf

For measuring time and memory (`fleetune bench engine --model model-1b.gguf`); it has no tokenizer.
Needs numpy and gguf.
"""

import argparse

import gguf
import numpy
from shapes import SHAPES


def quantized(random, rows, cols):
    """Q4_0 blocks: a scale in f16 and 32 values of 4 bits."""
    blocks = random.integers(0, 256, (rows, cols // 32, 18), dtype=numpy.uint8)
    scales = numpy.full((rows, cols // 32, 1), 0.25 / cols**0.5, dtype=numpy.float16)
    blocks[:, :, :2] = scales.view(numpy.uint8)
    return blocks.reshape(rows, cols // 32 * 18)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    random = numpy.random.default_rng(0)

    writer = gguf.GGUFWriter(options.out, "llama")
    writer.add_name(f"random-{options.shape}")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.wide)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_vocab_size(shape.vocabulary)

    def matrix(name, rows, cols):
        writer.add_tensor(name, quantized(random, rows, cols), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def gain(name):
        writer.add_tensor(name, numpy.ones(shape.hidden, dtype=numpy.float32))

    matrix("token_embd.weight", shape.vocabulary, shape.hidden)
    if not shape.tied:
        matrix("output.weight", shape.vocabulary, shape.hidden)
    gain("output_norm.weight")
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        gain(prefix + "attn_norm.weight")
        gain(prefix + "ffn_norm.weight")
        for _, name, rows, cols in shape.projections():
            matrix(f"{prefix}{name}.weight", rows, cols)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
