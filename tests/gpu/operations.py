"""Floating-point operations that training on a token cannot do without."""

import json

from material import values


def per_token(shape, rank, tokens_file):
    """Mean over the rows of a file, as `fleetune bench engine` counts: two a weight forward and two
    backward (frozen weights have no gradient), attention likewise, six for each weight of the adapter on
    queries and values, no recomputation and no padding."""
    with open(tokens_file) as file:
        lengths = [len(json.loads(line)["input_ids"]) for line in file]
    return per_token_of(shape, rank, lengths)


def per_token_of(shape, rank, lengths):
    frozen = values(shape) if shape.tied else values(shape) - shape.vocabulary * shape.hidden
    norms = (2 * shape.layers + 1) * shape.hidden
    adapter = shape.layers * rank * (2 * shape.hidden + shape.hidden + shape.kv)
    # Scores and their products with the values; the causal mask leaves half.
    attention = 6 * shape.layers * shape.hidden * sum(n * n for n in lengths) / sum(lengths)
    return 4 * (frozen - norms) + 6 * adapter + attention
