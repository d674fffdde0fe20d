"""Trains a LoRA adapter with PyTorch and PEFT, the way TRL does: padded batches, all logits.

Reads token ids, so that every program trains on the same tokens; prints one JSON object:
losses, seconds and tokens per step, the peak memory of the process and of the card, and the loss on
held-out rows after the last step.

    python pytorch_training.py --model M.gguf --adapter INIT --rows rows.jsonl --task sft \
        --batch-size 16 --steps 3 --dtype bf16 --checkpointing
"""

import argparse
import json
import os
import resource
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def load(options):
    folder, name = os.path.split(os.path.abspath(options.model))
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    if os.path.isdir(options.model):
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
    model.to(options.device)
    model = PeftModel.from_pretrained(model, options.adapter, is_trainable=True)
    if options.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    model.train()
    return model


def pad(sequences, value):
    longest = max(map(len, sequences))
    return torch.tensor([row + [value] * (longest - len(row)) for row in sequences])


def token_log_probs(model, rows):
    """Log-probabilities of the labels of each row, zero where there is none: [rows, length - 1]."""
    ids = pad([row["input_ids"] for row in rows], 0).to(model.device)
    labels = pad([row["labels"] for row in rows], -100)[:, 1:].to(model.device)
    mask = pad([[1] * len(row["input_ids"]) for row in rows], 0).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return -losses.view(labels.shape), labels != -100


def sft_loss(model, rows):
    log_probs, supervised = token_log_probs(model, rows)
    return -log_probs.sum() / supervised.sum()


def dpo_loss(model, pairs, beta):
    rows = [
        {
            "input_ids": pair["prompt"] + pair[side],
            "labels": [-100] * len(pair["prompt"]) + pair[side],
        }
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    policy = token_log_probs(model, rows)[0].sum(1)
    with torch.no_grad(), model.disable_adapter():
        reference = token_log_probs(model, rows)[0].sum(1)
    rewards = beta * (policy - reference)
    chosen, rejected = rewards.chunk(2)
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()


def task_loss(model, batch, options):
    return sft_loss(model, batch) if options.task == "sft" else dpo_loss(model, batch, options.beta)


def read_rows(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def clock(device):
    """The time at which everything asked of the device so far is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def num_tokens(row):
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--task", choices=["sft", "dpo"], default="sft")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--held-out", help="rows to score after the last step, in one batch")
    parser.add_argument("--out", help="folder for the trained adapter")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model = load(options)
    rows = read_rows(options.rows)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0)
    steps = []
    for step in range(options.steps):
        batch = rows[step * options.batch_size : (step + 1) * options.batch_size]
        start = clock(options.device)
        loss = task_loss(model, batch, options)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = clock(options.device) - start
        steps.append({"loss": loss.item(), "seconds": seconds, "tokens": sum(map(num_tokens, batch))})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {"steps": steps, "peak_rss_bytes": peak}
    if options.device == "cuda":
        result["peak_device_bytes"] = torch.cuda.max_memory_reserved()
    if options.held_out:
        with torch.no_grad():
            result["held_out_loss"] = task_loss(model, read_rows(options.held_out), options).item()
    if options.out:
        model.save_pretrained(options.out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
