# SPDX-License-Identifier: Apache-2.0
"""examples/records: the questions, and with torch also the masks and runs that stop and go on.

usage: records_test.py [RECORDS_FOLDER]
"""
import csv
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORDS = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "examples" / "records")
sys.path.insert(0, str(RECORDS))

import task  # noqa: E402

PACKAGES = ("torch", "safetensors", "tqdm")
HAS_PACKAGES = all(importlib.util.find_spec(name) for name in PACKAGES)


def run(program, *arguments):
    command = [sys.executable, str(RECORDS / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def expected_answer(prompt):
    """The answer worked out from the text of the prompt alone."""
    *table, instruction = prompt.splitlines()
    rows = list(csv.DictReader(table))
    name, asked = instruction.removeprefix(">").split(" ", 1)[::-1]
    first = next(i for i, row in enumerate(rows) if row["name"] == name)
    if asked == "from":
        return "".join(line + "\n" for line in table[first + 1 :])
    last = first + 1 if asked == "get" else len(rows)
    compact = {"separators": (",", ":")}
    return "".join(json.dumps(row, **compact) + "\n" for row in rows[first:last])


class Questions(unittest.TestCase):
    def test_symbols_are_those_of_the_model(self):
        listed = (RECORDS / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.assertEqual(listed, [s.replace("\n", "\\n") for s in task.SYMBOLS])
        config = json.loads((RECORDS / "model" / "config.json").read_text(encoding="utf-8"))
        special = [config[f"{name}_token_id"] for name in ("eos", "mask", "pad")]
        self.assertEqual(special, [task.EOS, task.MASK, task.PAD])
        self.assertEqual(len(listed), config["vocab_size"])

    def test_answers_follow_from_the_prompts(self):
        for q in task.evaluation_questions(120, seed=1):
            self.assertEqual(q.answer, expected_answer(q.prompt))

    def test_shipped_questions_have_the_same_form(self):
        lines = (RECORDS / "eval.jsonl").read_text(encoding="utf-8").splitlines()
        for q in (task.Question(**json.loads(line)) for line in lines):
            self.assertEqual(q.answer, expected_answer(q.prompt))
            self.assertEqual(q.gen_length, task.gen_length_for(q.answer))

    def test_sizes_stay_within_bounds(self):
        questions = task.evaluation_questions(200, seed=2)
        self.assertEqual({q.gen_length for q in questions}, set(task.GEN_LENGTHS))
        self.assertEqual({q.task for q in questions}, set(task.TASKS))
        for q in questions:
            rows = len(q.prompt.splitlines()) - 2
            self.assertTrue(8 <= rows <= 14)
            self.assertTrue(200 <= len(q.prompt) <= 400)
            self.assertTrue(45 <= len(q.answer) < q.gen_length)

    def test_similar_values_keep_names_apart(self):
        shape = task.Shape(similar=0.9)
        q = task.draw_question(random.Random(3), "get", shape)
        names = [line.split(",")[0] for line in q.prompt.splitlines()[1:-1]]
        self.assertEqual(len(names), len(set(names)))

    def test_streams_repeat_and_differ(self):
        first = [q.prompt for q in task.evaluation_questions(20, seed=5)]
        self.assertEqual(first, [q.prompt for q in task.evaluation_questions(20, seed=5)])
        others = {q.prompt for q in task.evaluation_questions(20, seed=6)}
        rng = task.training_rng(5)
        others |= {task.draw_question(rng, t).prompt for t in task.TASKS * 7}
        self.assertFalse(others & set(first))

    def test_text_survives_encoding(self):
        for q in task.evaluation_questions(10, seed=7):
            tokens = task.encode(q.answer) + [task.EOS, task.MASK]
            self.assertEqual(task.decode(tokens), q.answer)
        self.assertEqual(task.decode([task.MASK, task.EOS]), "?")

    def test_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "q.jsonl"
            done = run("task.py", "--count", 6, "--seed", 7, "--out", out)
            self.assertEqual(done.returncode, 0, done.stderr)
            lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            self.assertEqual([task.Question(**q) for q in lines], task.evaluation_questions(6, 7))
            self.assertEqual(list(lines[0]), ["prompt", "answer", "gen_length", "task"])
            self.assertEqual(run("task.py", "--out", Path(folder) / "no" / "q").returncode, 1)
        self.assertEqual(run("task.py", "--count", "x", "--out", "q").returncode, 2)


@unittest.skipUnless(HAS_PACKAGES, "needs " + ", ".join(PACKAGES))
class Training(unittest.TestCase):
    def test_decoding_states_know_only_true_tokens(self):
        import torch

        import batches

        torch.manual_seed(1)
        rng = task.training_rng(1)
        batch = batches.draw_batches(rng, 1.0, 2048)[0]
        batches.mask_batch(rng, batch)
        passes = 1
        while True:
            prompts = torch.tensor(batch.prompt_lengths)[:, None]
            place = torch.arange(batch.tokens.shape[1])[None]
            self.assertFalse((batch.masked & (place < prompts)).any())
            self.assertFalse((batch.learnt & ~batch.masked).any())
            self.assertTrue(batch.learnt.any(1).all())
            for row, block in enumerate(batch.blocks):
                if block:
                    self.assertTrue(batch.masked[row, block[1] :].all())
                    self.assertFalse(batch.masked[row, : block[0]].any())
            before = batch.learnt.clone(), list(batch.blocks)
            logits = torch.randn(int(batch.learnt.sum()), task.VOCABULARY_SIZE)
            if not batches.advance_batch(rng, batch, logits):
                break
            passes += 1
            for row, block in enumerate(batch.blocks):
                if block and block == before[1][row]:
                    fewer = batch.learnt[row] & ~before[0][row]
                    self.assertFalse(fewer.any())
                    self.assertLess(int(batch.learnt[row].sum()), int(before[0][row].sum()))
        self.assertEqual(passes, batches.PASSES)

    def test_a_run_that_stops_and_goes_on_ends_as_one_that_does_not(self):
        import torch
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory() as folder:
            whole, parts = Path(folder) / "whole", Path(folder) / "parts"
            new = ("--tokens", 20000, "--init", RECORDS / "model", "--evaluate-every", 0)
            for done in (
                run("train.py", *new, "--out", whole),
                run("train.py", *new, "--out", parts, "--stop-at-step", 2),
                run("train.py", "--resume", "--evaluate-every", 0, "--out", parts),
            ):
                self.assertEqual(done.returncode, 0, done.stderr)
            ends = [torch.load(f / "checkpoint.pt", weights_only=False) for f in (whole, parts)]
            self.assertGreater(ends[0]["done"]["steps"], 2)
            self.assertEqual(ends[0]["done"]["steps"], ends[1]["done"]["steps"])
            for name, weight in ends[0]["network"].items():
                self.assertTrue(torch.equal(weight, ends[1]["network"][name]), name)
            written = load_file(whole / "latest" / "model.safetensors")
            shipped = load_file(RECORDS / "model" / "model.safetensors")
            self.assertEqual(
                {name: (w.shape, w.dtype) for name, w in written.items()},
                {name: (w.shape, w.dtype) for name, w in shipped.items()},
            )
            config = json.loads((whole / "latest" / "config.json").read_text(encoding="utf-8"))
            shipped_config = (RECORDS / "model" / "config.json").read_text(encoding="utf-8")
            self.assertEqual(config, json.loads(shipped_config))
            record = json.loads((whole / "record.json").read_text(encoding="utf-8"))
            self.assertTrue(record["finished"])

    def test_an_unusable_folder_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            done = run("train.py", "--resume", "--out", Path(folder) / "empty")
            self.assertEqual(done.returncode, 1)
            self.assertIn("checkpoint.pt", done.stderr)
            self.assertEqual(run("train.py", "--out", folder).returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
