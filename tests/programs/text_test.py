# SPDX-License-Identifier: Apache-2.0
"""examples/text.py with a tokenizer and a checkpoint made here, through dllm-generate and back.

usage: text_test.py TEXT_PY DLLM_GENERATE DLLM_EVAL GOLDEN_MODEL
"""
import json
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

TEXT_PY, GENERATE, EVAL, MODEL = sys.argv[1:5]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def run(*arguments):
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, check=False)


class TextProgram(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="dllm_text_"))
        self.addCleanup(shutil.rmtree, self.folder)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(Path(MODEL) / name, self.folder / name)
        # 96 tokens as the model has: specials, bytes that occur, a few merges.
        special = ["<bos>", "<user>", "<assistant>"]
        letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
        vocab = {t: i for i, t in enumerate(special + letters + ["\u0120", "th", "the", "?", "."])}
        for i in range(len(vocab), 94):
            vocab[f"<unused{i}>"] = i
        vocab["<eos>"], vocab["<mask>"] = 94, 95
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(special + ["<eos>", "<mask>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
        )
        tokenizer.save(str(self.folder / "tokenizer.json"))
        self.vocab = vocab
        config = {"chat_template": TEMPLATE, "eos_token": {"content": "<eos>"}, "bos_token": "<bos>"}
        (self.folder / "tokenizer_config.json").write_text(json.dumps(config))

    def request(self, *arguments):
        done = run(sys.executable, TEXT_PY, "request", "--model", self.folder, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def answer(self, tokens, *arguments):
        path = self.folder / "answer.json"
        path.write_text(json.dumps({"tokens": tokens}))
        done = run(sys.executable, TEXT_PY, "answer", "--model", self.folder, "--json", path, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def ids(self, *tokens):
        return [self.vocab[t] for t in tokens]

    def test_a_prompt_gets_the_tokenizers_own_special_tokens_and_merges(self):
        request = self.request("--prompt", "the", "--gen-length", "16")
        self.assertEqual(request, {"prompt_ids": [self.ids("<bos>", "the")], "gen_length": 16})

    def test_a_chat_is_rendered_by_the_folders_template_and_gets_no_second_bos(self):
        request = self.request("--user", "  who? ")
        self.assertEqual(request["prompt_ids"], [self.ids("<user>", "w", "h", "o", "?", "<assistant>")])

    def test_a_chat_file_with_several_turns_and_several_prompts_make_one_batch(self):
        chat = self.folder / "chat.json"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                 {"role": "user", "content": "c"}]
        chat.write_text(json.dumps(turns))
        request = self.request("--prompt", "x", "--prompt", "yz", "--chat", chat)
        self.assertEqual(request["prompt_ids"], [
            self.ids("<bos>", "x"), self.ids("<bos>", "y", "z"),
            self.ids("<user>", "a", "<assistant>", "b", "<user>", "c", "<assistant>")])

    def test_a_template_file_wins_over_the_configuration(self):
        (self.folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}.")
        self.assertEqual(self.request("--user", "q")["prompt_ids"], [self.ids("q", ".")])

    def test_an_answer_ends_at_end_of_text(self):
        tokens = self.ids("the", "\u0120", "e", "n", "d", "<eos>", "z", "z")
        self.assertEqual(self.answer([tokens, self.ids("a")]), "the end\na\n")

    def test_special_tokens_are_shown_on_request_only(self):
        tokens = self.ids("a", "<mask>", "b")
        self.assertEqual(self.answer([tokens]), "ab\n")
        self.assertEqual(self.answer([tokens], "--special"), "a<mask>b\n")

    def test_a_request_goes_through_the_generator_and_comes_back_as_text(self):
        request = self.folder / "request.json"
        request.write_text(json.dumps(self.request("--user", "the end?", "--gen-length", "8")))
        out = self.folder / "out.json"
        done = run(GENERATE, "--model", self.folder, "--request", request, "--json", out, "--quiet")
        self.assertEqual(done.returncode, 0, done.stderr)
        done = run(sys.executable, TEXT_PY, "answer", "--model", self.folder, "--json", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.endswith("\n"))

    def questions(self, *lines):
        data = self.folder / "questions.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return run(sys.executable, TEXT_PY, "questions", "--model", self.folder, "--data", data,
                   "--gen-length", "8")

    def test_questions_become_token_ids(self):
        done = self.questions({"prompt": "the", "answer": "end"},
                              {"user": "who?", "gen_length": 16, "task": "chat"},
                              {"messages": [{"role": "user", "content": "a"}]})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([json.loads(line) for line in done.stdout.splitlines()], [
            {"prompt_ids": self.ids("<bos>", "the"), "answer_ids": self.ids("e", "n", "d"), "gen_length": 8},
            {"prompt_ids": self.ids("<user>", "w", "h", "o", "?", "<assistant>"), "gen_length": 16, "task": "chat"},
            {"prompt_ids": self.ids("<user>", "a", "<assistant>"), "gen_length": 8}])

    def test_questions_that_cannot_be_used_are_named_by_line(self):
        for bad, part in (({"answer": "a"}, "one of prompt"), ({"prompt": 7}, "prompt must be a string"),
                          ({"prompt": "a", "user": "b"}, "got 2"), ({"prompt": "a", "extra": 1}, "extra"),
                          ({"messages": "a"}, "messages must be"), ({"prompt": "a", "answer": 1}, "answer")):
            done = self.questions({"prompt": "a"}, bad)
            self.assertEqual(done.returncode, 1)
            self.assertIn("line 2", done.stderr)
            self.assertIn(part, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)

    def test_questions_go_through_the_evaluation_and_come_back_as_text(self):
        ids, out, result = (self.folder / name for name in ("ids.jsonl", "out.jsonl", "result.json"))
        ids.write_text(self.questions({"user": "the end?"}, {"user": "who?"}).stdout)
        done = run(EVAL, "--model", self.folder, "--data", ids, "--block-length", "4", "--quiet",
                   "--save-answers", out, "--json", result)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreaterEqual(json.loads(result.read_text())["agreement"], 0)
        done = run(sys.executable, TEXT_PY, "answer", "--model", self.folder, "--answers", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = [json.loads(line)["answer"] for line in done.stdout.splitlines()]
        self.assertEqual(len(answers), 2)
        self.assertTrue(all(isinstance(text, str) for text in answers))

    def test_files_that_cannot_be_used_end_with_1_and_name_the_file(self):
        (self.folder / "tokenizer.json").write_text("{")
        done = run(sys.executable, TEXT_PY, "request", "--model", self.folder, "--prompt", "a")
        self.assertEqual(done.returncode, 1)
        self.assertIn("tokenizer.json", done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1)

    def test_a_missing_template_ends_with_1(self):
        (self.folder / "tokenizer_config.json").write_text("{}")
        done = run(sys.executable, TEXT_PY, "request", "--model", self.folder, "--user", "a")
        self.assertEqual(done.returncode, 1)
        self.assertIn("chat template", done.stderr)

    def test_no_prompt_at_all_ends_with_2(self):
        done = run(sys.executable, TEXT_PY, "request", "--model", self.folder)
        self.assertEqual(done.returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
