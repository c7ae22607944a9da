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


class InFolder(unittest.TestCase):
    """A test with a checkpoint folder of its own."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="dllm_text_"))
        self.addCleanup(shutil.rmtree, self.folder)

    def write(self, name, value):
        """A file of the folder: text as it is, anything else as JSON."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    def program(self, command, *arguments):
        return run(sys.executable, TEXT_PY, command, "--model", self.folder, *arguments)

    def request(self, *arguments):
        done = self.program("request", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def prompt(self, *arguments):
        """The token ids of the one prompt of a request."""
        return self.request(*arguments)["prompt_ids"][0]

    def assert_fails(self, done, *parts, code=1):
        self.assertEqual(done.returncode, code, done.stderr)
        if code == 1:
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertTrue(done.stderr.startswith("text.py: "), done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)


class TextProgram(InFolder):
    def setUp(self):
        super().setUp()
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

    def answer(self, tokens, *arguments):
        path = self.write("answer.json", {"tokens": tokens})
        done = self.program("answer", "--json", path, *arguments)
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

    # Answers

    def test_an_answer_ends_at_any_of_the_end_tokens_of_the_folder(self):
        config = json.loads((self.folder / "config.json").read_text())
        a, b, c = self.ids("a", "b", "c")
        for file, keys in (("config.json", {**config, "eos_token_id": [a, -1, b]}),
                           ("generation_config.json", {"eos_token_id": c})):
            self.write(file, keys)
        answers = [self.ids("x", end, "y") for end in ("a", "b", "c", "<eos>")]
        self.assertEqual(self.answer(answers), "x\nx\nx\nx\n")

    def test_null_and_minus_one_are_no_end_tokens(self):
        config = json.loads((self.folder / "config.json").read_text())
        for none in (None, -1, [], [None]):
            self.write("config.json", {**config, "eos_token_id": none})
            self.assertEqual(self.answer([self.ids("z", "a")]), "za\n")

    def test_further_end_tokens_may_be_given(self):
        tokens = [self.ids("x", "a", "y"), self.ids("x", "b", "y")]
        ends = [option for i in self.ids("a", "b") for option in ("--end-token", str(i))]
        self.assertEqual(self.answer(tokens, *ends), "x\nx\n")

    def test_the_eos_token_may_stand_in_the_special_tokens_map(self):
        self.write("tokenizer_config.json", {})
        self.write("special_tokens_map.json", {"eos_token": {"content": "q"}})
        self.assertEqual(self.answer([self.ids("x", "q", "y")]), "x\n")

    def test_masks_left_over_and_ids_without_text_are_told_in_one_line(self):
        path = self.write("answer.json", {"tokens": [self.ids("a", "<mask>", "b") + [200], [201, 200]]})
        done = self.program("answer", "--json", path)
        self.assertEqual(done.stdout, "ab\n\n")
        self.assertEqual(done.stderr.count("\n"), 1)
        self.assertIn("1 masks left over; 3 ids for which the tokenizer has no text: 200, 201", done.stderr)

    def test_a_filled_sequence_is_printed_whole_and_ends_in_its_response_only(self):
        sequence = self.ids("a", "<eos>", "b", "x", "<eos>", "y")
        path = self.write("answer.json", {"tokens": [sequence[3:], self.ids("c")], "sequence": [sequence, None]})
        done = self.program("answer", "--json", path)
        self.assertEqual((done.stdout, done.stderr), ("abx\nc\n", ""))

    def test_answers_that_hold_no_token_ids_are_refused(self):
        for answer, part in (({"tokens": [[1.5]]}, "answer 1: expected a token id"), ({"tokens": [["a"]]}, '"a"'),
                             ({"tokens": [[1], 2]}, "answer 2"), ({"tokens": [[-1]]}, "-1"), ([], "with tokens"),
                             ({"tokens": [[1]], "sequence": [[1], [2]]}, "sequence"),
                             ({"tokens": [[1, 2]], "sequence": [[1]]}, "shorter")):
            self.assert_fails(self.program("answer", "--json", self.write("answer.json", answer)), "answer.json", part)

    def test_end_and_mask_tokens_that_are_no_ids_are_refused(self):
        config = json.loads((self.folder / "config.json").read_text())
        path = self.write("answer.json", {"tokens": [[1]]})
        for bad in ("94", 1.5, [1, "a"], True, -2, {}):
            for file, key in (("config.json", "eos_token_id"), ("generation_config.json", "eos_token_id"),
                              ("config.json", "mask_token_id")):
                with self.subTest(bad=bad, file=file, key=key):
                    self.write("config.json", config)
                    self.write("generation_config.json", {})
                    self.write(file, {**(config if file == "config.json" else {}), key: bad})
                    self.assert_fails(self.program("answer", "--json", path), f"{file}: {key}: expected a token id")

    # Gaps

    def test_gaps_become_masks_between_pieces_of_text(self):
        request = self.request("--infill", "a<mask:2> b<mask:1>")
        mask = self.vocab["<mask>"]
        self.assertEqual(request, {"prompt_ids": [[*self.ids("<bos>", "a"), mask, mask, *self.ids("\u0120", "b"), mask]],
                                   "gen_length": 0})
        self.assertEqual(self.prompt("--infill", "<mask:1>a"), [*self.ids("<bos>"), mask, *self.ids("a")])
        self.assertEqual(self.request("--infill", "a<mask:1>", "--gen-length", "8")["gen_length"], 8)

    def test_escapes_in_text_with_gaps_are_line_feed_tab_and_backslash(self):
        self.write("tokenizer.json", bytes_tokenizer())
        text = r"a\nb<mask:1>\tc\\nd\e"
        self.assertEqual(self.prompt("--infill", text, "--mask-token", "7"),
                         [*b"a\nb", 7, *b"\tc\\nd\\e"])

    def test_an_end_that_the_tokenizer_adds_stands_behind_the_last_gap(self):
        self.write("tokenizer.json", bytes_tokenizer(end=True))
        self.assertEqual(self.prompt("--infill", "a<mask:1>b<mask:1>", "--mask-token", "7"), [97, 7, 98, 7, 0])

    def test_the_mask_is_the_configurations_or_the_tokenizers_or_given(self):
        config = json.loads((self.folder / "config.json").read_text())
        a, b = self.ids("a", "b")
        self.write("config.json", {**config, "mask_token_id": a})
        self.assertEqual(self.prompt("--infill", "x<mask:1>")[-1], a)
        self.assertEqual(self.prompt("--infill", "x<mask:1>", "--mask-token", str(b))[-1], b)
        self.write("config.json", {**config, "mask_token_id": None})
        self.write("tokenizer_config.json", {"mask_token": {"content": "<mask>"}})
        self.assertEqual(self.prompt("--infill", "x<mask:1>")[-1], self.vocab["<mask>"])
        self.write("tokenizer_config.json", {})
        self.assert_fails(self.program("request", "--infill", "x<mask:1>"), "--mask-token ID")
        told = self.program("request", "--infill", "x<mask:1>", "--mask-token", str(b))
        self.assertEqual(json.loads(told.stdout)["mask_token"], b)

    def test_bad_gaps_are_refused(self):
        for bad in ("<mask:0>", "<mask:x>", "<mask:>", "<mask:-1>", "<mask:1.5>", "<mask:3", "<mask:99999999>"):
            self.assert_fails(self.program("request", "--infill", f"a{bad} b<mask:1>"), bad, code=2)
        self.assert_fails(self.program("request", "--infill", "no gap"), "text with gaps", code=2)

    # Requests

    def test_any_other_key_of_a_request_is_handed_on(self):
        request = self.request("--prompt", "a", "--set", "cache_kind=balanced", "--set", "ratio=0.125",
                               "--set", "early_stop=true")
        self.assertEqual(request, {"prompt_ids": [self.ids("<bos>", "a")], "cache_kind": "balanced", "ratio": 0.125,
                                   "early_stop": True})
        for bad in (["--set", "ratio"], ["--set", "prompt_ids=[[1]]"], ["--set", "=1"],
                    ["--steps", "4", "--set", "steps=8"]):
            self.assert_fails(self.program("request", "--prompt", "a", *bad), code=2)

    def test_how_batches_were_cut_and_padded_in_training_does_not_matter(self):
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=8)
        tokenizer.save(str(self.folder / "tokenizer.json"))
        self.assertEqual(self.prompt("--prompt", "abc"), self.ids("<bos>", "a", "b", "c"))

    def test_files_of_other_kinds_end_with_one_line(self):
        good = {path.name: path.read_bytes() for path in self.folder.iterdir() if path.suffix == ".json"}
        bad = {"list": b"[1]", "number": b"7", "cut": b"{", "other encoding": b"{\"a\": \"\xff\"}", "deep": b"[" * 100000,
               "half a character": b'{"a": "\\ud800"}', "digits": b"{\"a\": 1" + b"0" * 5000 + b"}"}
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                     "config.json", "chat_template.json"):
            for kind, content in bad.items():
                if kind == "half a character" and name == "tokenizer.json":
                    continue
                with self.subTest(file=name, kind=kind):
                    if name == "chat_template.json":
                        self.write("tokenizer_config.json", {})
                    (self.folder / name).write_bytes(content)
                    self.assert_fails(self.program("request", "--user", "a"), name)
                for file, text in good.items():
                    (self.folder / file).write_bytes(text)
                if name not in good:
                    (self.folder / name).unlink()

    def test_values_of_other_kinds_in_the_configuration_end_with_one_line(self):
        for bad in ({"eos_token": 5}, {"eos_token": ["<eos>"]}, {"bos_token": {"text": "a"}},
                    {"bos_token": {"content": "a", "lstrip": 1}}, {"additional_special_tokens": "a"},
                    {"additional_special_tokens": [None]}, {"extra_special_tokens": "a"}, {"added_tokens_decoder": [1]},
                    {"added_tokens_decoder": {"x": "a"}}, {"added_tokens_decoder": {"1": 2}}, {"chat_template": 7},
                    {"chat_template": ["a"]}, {"chat_template": [{"name": "default"}]}):
            with self.subTest(bad=bad):
                self.write("tokenizer_config.json", {"chat_template": TEMPLATE, **bad})
                self.assert_fails(self.program("request", "--user", "a"), next(iter(bad)))

    def test_a_missing_folder_and_missing_files_are_named(self):
        done = run(sys.executable, TEXT_PY, "request", "--model", self.folder / "none", "--prompt", "a")
        self.assert_fails(done, "none: no such folder")
        self.assert_fails(self.program("request", "--chat", self.folder / "none.json"), "none.json: No such file")
        self.assert_fails(self.program("questions", "--data", self.folder / "none.jsonl"), "none.jsonl: No such file")
        (self.folder / "tokenizer.json").unlink()
        self.assert_fails(self.program("request", "--prompt", "a"), "no tokenizer.json", "no vocab.json and no merges.txt")

    def test_lines_of_questions_end_at_line_feeds_alone(self):
        data = self.write("questions.jsonl", '{"prompt": "a\u2028b"}\r\n{"prompt": "c"}')
        done = self.program("questions", "--data", data)
        self.assertEqual([json.loads(line)["prompt_ids"][-1] for line in done.stdout.splitlines()],
                         self.ids("b", "c"), done.stderr)


def bytes_tokenizer(end=False):
    """A tokenizer.json whose ids are bytes of ASCII; at the end of a prompt it may add id 0."""
    tokenizer = Tokenizer(models.BPE(vocab={to_byte_level(bytes([i])): i for i in range(128)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", "end"], special_tokens=[{"id": "end", "ids": [0], "tokens": ["end"]}])
    return tokenizer.to_str()


def to_byte_level(text):
    """How vocab.json writes bytes: the printable ones as they are, the others from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return "".join(chr(byte if byte in kept else 0x100 + moved.index(byte)) for byte in text)


class VocabularyAndMerges(InFolder):
    """Folders with vocab.json and merges.txt, as Dream has them: 256 bytes, a few merges, added tokens."""

    MERGES = ["t h", "th e", "\u0120 the", "1 2", "# #"]
    ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]

    def setUp(self):
        super().setUp()
        vocab = {to_byte_level(bytes([i])): i for i in range(256)}
        for pair in self.MERGES:
            vocab[pair.replace(" ", "")] = len(vocab)
        self.base = len(vocab)
        self.vocab = {**vocab, **{text: self.base + i for i, text in enumerate(self.ADDED)}}
        self.write("vocab.json", vocab)
        self.write("merges.txt", "#version: 0.2\n" + "\n".join(self.MERGES) + "\n")
        self.write("added_tokens.json", {text: self.vocab[text] for text in self.ADDED})
        self.config = {
            "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "tokenizer_class": "DreamTokenizer",
            "bos_token": "<|beginoftext|>", "eos_token": "<|endoftext|>", "mask_token": "<|mask|>", "unk_token": None,
            "chat_template": "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
                             "{%- endfor %}",
            "added_tokens_decoder": {str(self.vocab[text]): self.added(text) for text in self.ADDED}}
        self.write("tokenizer_config.json", self.config)
        self.write("config.json", {"model_type": "Dream"})

    def added(self, text, **flags):
        return {"content": text, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
                "special": True, **flags}

    def ids(self, *tokens):
        return [self.vocab[token] for token in tokens]

    def bytes(self, text):
        return list(text.encode("utf-8"))

    def test_a_chat_and_a_prompt_get_the_ids_of_the_files(self):
        self.assertEqual(self.prompt("--user", "Hi the"), [
            *self.ids("<|im_start|>"), *self.bytes("user\nHi"), *self.ids("\u0120the", "<|im_end|>")])
        self.assertEqual(self.prompt("--prompt", "o the##"), [*self.bytes("o"), *self.ids("\u0120the", "##")])

    def test_answers_come_back_as_text(self):
        path = self.write("answer.json", {"tokens": [[*self.bytes("caf\u00e9"), *self.ids("\u0120the", "<|endoftext|>", "th")]]})
        done = self.program("answer", "--json", path)
        self.assertEqual((done.stdout, done.stderr), ("caf\u00e9 the\n", ""))

    def test_digits_are_split_by_the_rule_of_the_class(self):
        self.assertEqual(self.prompt("--prompt", "12"), self.bytes("12"))
        self.write("tokenizer_config.json", {**self.config, "auto_map": None, "tokenizer_class": "GPT2Tokenizer"})
        self.assertEqual(self.prompt("--prompt", "12"), self.ids("12"))

    def test_the_class_may_be_named_by_the_folders_code_or_follow_from_the_model(self):
        for change in ({"tokenizer_class": "OwnTokenizer"},
                       {"tokenizer_class": None, "auto_map": {"AutoTokenizer": "code.DreamTokenizer"}},
                       {"tokenizer_class": "Qwen2TokenizerFast", "auto_map": None},
                       {"tokenizer_class": "OwnTokenizer", "auto_map": None}):
            self.write("tokenizer_config.json", {**self.config, **change})
            self.assertEqual(self.prompt("--prompt", "12 the"), [*self.bytes("12"), *self.ids("\u0120the")])

    def test_a_class_that_is_not_known_is_refused_with_those_that_are(self):
        self.write("config.json", {"model_type": "other"})
        self.write("tokenizer_config.json", {**self.config, "tokenizer_class": "OwnTokenizer", "auto_map": None})
        self.assert_fails(self.program("request", "--prompt", "a"), "OwnTokenizer", "Qwen2Tokenizer, DreamTokenizer, GPT2Tokenizer")

    def test_text_is_composed_as_qwen2_does(self):
        self.assertEqual(self.prompt("--prompt", "e\u0301"), self.bytes("\u00e9"))

    def test_merges_need_no_version_line(self):
        self.write("merges.txt", "\n".join(self.MERGES) + "\n\n")
        self.assertEqual(self.prompt("--prompt", "th"), self.ids("th"))

    def test_merges_that_do_not_fit_the_vocabulary_are_refused_by_line(self):
        for bad, part in (("t q", '"tq" is not in vocab.json'), ("\u20ac t", "is not in vocab.json"), ("t h e", "two tokens"),
                          ("t", "two tokens")):
            self.write("merges.txt", f"#version: 0.2\nt h\n{bad}\n")
            self.assert_fails(self.program("request", "--prompt", "a"), "merges.txt: line 3", part)

    def test_added_tokens_stand_in_one_of_two_files(self):
        expected = [*self.ids("<|im_start|>"), *self.bytes("a"), *self.ids("<|mask|>")]
        self.assertEqual(self.prompt("--prompt", "<|im_start|>a<|mask|>"), expected)
        (self.folder / "added_tokens.json").unlink()
        self.assertEqual(self.prompt("--prompt", "<|im_start|>a<|mask|>"), expected)
        self.write("added_tokens.json", {text: self.vocab[text] for text in self.ADDED})
        del self.config["added_tokens_decoder"]
        self.write("tokenizer_config.json", self.config)
        self.assertEqual(self.prompt("--prompt", "<|im_start|>a<|mask|>"), expected)

    def test_flags_of_added_tokens_hold(self):
        number = str(self.vocab["<|mask|>"])
        self.config["added_tokens_decoder"][number] = self.added("<|mask|>", lstrip=True)
        self.write("tokenizer_config.json", self.config)
        self.assertEqual(self.prompt("--prompt", "a  <|mask|> b"),
                         [*self.bytes("a"), *self.ids("<|mask|>"), *self.bytes(" b")])

    def test_gaps_between_the_ids_of_added_tokens_are_kept(self):
        self.config["added_tokens_decoder"]["900"] = self.added("<|far|>")
        self.write("tokenizer_config.json", self.config)
        self.assertEqual(self.prompt("--prompt", "<|far|><|mask|>"), [900, *self.ids("<|mask|>")])

    def test_ids_that_contradict_each_other_are_refused(self):
        for name, change, parts in (
                ("added_tokens.json", {"<|mask|>": self.base}, ['"<|mask|>"', f"id {self.base}"]),
                ("added_tokens.json", {"<|new|>": self.base}, ['"<|endoftext|>" and "<|new|>" both']),
                ("added_tokens.json", {"the": 5}, ['"the" has id 5']),
                ("added_tokens.json", {"<|new|>": 5}, ['"<|new|>" has id 5']),
                ("added_tokens.json", {"<|new|>": "5"}, ["<|new|>", "expected a token id"]),
                ("vocab.json", {"a": 0, "b": 0}, ['"a" and "b" both have id 0']), ("vocab.json", {"a": 1.5}, ['"a"', "1.5"])):
            with self.subTest(file=name, change=change):
                self.setUp()
                self.write(name, change)
                self.assert_fails(self.program("request", "--prompt", "a"), name, *parts)

    def test_a_special_token_without_an_id_is_refused(self):
        self.write("tokenizer_config.json", {**self.config, "pad_token": "<|pad|>"})
        self.assert_fails(self.program("request", "--prompt", "a"), '"<|pad|>" has no id')

    def test_a_prompt_begins_and_ends_as_the_configuration_says(self):
        self.write("tokenizer_config.json", {**self.config, "add_bos_token": True, "add_eos_token": True})
        self.assertEqual(self.prompt("--prompt", "a"), [*self.ids("<|beginoftext|>"), 97, *self.ids("<|endoftext|>")])
        self.write("tokenizer_config.json", {**self.config, "add_bos_token": True, "bos_token": None})
        self.assert_fails(self.program("request", "--prompt", "a"), "there is no bos_token")

    def test_gpt2_may_put_a_space_before_the_text(self):
        self.write("tokenizer_config.json",
                   {**self.config, "auto_map": None, "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True})
        self.assertEqual(self.prompt("--prompt", "the"), self.ids("\u0120the"))

    def test_a_sentencepiece_model_alone_is_refused_with_what_to_do(self):
        for name in ("vocab.json", "merges.txt"):
            (self.folder / name).unlink()
        self.write("tokenizer.model", "")
        self.assert_fails(self.program("request", "--prompt", "a"), "tokenizer.model", "make a tokenizer.json")

    def test_merges_alone_are_refused(self):
        (self.folder / "vocab.json").unlink()
        self.assert_fails(self.program("request", "--prompt", "a"), "no tokenizer.json", "no vocab.json")


class Chats(InFolder):
    """Templates and messages, with a tokenizer whose ids are bytes."""

    def setUp(self):
        super().setUp()
        self.write("tokenizer.json", bytes_tokenizer())

    def rendered(self, template, *messages, fails=False):
        """What a chat becomes, as text; with fails, what the program says."""
        self.write("chat_template.jinja", template)
        done = self.program("request", "--chat", self.write("chat.json", list(messages)))
        if fails:
            self.assert_fails(done, *fails)
            return None
        self.assertEqual(done.returncode, 0, done.stderr)
        return bytes(json.loads(done.stdout)["prompt_ids"][0]).decode()

    def test_generation_tags_change_nothing(self):
        template = ("{%- for m in messages %}{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '!' }}"
                    "{% endgeneration %}{%- else %}{{- m.content + '?' }}{%- endif %}{%- endfor %}")
        self.assertEqual(self.rendered(template, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "there"},
                                       {"role": "user", "content": "in"}), "Hi?there!in?")

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": " Hi "}, {"type": "text", "text": "there "}]
        for template, expected in (("{{ messages[0]['content'] | trim }}", "Hi there"),
                                   ("{{ '<' + messages[0].content + '>' }}", "< Hi there >")):
            self.assertEqual(self.rendered(template, {"role": "user", "content": parts}), expected)

    def test_a_template_with_a_loop_over_parts_gets_them(self):
        template = ("{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
                    "<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}")
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        self.assertEqual(self.rendered(template, {"role": "user", "content": parts}, {"role": "user", "content": "c"}), "<a><b>c")

    def test_content_that_is_null_is_empty_and_other_keys_of_a_message_stay(self):
        template = "{% for m in messages %}{{ m.name + ':' + m.content }}{{ m.tool_calls | tojson }}{% endfor %}"
        for call in ({"content": None}, {}):
            self.assertEqual(self.rendered(template, {"role": "assistant", "name": "x", "tool_calls": [{"a": 1}], **call}),
                             'x:[{"a": 1}]')

    def test_messages_that_are_not_text_are_refused_by_number(self):
        user = {"role": "user", "content": "a"}
        for bad, part in (({"role": "user", "content": [{"type": "image", "url": "x"}]}, 'part 1 of its content is of type "image"'),
                          ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}, "part 2"),
                          ({"role": "user", "content": [{"type": "text"}]}, "content"), ({"role": "user", "content": [7]}, "content"),
                          ({"role": "user", "content": 7}, "content"), ({"role": "user", "content": {"text": "a"}}, "content"),
                          ({"role": "user"}, "content"), ({"content": "a"}, "role"), ("a", "role and content")):
            self.rendered("{{ messages }}", user, bad, fails=["chat.json: message 2", part])
        data = self.write("questions.jsonl", {"messages": [{"role": "user", "content": [{"type": "image"}]}]})
        self.assert_fails(self.program("questions", "--data", data), "line 1: message 1", '"image"')

    def test_parts_are_joined_in_questions_too(self):
        self.write("chat_template.jinja", "{{ messages[0].content + '!' }}")
        data = self.write("questions.jsonl", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]})
        done = self.program("questions", "--data", data)
        self.assertEqual(json.loads(done.stdout)["prompt_ids"], list(b"Hi!"))

    def test_special_tokens_of_both_files_reach_the_template(self):
        self.write("tokenizer_config.json", {"bos_token": {"content": "B"}, "eos_token": None, "added_tokens_decoder": {},
                                             "additional_special_tokens": ["X", {"content": "Y"}]})
        self.write("special_tokens_map.json", {"bos_token": "M", "eos_token": "E", "pad_token": {"content": "P"}})
        self.assertEqual(self.rendered("{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ additional_special_tokens | join('+') }}",
                                       {"role": "user", "content": "a"}), "BPX+Y")

    def test_templates_see_neither_tools_nor_documents_and_are_asked_for_the_answers_beginning(self):
        self.assertEqual(self.rendered("{{ tools is none and documents is none and add_generation_prompt }}",
                                       {"role": "user", "content": "a"}), "True")

    def test_json_in_templates_is_not_escaped_and_takes_options(self):
        template = "{{ messages[0].data | tojson }} {{ messages[0].data | tojson(sort_keys=true, separators=(',', ':')) }}"
        self.assertEqual(self.rendered(template, {"role": "user", "content": "", "data": {"b": "<&>", "a": 1}}),
                         '{"b": "<&>", "a": 1} {"a":1,"b":"<&>"}')

    def test_whatever_a_template_does_wrong_is_one_line_that_names_the_file(self):
        for template, part in (("{{ nothing.at.all }}", "undefined"), ("{{ 1 + messages }}", "TypeError"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
                               ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
                               ("{{ messages.__class__.__mro__ }}", "unsafe"), ("{{ messages.append(1) }}", ""),
                               ("a\n{% if %}", "line 2"), ("{% generation %}", ""), ("{{ raise_exception('no\nsystem') }}", "no system"),
                               ("{{ range(1000000000) | list }}", "OverflowError"), ("{{ 'a' | nothing }}", "nothing")):
            with self.subTest(template=template):
                self.rendered(template, {"role": "user", "content": "a"}, fails=["chat_template.jinja: chat template", part])

    def test_templates_stand_in_any_of_the_published_places(self):
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "b"}]
        places = (("additional_chat_templates/default.jinja", "e"), ("chat_template.json", {"chat_template": "d"}),
                  ("tokenizer_config.json", {"chat_template": named}), ("chat_template.jinja", "a"))
        for (name, value), expected in zip(places, "edba"):  # each beats those before it
            self.write(name, value)
            self.assertEqual(self.prompt("--user", "x"), [ord(expected)])

    def test_templates_without_a_default_are_refused_with_their_names(self):
        self.write("tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "a"}]})
        self.write("additional_chat_templates/tool_use.jinja", "b")
        self.assert_fails(self.program("request", "--user", "a"), "rag, tool_use", "none is called default")

    def test_text_that_is_no_unicode_is_refused(self):
        self.rendered(r"{{ '\ud800' }}", {"role": "user", "content": "a"}, fails=["not text"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
