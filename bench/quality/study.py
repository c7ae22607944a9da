#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures on the bundled model what each cache costs in answers.

Every run is one JSON file in bench/quality/results. A run whose file is there is not repeated, so
the study can be done in parts and continues where it stopped. `--part` chooses a part, `--list`
shows what is missing. Answers do not depend on what else the machine does: `--jobs` runs go side by
side, one thread each. Seconds do, so the part `timing`, all threads on few questions, needs a quiet
machine. Report and pictures are made from the files alone (report.py beside this).

Files of block-verify from before the option `similarity_threshold` do not name it: those runs had
none. The runs of the part `similar` are older still: their files say dllm-cache, and hold the
threshold as `similar`.
"""
import argparse
import concurrent.futures
import dataclasses
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
PUBLISHED = ["prefix", "dual", "vicinity", "freecache", "dkv", "changed-rows", "elastic", "d2cache",
             "sparse", "dpad", "streaming", "window", "spa", "dynamic", "entropy"]
FAST = "threshold-0.995"  # the threshold that keeps most answers


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study."""
    part: str | None  # None: made for its answers alone
    count: int  # questions
    decoding: str
    policy: str
    options: dict = dataclasses.field(default_factory=dict)  # of the policy
    program: pathlib.Path = EVAL
    program_options: tuple = ()

    def words(self):
        """Policy and options as a command line names them."""
        given = ((f"--{key.replace('_', '-')}", str(value)) for key, value in self.options.items())
        return ["--policy", self.policy, *itertools.chain(*given), *self.program_options]

    def is_uncached(self):
        return self.policy == "none"


def flag(value):
    return str(value).lower()


def dllm_cache(prompt=100, response=7, ratio=0.25, first=True):
    """dLLM-Cache as published, and its options."""
    return "dllm-cache", {"prompt_interval": prompt, "response_interval": response, "ratio": ratio,
                          "refresh_first_layer": flag(first)}


def block_verify(response=32, ratio=0.25, first=True, block=True, similar="none"):
    """Our policy, and its options."""
    return "block-verify", {"prompt_interval": 100, "response_interval": response, "ratio": ratio,
                            "recompute_block": flag(block), "similarity_threshold": similar,
                            "refresh_first_layer": flag(first)}


SHOWN = {"none": ("none",), "dllm-cache": dllm_cache(), "balanced": ("balanced",),
         "dual": ("dual",)}


def runs(main_count, grid_count, sweep_count):
    """All runs by name."""
    table = {}

    def add(part, name, count, decoding, policy, *program):
        table[f"{part}/{name}-{decoding}"] = Run(part, count, decoding, *policy, *program)

    def layers(first):
        return "first" if first else "all"

    for decoding, count in (("one", main_count), (FAST, main_count // 2)):
        for name, policy in SHOWN.items():
            add("main", name, count, decoding, policy)
    for decoding in ("one", FAST):
        add("policies", "none", grid_count, decoding, SHOWN["none"])
        add("policies", "dllm-cache", grid_count, decoding, dllm_cache())
        add("policies", "balanced", grid_count, decoding, SHOWN["balanced"])
        add("policies", "block-verify-published-settings", grid_count, decoding,
            block_verify(response=7))
        for name in PUBLISHED:
            add("policies", name, grid_count, decoding, (name,))
    for decoding in DECODING:
        if decoding not in ("one", FAST):
            add("thresholds", "none", grid_count, decoding, SHOWN["none"])
            add("thresholds", "dual", grid_count, decoding, SHOWN["dual"])
    for criterion, ratio in itertools.product(("cosine", "l2", "random", "last-recomputed"),
                                              (0.03125, 0.25)):
        add("criteria", f"{criterion}-{ratio}", grid_count, "one", dllm_cache(ratio=ratio), STUDY,
            ("--criterion", criterion))
    for ratio in (0.03125, 0.25):
        add("criteria", f"oracle-{ratio}", max(1, grid_count // 4), "one", dllm_cache(ratio=ratio),
            STUDY, ("--criterion", "oracle"))
    add("correlation", "correlation", max(1, grid_count // 20), "one", dllm_cache(), STUDY,
        ("--measure-changes",))
    for prompt, response, ratio in itertools.product((25, 100), (3, 7, 15), (0.125, 0.25)):
        add("grid", f"{prompt}-{response}-{ratio}", sweep_count, "one",
            dllm_cache(prompt, response, ratio))
    for response, ratio, first in itertools.product((7, 32), (0.03125, 0.125, 0.25),
                                                    (True, False)):
        add("block", f"{response}-{ratio}-{layers(first)}", sweep_count, "one",
            block_verify(response, ratio, first))
    for ratio, first in itertools.product((0, 0.0625, 0.125, 0.25, 0.5, 0.75, 1), (True, False)):
        add("ratio", f"{ratio}-{layers(first)}", sweep_count, "one",
            dllm_cache(ratio=ratio, first=first))
    for similar in (0.9, 0.95, 0.98, 0.99, 0.999):
        add("similar", f"{similar}", sweep_count, "one",
            block_verify(response=7, ratio=0.5, block=False, similar=similar))
    for similar, first, decoding in itertools.product(("none", 0.99), (True, False), ("one", FAST)):
        add("left-alone", f"{similar}-{layers(first)}", grid_count // 2, decoding,
            block_verify(first=first, similar=similar))
    for decoding in ("one", FAST):
        add("fixed", "balanced", main_count // 4, decoding, SHOWN["balanced"])
        for ratio in (0.03125, 0.0625, 0.125, 0.25):
            add("fixed", f"{ratio}", main_count // 4, decoding, block_verify(ratio=ratio))
    for decoding, (name, policy) in itertools.product(("one", FAST), SHOWN.items()):
        add("timing", name, 20, decoding, policy)
    return table


def questions(count):
    """The file of the questions, made once."""
    path = SCRATCH / "questions.jsonl"
    SCRATCH.mkdir(parents=True, exist_ok=True)
    if not path.exists() or sum(1 for _ in path.open()) < count:
        subprocess.run([sys.executable, ROOT / "examples/records/task.py", "--count", str(count),
                        "--seed", str(SEED), "--out", path], check=True)
    return path


def command(run, data, threads):
    """What a run calls, but for where it writes."""
    return [str(word) for word in
            (run.program, "--model", MODEL, "--data", data, "--count", run.count, "--block-length",
             32, "--precision", "bf16", "--batch", 4, "--threads", threads, "--quiet",
             *DECODING[run.decoding], *run.words())]


def answers_file(run):
    return SCRATCH / f"uncached-{run.decoding}-{run.count}.jsonl"


def execute(name, words):
    """Runs it; its result is there afterwards, whole, or not at all."""
    result = RESULTS / f"{name}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    part = SCRATCH / (name.replace("/", "-") + ".part")
    subprocess.run([*words, "--json", part], check=True)
    print("done", name, flush=True)
    return json.loads(part.read_text()), result


def write(result, path):
    path.write_text(json.dumps(result, indent=1) + "\n")


def answer(name, run, data):
    """One run of a part that counts answers, or of none: for its answers alone."""
    words = command(run, data, 1)
    if run.part is None:
        subprocess.run([*words, "--save-answers", answers_file(run)], check=True)
        return
    words += ["--save-answers" if run.is_uncached() else "--reference", str(answers_file(run))]
    write(*execute(name, words))


def answers_missing(chosen):
    """Uncached runs that are not chosen, but whose answers others are compared with."""
    made = {answers_file(run) for run in chosen if run.is_uncached()}
    wanted = {answers_file(run): run for run in chosen}
    return {path.stem: Run(None, run.count, run.decoding, "none")
            for path, run in wanted.items() if path not in made and not path.exists()}


def answer_all(missing, data, jobs):
    """Runs side by side, the first that can start first. A run waits for its uncached answers."""
    table = {**missing, **answers_missing(missing.values())}
    waiting = dict(table)
    being_made = {answers_file(run) for run in table.values() if run.is_uncached()}
    running = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [name for name, run in waiting.items()
                     if run.is_uncached() or answers_file(run) not in being_made]
            for name in ready[:jobs - len(running)]:
                running[pool.submit(answer, name, waiting.pop(name), data)] = name
            done, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()
                run = table[running.pop(future)]
                if run.is_uncached():
                    being_made.discard(answers_file(run))


def measure_time(table, data, repetitions):
    """Seconds of the shown settings, taken in turns."""
    seconds = {name: [] for name in table}
    last = {}
    for _ in range(repetitions):
        for name, run in table.items():
            words = command(run, data, os.cpu_count())
            if not run.is_uncached():
                words.append("--no-comparison")
            last[name] = execute(name, words)
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
                        help="questions of the sweeps (grid, block, ratio, similar)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    options = parser.parse_args()
    table = runs(options.main_count, options.grid_count, options.sweep_count)
    parts = sorted({run.part for run in table.values()})
    if options.part not in (None, *parts):
        raise SystemExit(f"--part must be one of {', '.join(parts)}, got {options.part}")

    def is_done(name):
        result = RESULTS / f"{name}.json"
        return result.exists() and json.loads(result.read_text())["count"] == table[name].count

    chosen = [name for name in table if options.part in (None, table[name].part)]
    if options.list:
        for name in chosen:
            print("done   " if is_done(name) else "missing", name)
        return
    data = questions(max(options.main_count, options.grid_count))
    missing = {name: table[name] for name in chosen if not is_done(name)}
    timed = {name: run for name, run in missing.items() if run.part == "timing"}
    counted = {name: run for name, run in missing.items() if run.part != "timing"}
    if timed:
        measure_time(timed, data, 5)
    answer_all(counted, data, options.jobs)


if __name__ == "__main__":
    main()
