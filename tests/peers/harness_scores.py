"""Answers rows with lm-evaluation-harness; called by compare_evaluation.py.

The tasks are the harness's own kind of multiple choice, defined on local files with the prompts that
fleetune asks. Timed is the scoring alone: no loading, no metrics.
"""

import argparse
import json
import pathlib
import time

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

CLASSES = ["negative", "neutral", "positive"]
NEWS = ("What is the sentiment of this news? Please choose an answer from "
        "{negative/neutral/positive}.")


def question(row):
    options = "\n".join(f"{letter}. {row[f'choice{i}']}" for i, letter in enumerate("ABCD"))
    return f"{row['question'].strip()}\n{options}\nAnswer:"


def mmlu_text(dev, shots):
    """The prompt of a row: the subject's first examples, then the question."""
    def text(row):
        own = [example for example in dev if example["subject"] == row["subject"]][:shots]
        examples = "".join(f"{question(e)} {'ABCD'[e['answer']]}\n\n" for e in own)
        subject = row["subject"].replace("_", " ")
        return (f"The following are multiple choice questions (with answers) about {subject}.\n\n"
                f"{examples}{question(row)}")
    return text


TASKS = {
    "fpb": {
        "doc_to_text": lambda row: f"Instruction: {NEWS}\nInput: {row['sentence']}\nAnswer:",
        "doc_to_choice": CLASSES,
        "doc_to_target": lambda row: CLASSES.index(row["label"]),
    },
    "mmlu": {
        "doc_to_choice": list("ABCD"),
        "doc_to_target": lambda row: row["answer"],
    },
}


class Timed(HFLM):
    """The harness's model, with a clock around its scoring."""

    seconds = 0.0

    def loglikelihood(self, requests, disable_tqdm=False):
        start = time.time()
        scores = super().loglikelihood(requests, disable_tqdm=True)
        self.seconds += time.time() - start
        return scores


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", choices=list(TASKS), required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True)
    parser.add_argument("--shots", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    definition = dict(TASKS[options.suite])
    if options.suite == "mmlu":
        dev = options.rows.with_name("dev.jsonl").read_text().splitlines()
        definition["doc_to_text"] = mmlu_text([json.loads(line) for line in dev], options.shots)
    task = {
        "task": f"local_{options.suite}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(options.rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        **definition,
    }
    model = Timed(pretrained=options.model, dtype=options.dtype, device="cpu",
                  batch_size=options.batch_size)
    result = simple_evaluate(model, tasks=[task], bootstrap_iters=0, verbosity="ERROR")
    samples = sorted(result["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    likeliest = []
    for sample in samples:
        scores = [response[0] for response in sample["filtered_resps"]]
        likeliest.append(max(range(len(scores)), key=scores.__getitem__))
    options.out.write_text(json.dumps({
        "likeliest": likeliest,
        "accuracy": result["results"][task["task"]]["acc,none"],
        "rows_per_second": len(likeliest) / model.seconds,
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
