#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures on the bundled model what each cache costs in answers.

Every run is one JSON file in bench/quality/results; a run whose file is there is not repeated, so
that the study can be done in parts and goes on where it stopped. `--part` chooses a part, `--list`
shows what is missing. Answers do not depend on what else the machine does: `--jobs` runs go side by
side, one thread each. Seconds do, so the part `timing`, all threads on few questions, needs a quiet
machine. Report and pictures are made from the files alone (report.py beside this).
"""
import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/quality/results"
SCRATCH = ROOT / "build/study"
MODEL = ROOT / "examples/records/model"
EVAL = ROOT / "build/release/examples/dllm-eval"
STUDY = ROOT / "build/release/bench/dllm-study"
SEED = 7  # of the questions; the model was trained on another stream

DECODING = {"one": [], **{f"threshold-{t}": ["--threshold", str(t)]
                          for t in (0.9, 0.95, 0.97, 0.99, 0.995, 0.998)}}
PUBLISHED = ["prefix", "dual", "vicinity", "freecache", "dkv", "changed-rows"]
FAST = "threshold-0.995"  # the threshold that keeps most answers


def cache(prompt=100, response=7, ratio=0.25, first=True, block=False, similar="none"):
    """Options of dLLM-Cache, or of block-verify with what the published method does not have."""
    shared = ["--prompt-interval", str(prompt), "--response-interval", str(response), "--ratio",
              str(ratio), "--refresh-first-layer", str(first).lower()]
    if not block and similar == "none":
        return ["--policy", "dllm-cache", *shared]
    return ["--policy", "block-verify", *shared, "--recompute-block", str(block).lower(),
            "--similarity-threshold", str(similar)]


NONE = ["--policy", "none"]
SHOWN = {"none": NONE, "dllm-cache": cache(),
         "balanced": ["--policy", "balanced"], "dual": ["--policy", "dual"]}


def runs(main_count, grid_count, sweep_count):
    """All runs by name: part, program, number of questions, decoding, options."""
    table = {}

    def add(part, name, count, decoding, options, program=EVAL):
        table[f"{part}/{name}-{decoding}"] = (part, program, count, decoding, options)

    for decoding, count in (("one", main_count), (FAST, main_count // 2)):
        for name, options in SHOWN.items():
            add("main", name, count, decoding, options)
    for decoding in ("one", FAST):
        add("policies", "none", grid_count, decoding, NONE)
        add("policies", "dllm-cache", grid_count, decoding, cache())
        add("policies", "balanced", grid_count, decoding, SHOWN["balanced"])
        add("policies", "block-verify-7", grid_count, decoding, cache(block=True))
        for name in PUBLISHED:
            add("policies", name, grid_count, decoding, ["--policy", name])
    for decoding in DECODING:
        if decoding not in ("one", FAST):
            add("thresholds", "none", grid_count, decoding, NONE)
            add("thresholds", "dual", grid_count, decoding, ["--policy", "dual"])
    for criterion, ratio in itertools.product(("cosine", "l2", "random", "last-recomputed"),
                                              (0.03125, 0.25)):
        add("criteria", f"{criterion}-{ratio}", grid_count, "one",
            cache(ratio=ratio) + ["--criterion", criterion], STUDY)
    for ratio in (0.03125, 0.25):
        add("criteria", f"oracle-{ratio}", max(1, grid_count // 4), "one",
            cache(ratio=ratio) + ["--criterion", "oracle"], STUDY)
    add("correlation", "correlation", max(1, grid_count // 20), "one",
        cache() + ["--measure-changes"], STUDY)
    for prompt, response, ratio in itertools.product((25, 100), (3, 7, 15), (0.125, 0.25)):
        add("grid", f"{prompt}-{response}-{ratio}", sweep_count, "one",
            cache(prompt, response, ratio))
    for response, ratio in itertools.product((7, 32), (0.03125, 0.125, 0.25)):
        for first in (True, False):
            add("block", f"{response}-{ratio}-{'first' if first else 'all'}", sweep_count, "one",
                cache(100, response, ratio, first, block=True))
    for ratio in (0, 0.0625, 0.125, 0.25, 0.5, 0.75, 1):
        for first in (True, False):
            add("ratio", f"{ratio}-{'first' if first else 'all'}", sweep_count, "one",
                cache(ratio=ratio, first=first))
    for similar in (0.9, 0.95, 0.98, 0.99, 0.999):
        add("similar", f"{similar}", sweep_count, "one",
            cache(ratio=0.5, similar=similar))
    for similar in ("none", 0.99):
        for first in (True, False):
            for decoding in ("one", FAST):
                add("left-alone", f"{similar}-{'first' if first else 'all'}", grid_count // 2, decoding,
                    cache(response=32, ratio=0.25, first=first, block=True, similar=similar))
    for decoding, (name, options) in itertools.product(("one", FAST), SHOWN.items()):
        add("timing", name, 20, decoding, options)
    return table


def questions(count):
    """The file of the questions, made once."""
    path = SCRATCH / "questions.jsonl"
    SCRATCH.mkdir(parents=True, exist_ok=True)
    if not path.exists() or sum(1 for _ in path.open()) < count:
        subprocess.run([sys.executable, ROOT / "examples/records/task.py", "--count", str(count),
                        "--seed", str(SEED), "--out", path], check=True)
    return path


def command(entry, data, threads):
    """What a run calls, but for where it writes."""
    _, program, count, decoding, options = entry
    return [str(word) for word in
            (program, "--model", MODEL, "--data", data, "--count", count, "--block-length", 32,
             "--precision", "bf16", "--batch", 4, "--threads", threads, "--quiet",
             *DECODING[decoding], *options)]


def answers_file(entry):
    return SCRATCH / f"uncached-{entry[3]}-{entry[2]}.jsonl"


def execute(name, entry, words):
    """Runs it; its result is there afterwards, whole, or not at all."""
    result = RESULTS / f"{name}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    part = SCRATCH / (name.replace("/", "-") + ".part")
    subprocess.run([*words, "--json", part], check=True)
    print("done", name, flush=True)
    return json.loads(part.read_text()), result


def write(result, path):
    path.write_text(json.dumps(result, indent=1) + "\n")


def answer(name, entry, data):
    """One run of a part that counts answers, or of none: for its answers alone."""
    words = command(entry, data, 1)
    if entry[0] is None:
        subprocess.run([*words, "--save-answers", answers_file(entry)], check=True)
        return
    if entry[4] == NONE:
        words += ["--save-answers", str(answers_file(entry))]
    else:
        words += ["--reference", str(answers_file(entry))]
    write(*execute(name, entry, words))


def answers_missing(chosen):
    """Uncached runs that are not chosen, but whose answers others are compared with."""
    made = {answers_file(entry) for entry in chosen if entry[4] == NONE}
    wanted = {answers_file(entry): entry for entry in chosen}
    return {path.stem: (None, EVAL, entry[2], entry[3], NONE)
            for path, entry in wanted.items() if path not in made and not path.exists()}


def answer_all(missing, data, jobs):
    """Runs side by side, the first that can start first: a run waits for its uncached answers."""
    table = {**missing, **answers_missing(missing.values())}
    waiting = dict(table)
    being_made = {answers_file(entry) for entry in table.values() if entry[4] == NONE}
    running = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [name for name, entry in waiting.items()
                     if entry[4] == NONE or answers_file(entry) not in being_made]
            for name in ready[:jobs - len(running)]:
                running[pool.submit(answer, name, waiting.pop(name), data)] = name
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()
                entry = table[running.pop(future)]
                if entry[4] == NONE:
                    being_made.discard(answers_file(entry))


def measure_time(table, data, repetitions):
    """Seconds of the shown settings, taken in turns."""
    seconds = {name: [] for name in table}
    last = {}
    for _ in range(repetitions):
        for name, entry in table.items():
            words = command(entry, data, os.cpu_count())
            if entry[4] != NONE:
                words.append("--no-comparison")
            last[name] = execute(name, entry, words)
            seconds[name].append(last[name][0]["seconds"])
    for name, (result, path) in last.items():
        result["seconds"] = statistics.median(seconds[name])
        result["all_seconds"] = seconds[name]
        write(result, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", help="only this part")
    parser.add_argument("--list", action="store_true", help="show what is missing and stop")
    parser.add_argument("--main-count", type=int, default=2000, help="questions of the main part")
    parser.add_argument("--grid-count", type=int, default=200, help="questions of other parts")
    parser.add_argument("--sweep-count", type=int, default=50,
                        help="questions of the sweeps over parameters (grid, block, ratio, similar)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    options = parser.parse_args()
    table = runs(options.main_count, options.grid_count, options.sweep_count)
    parts = sorted({entry[0] for entry in table.values()})
    if options.part not in (None, *parts):
        raise SystemExit(f"--part must be one of {', '.join(parts)}, got {options.part}")

    def is_done(name):
        result = RESULTS / f"{name}.json"
        return result.exists() and json.loads(result.read_text())["count"] == table[name][2]

    chosen = [name for name in table if options.part in (None, table[name][0])]
    if options.list:
        for name in chosen:
            print("done   " if is_done(name) else "missing", name)
        return
    data = questions(max(options.main_count, options.grid_count))
    missing = {name: table[name] for name in chosen if not is_done(name)}
    timed = {name: entry for name, entry in missing.items() if entry[0] == "timing"}
    counted = {name: entry for name, entry in missing.items() if entry[0] != "timing"}
    if timed:
        measure_time(timed, data, 5)
    answer_all(counted, data, options.jobs)


if __name__ == "__main__":
    main()
