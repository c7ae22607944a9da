#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures on the bundled model what each cache costs in answers.

Every run is one JSON file in bench/quality/results; a run whose file is there is not repeated, so
that the study can be done in parts and goes on where it stopped. `--part` chooses a part, `--list`
shows what is missing. Report and pictures are made from the files alone (report.py beside this).
"""
import argparse
import itertools
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/quality/results"
SCRATCH = ROOT / "build/study"
MODEL = ROOT / "examples/records/model"
EVAL = ROOT / "build/release/examples/dllm-eval"
STUDY = ROOT / "build/release/bench/dllm-study"
SEED = 7  # of the questions; the model was trained on another stream

ONE = {"one": [], "threshold": ["--threshold", "0.9"]}  # decoding rules by name
PUBLISHED = ["dllm-cache", "prefix", "dual", "vicinity", "freecache", "dkv", "changed-rows"]


def cache(prompt=100, response=7, ratio=0.25, first=True):
    """Options of dLLM-Cache."""
    return ["--policy", "dllm-cache", "--prompt-interval", str(prompt), "--response-interval",
            str(response), "--ratio", str(ratio), "--refresh-first-layer", str(first).lower()]


def runs(main_count, grid_count):
    """All runs by name: part, program, number of questions, decoding, options."""
    table = {}

    def add(part, name, count, decoding, options, program=EVAL):
        table[f"{name}-{decoding}"] = (part, program, count, decoding, options)

    for decoding in ONE:
        add("main", "none", main_count, decoding, ["--policy", "none"])
        add("main", "dllm-cache", main_count, decoding, cache())
        add("main", "dllm-cache-all-layers", main_count, decoding, cache(first=False))
        for name in PUBLISHED[1:]:
            add("policies", name, grid_count, decoding, ["--policy", name])
        for prompt, response, ratio in itertools.product((25, 100), (3, 7, 15), (0.125, 0.25)):
            add("grid", f"grid-{prompt}-{response}-{ratio}", grid_count, decoding,
                cache(prompt, response, ratio))
    for ratio in (0, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1):
        for first in (True, False):
            add("ratio", f"ratio-{ratio}-{'first' if first else 'all'}", grid_count, "one",
                cache(ratio=ratio, first=first))
    for criterion in ("cosine", "l2", "random", "last-recomputed", "oracle"):
        for ratio in (0.0625, 0.25):
            count = grid_count if criterion != "oracle" else max(1, grid_count // 3)
            options = cache(ratio=ratio) + ["--criterion", criterion]
            add("criteria", f"criterion-{criterion}-{ratio}", count, "one", options, STUDY)
    add("correlation", "correlation", max(1, grid_count // 10), "one",
        cache() + ["--measure-changes"], STUDY)
    for similar in (0.9, 0.95, 0.98, 0.99, 0.999):
        add("similar", f"similar-{similar}", grid_count, "one",
            cache(ratio=0.5) + ["--similar", str(similar)], STUDY)
    return table


def questions(count):
    """The file of the questions, made once."""
    path = SCRATCH / "questions.jsonl"
    SCRATCH.mkdir(parents=True, exist_ok=True)
    if not path.exists() or sum(1 for _ in path.open()) < count:
        subprocess.run([sys.executable, ROOT / "examples/records/task.py", "--count", str(count),
                        "--seed", str(SEED), "--out", path], check=True)
    return path


def run(name, entry, data, threads):
    """One run, unless its result is there."""
    part, program, count, decoding, options = entry
    result = RESULTS / f"{name}.json"
    if result.exists() and json.loads(result.read_text())["count"] == count:
        return
    answers = SCRATCH / f"uncached-{decoding}-{count}.jsonl"
    command = [program, "--model", MODEL, "--data", data, "--count", str(count), "--block-length",
               "32", "--json", SCRATCH / "result.json", *ONE[decoding], *options]
    if threads:
        command += ["--threads", str(threads)]
    if options == ["--policy", "none"]:
        command += ["--save-answers", answers]
    elif not answers.exists():
        plain = command[:command.index("--json")] + ["--policy", "none", "--save-answers", answers,
                                                     *ONE[decoding]]
        subprocess.run([EVAL, *plain[1:]], check=True)
    if options != ["--policy", "none"]:
        command += ["--reference", answers]
    print(f"== {name}: {count} questions", flush=True)
    subprocess.run([str(word) for word in command], check=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (SCRATCH / "result.json").replace(result)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", help="only this part")
    parser.add_argument("--list", action="store_true", help="show what is missing and stop")
    parser.add_argument("--main-count", type=int, default=2000, help="questions of the main part")
    parser.add_argument("--grid-count", type=int, default=300, help="questions of other parts")
    parser.add_argument("--threads", type=int, help="threads of the programs")
    options = parser.parse_args()
    table = runs(options.main_count, options.grid_count)
    chosen = {name: entry for name, entry in table.items()
              if options.part in (None, entry[0])}
    if not chosen:
        parts = sorted({entry[0] for entry in table.values()})
        raise SystemExit(f"--part must be one of {', '.join(parts)}, got {options.part}")
    if options.list:
        for name, entry in chosen.items():
            print("done   " if (RESULTS / f"{name}.json").exists() else "missing", entry[0], name)
        return
    data = questions(max(options.main_count, options.grid_count))
    for name, entry in chosen.items():
        run(name, entry, data, options.threads)


if __name__ == "__main__":
    main()
