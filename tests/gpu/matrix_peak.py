"""The fastest large matrix product of a device with PyTorch: floating-point operations a second.

    python matrix_peak.py --device cuda --dtype bf16 --size 8192
"""

import argparse
import json
import statistics
import time

import torch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    parser.add_argument("--size", type=int, required=True)
    options = parser.parse_args()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    size = options.size
    left, right = (torch.randn(size, size, device=options.device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(12):
        # Several products in a row: starting one must not count.
        start = clock(options.device)
        for _ in range(5):
            left @ right
        rates.append(5 * 2 * size**3 / (clock(options.device) - start))
    print(json.dumps({"peak": statistics.median(rates[2:])}))


def clock(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
