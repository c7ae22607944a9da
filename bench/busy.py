#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what threads are worth on a machine that does other work too.

Three generations, from tiny to one whose products are worth threads, run with one thread and with
all, in turn, on the machine as it is and beside one endless loop a processor. The ratio is taken
within one repetition, so that what else happens meets both; medians of the repetitions are printed.
Every run must end in the tokens of the first one of its generation. Needs the release build alone;
`--program` measures other builds in the same repetitions.
"""
import argparse
import json
import os
import pathlib
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "build/release/examples/dllm-generate"
GOLDEN = ROOT / "tests/golden"
RECORDS = ROOT / "examples/records"
PROCESSORS = len(os.sched_getaffinity(0))

# LLaDA's shape at the width of the other measurements, with fewer layers.
LARGE = {"model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 1024, "n_heads": 16,
         "n_layers": 2, "mlp_hidden_size": 3072, "vocab_size": 4096, "embedding_size": 4096,
         "rope": True, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "layer_norm_type": "rms",
         "activation_type": "silu", "block_type": "llama", "weight_tying": False,
         "include_bias": False, "include_qkv_bias": False, "mask_token_id": 1, "eos_token_id": 0,
         "pad_token_id": 0, "max_sequence_length": 4096}


def write_large(folder):
    """A checkpoint of random bf16 weights; returns the options that run it."""
    width, inner, vocabulary = (LARGE[key] for key in ("d_model", "mlp_hidden_size", "vocab_size"))
    shapes = {"wte": (vocabulary, width), "ff_out": (vocabulary, width), "ln_f": (width,)}
    for layer in range(LARGE["n_layers"]):
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in {
            "attn_norm": (width,), "ff_norm": (width,), "q_proj": (width, width),
            "k_proj": (width, width), "v_proj": (width, width), "attn_out": (width, width),
            "ff_proj": (inner, width), "up_proj": (inner, width), "ff_out": (width, inner)}.items()}
    source = random.Random(7)
    # The upper byte of a bf16 from a random one: a sign and 0.004 to 0.06, or about 1 for norms.
    small = bytes((0x80 if byte & 1 else 0) | (0x3c if byte & 2 else 0x3b) for byte in range(256))
    header, parts, end = {}, [], 0
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        data = bytearray(source.randbytes(2 * count))
        data[1::2] = bytes(data[1::2]).translate(small) if len(shape) > 1 else b"\x3f" * count
        header[f"model.transformer.{name}.weight"] = {
            "dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            file.write(part)
    (folder / "config.json").write_text(json.dumps(LARGE))
    prompt = [source.randrange(2, vocabulary) for _ in range(893)]
    (folder / "request.json").write_text(json.dumps({"prompt_ids": [prompt]}))
    return ["--model", folder, "--request", folder / "request.json", "--policy", "dllm-cache",
            "--gen-length", 256, "--steps", 8, "--block-length", 256]


def cases(folder):
    """Options of every generation by its name."""
    return {
        "tiny": ["--model", GOLDEN / "models/llada-tiny",
                 "--request", GOLDEN / "cache-kp100-kr7-rho025/case.json"],
        "records": ["--model", RECORDS / "model", "--prompt-file", RECORDS / "prompt.txt",
                    "--gen-length", 192, "--block-length", 32],
        "large": write_large(folder),
    }


class Load:
    """One endless loop for each of `count` processors."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                      for _ in range(self.count)]
        if self.loops:
            time.sleep(0.5)  # until all of them compute

    def __exit__(self, *_):
        for loop in self.loops:
            loop.kill()
            loop.wait()


def processor_seconds():
    """Of all children that ended; loops still run while programs are measured."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(program, options, threads):
    """Seconds of a whole run, of its generation, and of processors; and its tokens."""
    before, begin = processor_seconds(), time.perf_counter()
    done = subprocess.run([str(word) for word in (program, *options, "--threads", threads,
                                                  "--quiet", "--json", "-")],
                          check=True, capture_output=True, text=True)
    wall, result = time.perf_counter() - begin, json.loads(done.stdout)
    return {"wall": wall, "generation": result["seconds"],
            "cpu": processor_seconds() - before}, result["tokens"]


def measure(programs, options, threads, repetitions):
    """For every program a list of repetitions, each (one thread, all threads)."""
    found, tokens = {program: [] for program in programs}, None
    for _ in range(repetitions):
        for program in programs:
            pair = []
            for count in (1, threads):
                seconds, said = run(program, options, count)
                tokens = tokens or said
                if said != tokens:
                    raise SystemExit(f"{program}: {count} threads: other tokens")
                pair.append(seconds)
            found[program].append(pair)
    return found


def row(repeated):
    """Medians: seconds with one thread and with all, ratio, and seconds of processors."""
    def median(of):
        return statistics.median(of(one, all_) for one, all_ in repeated)
    return (f"{median(lambda one, _: one['generation']):.3f} s "
            f"| {median(lambda _, all_: all_['generation']):.3f} s "
            f"| {median(lambda one, all_: all_['generation'] / one['generation']):.2f} "
            f"| {median(lambda one, all_: all_['wall'] / one['wall']):.2f} "
            f"| {median(lambda one, all_: all_['cpu'] / one['cpu']):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", action="append", help="a dllm-generate; again for more builds")
    parser.add_argument("--backend", action="append", choices=["eigen", "onednn"],
                        help="both where nothing is said")
    parser.add_argument("--case", action="append", choices=["tiny", "records", "large"],
                        help="all where nothing is said")
    parser.add_argument("--load", type=int, action="append",
                        help=f"endless loops beside the program; 0 and {PROCESSORS} where nothing "
                             "is said")
    parser.add_argument("--threads", type=int, default=PROCESSORS)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    programs = options.program or [PROGRAM]
    print(f"{PROCESSORS} processors, {options.threads} threads, medians of {options.repetitions} "
          "repetitions")
    for number, program in enumerate(programs):
        print(f"program {number + 1}: {program}")
    print("\n| generation | backend | loops beside it | program | 1 thread | all threads "
          "| all / 1 | whole run | processor time |\n|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        known = cases(pathlib.Path(folder))
        for case in options.case or known:
            for backend in options.backend or ["onednn", "eigen"]:
                for load in options.load or [0, PROCESSORS]:
                    with Load(load):
                        found = measure(programs, [*known[case], "--backend", backend],
                                        options.threads, options.repetitions)
                    for number, program in enumerate(programs):
                        print(f"| {case} | {backend} | {load} | {number + 1} "
                              f"| {row(found[program])} |", flush=True)


if __name__ == "__main__":
    main()
