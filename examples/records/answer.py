#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Answers questions with a model folder, greedily and without a cache, and counts exact matches.

  answer.py --model model --questions eval.jsonl --count 60 --block 32 --threshold 0.9

Without --threshold one token is committed a step. Exit codes: 0 done, 2 a bad option.
"""
import argparse
import json
import math
import sys
import time
from pathlib import Path

import threads  # noqa: F401  before torch

import torch

from network import load_network
from task import EOS, MASK, Question, decode, encode

HERE = Path(__file__).resolve().parent


def read_questions(path, count):
    with open(path, encoding="utf-8") as file:
        return [Question(**json.loads(line)) for _, line in zip(range(count), file)]


def commit_choice(confidence, threshold):
    """Which open positions a step commits; confidence is below 0 elsewhere."""
    chosen = torch.zeros_like(confidence, dtype=torch.bool)
    if threshold is not None:
        chosen = confidence >= threshold
    rows = torch.arange(len(confidence))
    chosen[rows, confidence.argmax(1)] = True
    return chosen & (confidence >= 0)


@torch.no_grad()
def answer_batch(network, questions, block, threshold):
    """The generated tokens and the number of steps of each question."""
    prompts = [encode(q.prompt) for q in questions]
    starts = torch.tensor([len(p) for p in prompts])
    ends = starts + torch.tensor([q.gen_length for q in questions])
    length = int(ends.max())
    place = torch.arange(length)[None]
    padding = place >= ends[:, None]
    tokens = torch.full((len(questions), length), MASK)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    tokens[padding] = EOS
    steps = torch.zeros(len(questions), dtype=torch.long)
    open_ = (place >= starts[:, None]) & ~padding
    while open_.any():
        rows = open_.any(1).nonzero()[:, 0]
        first_open = open_[rows].int().argmax(1)
        done = (first_open - starts[rows]) // block * block
        block_end = starts[rows] + done + block
        wanted = open_[rows] & (place < block_end[:, None])
        width = int(ends[rows].max())
        wanted = wanted[:, :width]
        hidden = padding[rows][:, :width]
        logits = network(tokens[rows][:, :width], wanted, hidden if hidden.any() else None)
        logits[:, MASK] = -math.inf
        best, token = logits.softmax(-1).max(-1)
        confidence = torch.full(wanted.shape, -1.0)
        confidence[wanted] = best
        proposal = torch.zeros(wanted.shape, dtype=torch.long)
        proposal[wanted] = token
        chosen = commit_choice(confidence, threshold)
        where = (rows[:, None].expand_as(chosen)[chosen], place[:, :width].expand_as(chosen)[chosen])
        tokens[where] = proposal[chosen]
        open_[where] = False
        steps[rows] += 1
    generated = [tokens[i, starts[i] : ends[i]].tolist() for i in range(len(questions))]
    return generated, steps.tolist()


def score(network, questions, block=32, threshold=None, batch=20):
    """Exact matches over all questions and by task, and the mean number of steps."""
    start = time.perf_counter()
    by_task, steps = {}, []
    ordered = sorted(questions, key=lambda q: (q.gen_length, len(q.prompt)))
    for i in range(0, len(ordered), batch):
        group = ordered[i : i + batch]
        generated, counts = answer_batch(network, group, block, threshold)
        steps += counts
        for question, tokens in zip(group, generated):
            by_task.setdefault(question.task, []).append(decode(tokens) == question.answer)
    hits = [hit for task_hits in by_task.values() for hit in task_hits]
    return {
        "questions": len(hits),
        "block": block,
        "threshold": threshold,
        "exact": round(sum(hits) / len(hits), 4),
        "by_task": {task: round(sum(h) / len(h), 4) for task, h in sorted(by_task.items())},
        "steps": round(sum(steps) / len(steps), 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=HERE / "model", help="the model folder")
    parser.add_argument("--questions", default=HERE / "eval.jsonl", help="JSON lines of task.py")
    parser.add_argument("--count", type=int, default=60, help="how many of the questions")
    parser.add_argument("--block", type=int, default=32, help="tokens a block")
    parser.add_argument("--threshold", type=float, help="confidence that commits a token")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    questions = read_questions(options.questions, options.count)
    result = score(load_network(options.model), questions, options.block, options.threshold)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
