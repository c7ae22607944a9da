#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains the records model on two cores, from first weights or from a model folder.

  train.py --minutes 120 --out run                   from first weights, easy questions first
  train.py --minutes 75 --init model --out run       goes on from a model folder
  train.py --resume --out run                        goes on from run/checkpoint.pt

run/latest is a model folder of the averaged weights, run/record.json tells how they came about;
both are written with every checkpoint and at the end. Only time inside steps counts, and a step
that was paused counts as a few usual ones. SIGTERM and Ctrl-C write a checkpoint and stop.
Exit codes: 0 done or stopped, 1 a file cannot be used, 2 a bad option.
"""
import argparse
import copy
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections import deque
from pathlib import Path

import threads  # noqa: F401  before torch

import torch
import torch.nn.functional as F
from tqdm import tqdm

from answer import score
from batches import advance_batch, draw_batches, mask_batch, masked_tokens
from muon import Muon
from network import Network, export_network, load_network, prepare_for_copying
from task import evaluation_questions, training_rng

HERE = Path(__file__).resolve().parent
TOKENS_A_BATCH = 4096
WAITING_BATCHES = 16
COPYING_UNTIL, FULL_SIZE_FROM = 0.015, 0.2
MOMENTUM, MOMENTUM_STEPS = 0.95, 300
AVERAGING = 0.998
PAUSE = 5  # a step counts for at most this many median steps
EVALUATION_SEED, EVALUATION_COUNT = 4242, 40
SECONDS_BETWEEN_LINES = 20
# Of runs from first weights and of runs that go on: rates of both optimisers, steps of warm-up,
# and the part of the run after which the rates fall linearly to 0.
FROM_FIRST_WEIGHTS = {"muon": 0.01, "adam": 2e-3, "warm_up": 100, "falling_from": 0.25}
FROM_A_MODEL = {"muon": 0.005, "adam": 1e-3, "warm_up": 30, "falling_from": 0.1}


class Run:
    """All that a checkpoint keeps, and the training step."""

    def __init__(self, settings):
        self.settings = settings
        torch.manual_seed(settings["seed"])
        self.rng = training_rng(settings["seed"])
        if settings["init"]:
            self.network = load_network(settings["init"])
        else:
            config = json.loads((HERE / "model" / "config.json").read_text(encoding="utf-8"))
            self.network = Network(config)
            prepare_for_copying(self.network)
        self.averaged = copy.deepcopy(self.network)
        if settings.get("compile"):
            for block in self.network.blocks:
                block.compile(dynamic=True)
        in_blocks, others = [], []
        for name, p in self.network.named_parameters():
            (in_blocks if name.startswith("blocks") and p.ndim == 2 else others).append(p)
        self.muon = Muon(in_blocks)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0, fused=True)
        self.waiting = []
        self.durations = deque(maxlen=101)
        self.done = {"steps": 0, "tokens": 0, "seconds": 0.0}
        self.curve, self.accuracies = [], []
        self.since_line = {"loss": [], "right": 0, "learnt": 0, "tokens": 0, "seconds": 0.0}

    def progress(self):
        if self.settings["tokens"]:
            return self.done["tokens"] / self.settings["tokens"]
        return self.done["seconds"] / (60 * self.settings["minutes"])

    def level(self):
        if self.settings["init"]:
            return 1.0
        part = self.progress()
        if part < COPYING_UNTIL:
            return -1.0
        return min(1.0, (part - COPYING_UNTIL) / (FULL_SIZE_FROM - COPYING_UNTIL))

    def rate_scale(self):
        rates = self.settings["rates"]
        warm = min(1.0, (self.done["steps"] + 1) / rates["warm_up"])
        return warm * max(0.0, min(1.0, (1 - self.progress()) / (1 - rates["falling_from"])))

    def next_batch(self):
        while len(self.waiting) < WAITING_BATCHES:
            fresh = draw_batches(self.rng, self.level(), TOKENS_A_BATCH)
            for batch in fresh:
                mask_batch(self.rng, batch)
            self.waiting += fresh
        return self.waiting.pop(self.rng.randrange(len(self.waiting)))

    def update(self):
        scale, rates = self.rate_scale(), self.settings["rates"]
        steady = min(1.0, self.done["steps"] / MOMENTUM_STEPS)
        self.muon.step(rates["muon"] * scale, MOMENTUM - 0.1 * (1 - steady))
        for group in self.adam.param_groups:
            group["lr"] = rates["adam"] * scale
        self.adam.step()
        self.network.zero_grad(set_to_none=True)
        keep = min(AVERAGING, (1 + self.done["steps"]) / (10 + self.done["steps"]))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.network.parameters()), 1 - keep
            )

    def step(self):
        start = time.monotonic()
        batch = self.next_batch()
        responses = batch.tokens.numel() - len(batch.tokens) * min(batch.prompt_lengths)
        logits = self.network(masked_tokens(batch), batch.learnt)
        target = batch.tokens[batch.learnt]
        surprise = F.cross_entropy(logits, target, reduction="none")
        loss = (surprise * batch.weight[batch.learnt]).sum() / responses
        loss.backward()
        self.update()
        self.done["steps"] += 1
        self.done["tokens"] += batch.tokens.numel()
        self.since_line["loss"].append(loss.item())
        self.since_line["right"] += int((logits.argmax(-1) == target).sum())
        self.since_line["learnt"] += len(target)
        self.since_line["tokens"] += batch.tokens.numel()
        if advance_batch(self.rng, batch, logits.detach()):
            self.waiting.append(batch)
        took = time.monotonic() - start
        self.durations.append(took)
        counted = min(took, PAUSE * statistics.median(self.durations))
        self.done["seconds"] += counted
        self.since_line["seconds"] += counted

    def close_line(self):
        """The figures since the last line, which also become a point of the loss curve."""
        since = self.since_line
        point = {
            "step": self.done["steps"],
            "minutes": round(self.done["seconds"] / 60, 2),
            "tokens": self.done["tokens"],
            "tokens_per_second": round(since["tokens"] / since["seconds"]),
            "loss": round(statistics.mean(since["loss"]), 4),
            "right": round(since["right"] / since["learnt"], 4),
            "rate": round(self.settings["rates"]["muon"] * self.rate_scale(), 6),
        }
        self.curve.append(point)
        self.since_line = {"loss": [], "right": 0, "learnt": 0, "tokens": 0, "seconds": 0.0}
        return point

    def evaluate(self):
        questions = evaluation_questions(EVALUATION_COUNT, EVALUATION_SEED)
        for threshold in (None, 0.9):
            result = score(self.averaged, questions, threshold=threshold)
            result["minutes"] = round(self.done["seconds"] / 60, 2)
            self.accuracies.append(result)
            yield result

    def record(self):
        return {
            **self.settings,
            "steps": self.done["steps"],
            "counted_minutes": round(self.done["seconds"] / 60, 2),
            "tokens_seen": self.done["tokens"],
            "finished": self.progress() >= 1,
            "data": f"task.py, stream 'training {self.settings['seed']}'",
            "evaluation_data": f"task.py, {EVALUATION_COUNT} questions of seed {EVALUATION_SEED}",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "accuracies": self.accuracies,
            "loss_curve": self.curve,
        }

    def save(self, folder):
        state = {
            "settings": self.settings,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "rng": self.rng.getstate(),
            "torch_rng": torch.get_rng_state(),
            "waiting": self.waiting,
            "durations": list(self.durations),
            "done": self.done,
            "since_line": self.since_line,
            "curve": self.curve,
            "accuracies": self.accuracies,
        }
        unfinished = folder / "checkpoint.pt.part"
        torch.save(state, unfinished)
        os.replace(unfinished, folder / "checkpoint.pt")
        vocabulary = HERE / "model" / "vocab.txt"
        weights = self.averaged.state_dict()
        export_network(self.network.config, weights, vocabulary, folder / "latest")
        record = json.dumps(self.record(), indent=1)
        (folder / "record.json").write_text(record + "\n", encoding="utf-8")

    def load(self, state):
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch_rng"])
        self.waiting, self.done = state["waiting"], state["done"]
        self.durations.extend(state["durations"])
        self.since_line = state["since_line"]
        self.curve, self.accuracies = state["curve"], state["accuracies"]


def minutes_left(run):
    part = run.progress()
    return run.done["seconds"] / 60 * (1 - part) / part if part else float("nan")


def train(run, options):
    """Steps until the budget is used up, with lines, evaluations and checkpoints in between."""
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(True))
    bar = tqdm(total=100, disable=not sys.stderr.isatty(), unit="%", leave=False)

    def say(text):
        tqdm.write(text) if not bar.disable else print(text, flush=True)

    line_at = saved_at = evaluated_at = run.done["seconds"]
    while run.progress() < 1 and not stopped:
        if options.stop_at_step and run.done["steps"] >= options.stop_at_step:
            break
        run.step()
        now = run.done["seconds"]
        if not bar.disable:
            bar.update(100 * run.progress() - bar.n)
        if now - line_at >= SECONDS_BETWEEN_LINES:
            line_at = now
            p = run.close_line()
            say(
                f"step {p['step']}  {p['tokens'] / 1e6:.2f}M tokens  {p['tokens_per_second']}/s  "
                f"loss {p['loss']:.4f}  right {p['right']:.4f}  lr {p['rate']:.5f}  "
                f"{minutes_left(run):.1f} min left"
            )
        if options.evaluate_every and now - evaluated_at >= 60 * options.evaluate_every:
            evaluated_at = now
            for result in run.evaluate():
                say(json.dumps(result))
        if now - saved_at >= 60 * options.save_every:
            saved_at = now
            run.save(options.out)
    if run.progress() >= 1 and options.evaluate_every:
        for result in run.evaluate():
            say(json.dumps(result))
    run.save(options.out)
    bar.close()
    say("done" if run.progress() >= 1 else f"stopped after step {run.done['steps']}")


def start_run(options):
    checkpoint = options.out / "checkpoint.pt"
    if options.resume:
        state = torch.load(checkpoint, weights_only=False)
        settings = state["settings"]
        if options.minutes or options.tokens:
            settings |= {"minutes": options.minutes, "tokens": options.tokens}
        run = Run(settings)
        run.load(state)
        return run
    rates = dict(FROM_A_MODEL if options.init else FROM_FIRST_WEIGHTS)
    if options.rate:
        rates["adam"] *= options.rate / rates["muon"]
        rates["muon"] = options.rate
    return Run({
        "seed": options.seed,
        "init": options.init,
        "compile": options.compile,
        "minutes": options.minutes,
        "tokens": options.tokens,
        "rates": rates,
    })


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="the budget as minutes inside steps")
    budget.add_argument("--tokens", type=int, help="the budget as tokens seen")
    parser.add_argument("--init", help="the model folder to go on from")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt")
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is written")
    parser.add_argument("--seed", type=int, default=1, help="of weights, questions and masks")
    parser.add_argument("--rate", type=float, help="highest rate of Muon; AdamW's goes with it")
    parser.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    parser.add_argument("--evaluate-every", type=float, default=10,
                        help="minutes between evaluations, 0 for none")
    parser.add_argument("--stop-at-step", type=int, help="write a checkpoint at this step and stop")
    parser.add_argument("--compile", action="store_true",
                        help="join element-wise operations (a C++ compiler is needed)")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not (options.minutes or options.tokens or options.resume):
        parser.error("a budget is needed: --minutes or --tokens")
    torch.set_num_threads(options.threads)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        train(start_run(options), options)
    except OSError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
