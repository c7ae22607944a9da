#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text in, text out for real checkpoints: makes requests for dllm-generate and reads its answers.

  text.py request --model DIR --prompt "Once upon a time" --gen-length 128 > request.json
  text.py request --model DIR --user "What is 7 times 6?" > request.json
  text.py request --model DIR --infill 'def f(x):\\n    <mask:12>\\n    return y' > request.json
  dllm-generate --model DIR --request request.json --json answer.json
  text.py answer --model DIR --json answer.json

and measures a cache on real checkpoints: questions in a file, one JSON object a line with prompt,
user or messages and, optionally, answer, gen_length and task, become token ids for dllm-eval.

  text.py questions --model DIR --data questions.jsonl --gen-length 128 > ids.jsonl
  dllm-eval --model DIR --data ids.jsonl --block-length 32 --policy balanced --save-answers out.jsonl
  text.py answer --model DIR --answers out.jsonl

The checkpoint folder holds its tokenizer as tokenizer.json or as vocab.json and merges.txt, and, for
chats, a template in tokenizer_config.json, chat_template.jinja or chat_template.json. Content of a
message is a string, a list of text parts, which are joined, or null, which is an empty string.
Needs tokenizers and jinja2 from PyPI (examples/requirements.txt).
Exit codes: 0 done, 1 a file cannot be used, 2 a bad option.
"""
import argparse
import collections
import datetime
import functools
import json
import os
import re
import sys
import traceback
from pathlib import Path


class UnusableFile(Exception):
    """A file that is missing or does not hold what it should."""


# Files


def read_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableFile(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def parse_json(where, text):
    try:
        value = json.loads(text)
        if "\\u" in text:  # escapes may spell half a character, which is no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting as deep
        raise UnusableFile(f"{where}: {error}") from None


def read_json(path):
    return parse_json(path, read_text(Path(path)))


def read_object(path):
    """The JSON object of a file that need not be there."""
    if not path.exists():
        return {}
    return expect(path, read_json(path), dict, "a JSON object")


def read_lines(path):
    """The JSON object of every line, with its place for messages."""
    # Not splitlines(): a JSON string may hold the other line ends of Unicode as they are.
    lines = read_text(Path(path)).split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        where = f"{path}: line {number}"
        yield where, expect(where, parse_json(where, line), dict, "a JSON object")


def shown(value):
    """A value as JSON, cut to what fits into a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def expect(where, value, kind, what):
    if not isinstance(value, kind):
        raise UnusableFile(f"{where}: expected {what}, got {shown(value)}")
    return value


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value):
    return is_integer(value) and 0 <= value < 2**31


def check_id(where, value):
    if not is_id(value):
        raise UnusableFile(f"{where}: expected a token id in [0, 2^31), got {shown(value)}")
    return value


# Tokenizers

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What the classes behind vocab.json and merges.txt do beside byte-level pairs. A class' own special
# tokens hold where neither file of the folder names any.
QWEN2 = {
    "split": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
             r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "special": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
GPT2 = {
    "split": None,  # the rule that the tokenizers library has built in
    "special": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}
CLASSES = {"Qwen2Tokenizer": QWEN2, "DreamTokenizer": QWEN2, "GPT2Tokenizer": GPT2}
MODEL_TYPES = dict.fromkeys(("dream", "qwen2", "sdar", "a2d-qwen3", "a2d-qwen2", "fast_dllm_qwen"), QWEN2)
MODEL_TYPES["gpt2"] = GPT2


def is_added(tokenizer, text):
    return any(token.content == text for token in tokenizer.get_added_tokens_decoder().values())


def make_token(where, value, special=None):
    """Tokens stand in the files as text or as an object with the text and its flags."""
    from tokenizers import AddedToken

    token = {"content": value} if isinstance(value, str) else value
    if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
        raise UnusableFile(f"{where}: expected a token, as text or as an object with content, got {shown(value)}")
    flags = {key: token[key] for key in FLAGS if key in token}
    for key, flag in flags.items():
        expect(f"{where}: {key}", flag, bool, "true or false")
    if special is not None:
        flags["special"] = special
    flags.setdefault("normalized", not flags.get("special", False))
    return AddedToken(token["content"], **flags)


def read_merges(path, vocabulary):
    """Pairs in the order in which they are merged."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        pair = line.split()
        if not pair or (number == 1 and line.startswith("#version:")):
            continue
        if len(pair) != 2:
            raise UnusableFile(f"{path}: line {number}: expected two tokens, got {shown(line)}")
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                raise UnusableFile(f"{path}: line {number}: {shown(token)} is not in vocab.json")
        merges.append(tuple(pair))
    return merges


class Checkpoint:
    """Tokenizer, special tokens and chat template of a checkpoint folder, each read when it is needed."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UnusableFile(f"{folder}: no such folder")
        self.has_tokenizer_json = (self.folder / "tokenizer.json").exists()
        self.config_path = self.folder / "tokenizer_config.json"
        self.config = read_object(self.config_path)
        self.model_config = read_object(self.folder / "config.json")

    @functools.cached_property
    def family(self):
        """The rules of the tokenizer's class; None where the class is not known."""
        auto_map = self.config.get("auto_map")
        # The folder's own Python code: a name, or one for each of the slow and the fast class.
        own = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
        names = [self.config.get("tokenizer_class"), *(own if isinstance(own, list) else [own]),
                 self.model_config.get("tokenizer_class")]
        for name in names:
            name = name.split(".")[-1].removesuffix("Fast") if isinstance(name, str) else None
            if name in CLASSES:
                return CLASSES[name]
        if self.has_tokenizer_json:  # which says itself what its class would have to
            return None
        return MODEL_TYPES.get(str(self.model_config.get("model_type")).lower())

    @functools.cached_property
    def declared_tokens(self):
        """Special tokens of both files by name, None where one says null, and the list of the others."""
        files = ["special_tokens_map.json", "tokenizer_config.json"]  # the second beats the first
        if "added_tokens_decoder" not in self.config:  # older folders keep what was changed in the map
            files.reverse()
        named, more = {}, {}
        for file in files:
            values = read_object(self.folder / file)
            lists = [("additional_special_tokens", values.get("additional_special_tokens"))]
            extra = values.get("extra_special_tokens") or {}
            if isinstance(extra, list):
                lists.append(("extra_special_tokens", extra))
                extra = {}
            expect(f"{self.folder / file}: extra_special_tokens", extra, dict, "an object")
            for key, tokens in lists:
                where = f"{self.folder / file}: {key}"
                for token in expect(where, tokens or [], list, "a list of tokens"):
                    token = make_token(where, token, special=True)
                    more[token.content] = token
            for key, value in {**values, **extra}.items():
                if key in SPECIAL_NAMES or key in extra:
                    none = value is None or value == ""
                    named[key] = None if none else make_token(f"{self.folder / file}: {key}", value, special=True)
        return named, list(more.values())

    @functools.cached_property
    def named_tokens(self):
        """Special tokens by name, those of the class included."""
        named = dict(self.declared_tokens[0])
        for key, text in (self.family or {}).get("special", {}).items():
            if key not in named and self.bare_tokenizer.token_to_id(text) is not None:
                named[key] = make_token(key, text, special=True)
        return {key: token for key, token in named.items() if token}

    @functools.cached_property
    def added_tokens(self):
        """(id, token, file) of added_tokens_decoder and added_tokens.json, by text."""
        added, owners = {}, {}

        def add(where, token, number):
            text = token.content
            if added.get(text, (number,))[0] != number:
                raise UnusableFile(f"{where}: {shown(text)} has id {number}, but {added[text][0]} in {added[text][2]}")
            if owners.setdefault(number, text) != text:
                raise UnusableFile(f"{where}: {shown(owners[number])} and {shown(text)} both have id {number}")
            added.setdefault(text, (number, token, where))

        decoder = self.config.get("added_tokens_decoder") or {}
        where = f"{self.config_path}: added_tokens_decoder"
        for key, value in expect(where, decoder, dict, "an object").items():
            number = check_id(where, int(key) if re.fullmatch("[0-9]{1,10}", key) else key)
            add(where, make_token(f"{where}: {key}", value), number)
        path = self.folder / "added_tokens.json"
        for text, number in read_object(path).items():
            add(path, make_token(path, text), check_id(f"{path}: {shown(text)}", number))
        return added

    @functools.cached_property
    def bare_tokenizer(self):
        """The tokenizer without the added and special tokens of the configuration files."""
        from tokenizers import Tokenizer

        if not self.has_tokenizer_json:
            return self.byte_level_tokenizer()
        path = self.folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_str(read_text(path))
        except UnusableFile:
            raise
        except Exception as error:  # the library raises plain Exception
            raise UnusableFile(f"{path}: {error}") from None
        # How batches were made in training would cut or pad prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def byte_level_tokenizer(self):
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        path = self.folder / "vocab.json"
        missing = [name for name in ("vocab.json", "merges.txt") if not (self.folder / name).exists()]
        if missing and (self.folder / "tokenizer.model").exists():
            raise UnusableFile(
                f"{self.folder / 'tokenizer.model'}: SentencePiece is not read here; make a tokenizer.json of it, "
                "for example with AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) of the transformers library")
        if missing:
            raise UnusableFile(f"{self.folder}: no tokenizer.json, and to do without it no {' and no '.join(missing)}")
        if self.family is None:
            raise UnusableFile(
                f"{self.config_path}: tokenizer_class {shown(self.config.get('tokenizer_class'))}: how it splits text "
                f"is not known. With vocab.json and merges.txt there are {', '.join(CLASSES)}; "
                "others need a tokenizer.json")
        vocabulary = read_object(path)
        owners = {}
        for token, number in vocabulary.items():
            if owners.setdefault(check_id(f"{path}: {shown(token)}", number), token) != token:
                raise UnusableFile(f"{path}: {shown(owners[number])} and {shown(token)} both have id {number}")
        merges = read_merges(self.folder / "merges.txt", vocabulary)
        # The library numbers added tokens itself, on from the last one. Those that it finds in the
        # vocabulary keep their ids, so gaps between ids do no harm.
        for text, (number, _, where) in self.added_tokens.items():
            if vocabulary.get(text, number) != number:
                raise UnusableFile(f"{where}: {shown(text)} has id {number}, but {vocabulary[text]} in {path}")
            if owners.get(number, text) != text:
                other = shown(owners[number])
                raise UnusableFile(f"{where}: {shown(text)} has id {number}, which is that of {other} in {path}")
            vocabulary[text] = number
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        if self.family["split"] is None:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.flag("add_prefix_space"))
        else:  # Qwen2's class takes no notice of add_prefix_space
            tokenizer.normalizer = normalizers.NFC()
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Split(Regex(self.family["split"]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def flag(self, key):
        value = self.config.get(key)
        return value is not None and expect(f"{self.config_path}: {key}", value, bool, "true or false")

    @functools.cached_property
    def tokenizer(self):
        named, others = self.named_tokens, self.declared_tokens[1]
        special = {token.content: token for token in [*others, *named.values()]}
        tokenizer = self.bare_tokenizer
        in_order = sorted(self.added_tokens.items(), key=lambda entry: entry[1][0])
        for text, (number, token, where) in in_order:
            if tokenizer.token_to_id(text) not in (None, number):
                continue  # tokenizer.json is what counts where it has the token
            token.special = token.special or text in special
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
            if tokenizer.token_to_id(text) != number:
                raise UnusableFile(f"{where}: {shown(text)} has id {number}, but tokenizer.json, which lacks it, would "
                                   f"give it {tokenizer.token_to_id(text)}")
        for text, token in special.items():
            if tokenizer.token_to_id(text) is None:
                if self.has_tokenizer_json:
                    continue
                raise UnusableFile(f"{self.folder}: the special token {shown(text)} has no id in vocab.json, "
                                   "added_tokens.json or added_tokens_decoder")
            if text not in self.added_tokens and not is_added(tokenizer, text):
                tokenizer.add_special_tokens([token])
        if not self.has_tokenizer_json:
            self.add_ends(tokenizer, named)
        return tokenizer

    def add_ends(self, tokenizer, named):
        """Makes a plain prompt begin and end with the tokens that the configuration asks for."""
        from tokenizers import processors

        form, tokens = ["$A"], []
        for key, place in (("bos", 0), ("eos", 2)):
            if not self.flag(f"add_{key}_token"):
                continue
            if f"{key}_token" not in named:
                raise UnusableFile(f"{self.config_path}: add_{key}_token is true, but there is no {key}_token")
            text = named[f"{key}_token"].content
            form.insert(place, key)
            tokens.append({"id": key, "ids": [tokenizer.token_to_id(text)], "tokens": [text]})
        if tokens:
            tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=tokens)

    def encode(self, where, text, special):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnusableFile(f"{where}: not text: {ascii(text[error.start])} stands alone") from None
        return self.tokenizer.encode(text, add_special_tokens=special)

    # A plain prompt gets the special tokens that the tokenizer itself adds, for example a BOS.
    def prompt_ids(self, where, prompt):
        return self.encode(where, prompt, special=True).ids

    def infill_ids(self, where, pieces, mask):
        """Texts and lengths of gaps as one prompt, which begins and ends as a plain one does."""
        whole = self.encode(where, "".join(piece for piece in pieces if isinstance(piece, str)), special=True)
        texts = [i for i, added in enumerate(whole.special_tokens_mask) if not added]
        begin, end = (texts[0], texts[-1] + 1) if texts else (len(whole.ids), len(whole.ids))
        ids = whole.ids[:begin]
        for piece in pieces:
            ids += [mask] * piece if isinstance(piece, int) else self.encode(where, piece, special=False).ids
        return ids + whole.ids[end:]

    def ids_in(self, file, values, key):
        """The token ids of a key that holds one, a list of them, or null or -1 for none."""
        value = values.get(key)
        found = [i for i in (value if isinstance(value, list) else [value]) if i is not None]
        return [check_id(f"{self.folder / file}: {key}", i) for i in found if not is_integer(i) or i != -1]

    def mask_token(self):
        """None where no file says which it is."""
        ids = self.ids_in("config.json", self.model_config, "mask_token_id")
        if ids:
            return ids[0]
        token = self.named_tokens.get("mask_token")
        return token and self.tokenizer.token_to_id(token.content)

    def end_tokens(self):
        """Ids after which an answer is over."""
        generation = read_object(self.folder / "generation_config.json")
        ends = {*self.ids_in("config.json", self.model_config, "eos_token_id"),
                *self.ids_in("generation_config.json", generation, "eos_token_id")}
        eos = self.named_tokens.get("eos_token")
        if eos and self.tokenizer.token_to_id(eos.content) is not None:
            ends.add(self.tokenizer.token_to_id(eos.content))
        return ends

    # Chats

    @functools.cached_property
    def template_source(self):
        """The chat template and the file that it stands in."""
        path, names = self.folder / "chat_template.jinja", []
        if path.exists():
            return path, read_text(path)
        for path in (self.config_path, self.folder / "chat_template.json"):
            where = f"{path}: chat_template"
            value = read_object(path).get("chat_template")
            if isinstance(value, list):  # several by name
                for entry in value:
                    expect(f"{where}: name", expect(where, entry, dict, "an object").get("name"), str, "text")
                value = {entry["name"]: entry.get("template") for entry in value}
            if isinstance(value, dict):
                names += value
                value = value.get("default")
            if value is not None:
                return path, expect(where, value, str, "a template as text")
        for path in sorted((self.folder / "additional_chat_templates").glob("*.jinja")):
            if path.stem == "default":
                return path, read_text(path)
            names.append(path.stem)
        there = f"; there are {', '.join(sorted(names))}, but none is called default" if names else ""
        raise UnusableFile(f"{self.folder}: no chat template in chat_template.jinja, tokenizer_config.json or "
                           f"chat_template.json{there}")

    @functools.cached_property
    def template(self):
        """The compiled chat template, and whether it goes through the parts of a content itself."""
        path, source = self.template_source
        try:
            environment = template_environment()
            return environment.from_string(source), loops_over_content(environment.parse(source))
        except Exception as error:
            raise template_failure(path, error) from None

    def chat_ids(self, where, messages):
        template, takes_parts = self.template
        messages = read_messages(where, messages, takes_parts)
        special = {key: token.content for key, token in self.named_tokens.items()}
        if self.declared_tokens[1]:
            special["additional_special_tokens"] = [token.content for token in self.declared_tokens[1]]
        try:
            text = template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **special)
        except Exception as error:  # templates are programs: anything may go wrong in them
            raise template_failure(self.template_source[0], error) from None
        # The template writes its special tokens itself.
        return self.encode(where, text, special=False).ids


def template_environment():
    """What the templates of checkpoints are written for."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}...{% endgeneration %} mark what training learns; nothing else comes of them."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("same"), [], [], body).set_lineno(line)

        def same(self, caller):
            return caller()

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja2's own would escape what is special in HTML.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = tojson
    return environment


def loops_over_content(tree):
    """Whether a template has a loop over the parts of a content, whose type it then asks for itself."""
    from jinja2 import nodes

    def is_content(node):
        while isinstance(node, nodes.Filter):
            node = node.node
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        return "content" in (getattr(node, "name", None), getattr(node, "attr", None))

    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))


def template_failure(path, error):
    from jinja2 import TemplateError

    what = " ".join(str(error).split())
    if not isinstance(error, TemplateError) or not what:
        what = f"{type(error).__name__}: {what}".rstrip(": ")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else None)
    return UnusableFile(f"{path}: chat template" + (f", line {line}" if line else "") + f": {what}")


def read_messages(where, messages, takes_parts):
    """Messages as templates want them: with the text of their content, or its parts where they take these."""
    if not isinstance(messages, list) or not messages:
        raise UnusableFile(f"{where}: expected a list of messages with role and content, got {shown(messages)}")
    result = []
    for number, message in enumerate(messages, 1):
        place = f"{where}: message {number}"
        expect(place, message, dict, "an object with role and content")
        expect(f"{place}: role", message.get("role"), str, "text")
        if "content" not in message and "tool_calls" not in message:
            raise UnusableFile(f"{place}: has no content")
        result.append({**message, "content": read_content(place, message.get("content"), takes_parts)})
    return result


def read_content(place, content, takes_parts):
    if content is None:  # a message that calls tools says nothing
        return ""
    if isinstance(content, str):
        return content
    expect(f"{place}: content", content, list, "text, a list of text parts or null")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    for number, part in enumerate(parts, 1):
        where = f"{place}: part {number} of its content"
        kind = expect(where, part, dict, "an object with type and text").get("type")
        if kind not in ("text", "input_text", "output_text"):
            raise UnusableFile(f"{where} is of type {shown(kind)}: only text can be used")
        expect(f"{where}: text", part.get("text"), str, "text")
    return parts if takes_parts else "".join(part["text"] for part in parts)


# Text to token ids


def make_request(options):
    checkpoint = Checkpoint(options.model)
    prompts = [checkpoint.prompt_ids("--prompt", prompt) for prompt in options.prompt]
    prompts += [checkpoint.chat_ids(path, read_json(path)) for path in options.chat]
    prompts += [checkpoint.chat_ids("--user", [{"role": "user", "content": text}]) for text in options.user]
    if options.infill:
        mask = options.mask_token if options.mask_token is not None else checkpoint.mask_token()
        if mask is None:
            raise UnusableFile(f"{options.model}: neither mask_token_id in config.json nor mask_token of the tokenizer "
                               "says which token is the mask: give --mask-token ID")
        prompts += [checkpoint.infill_ids("--infill", pieces, mask) for pieces in options.infill]
        if options.gen_length is None:
            options.gen_length = 0  # nothing behind the text
    request = {"prompt_ids": prompts}
    for key in REQUEST_KEYS:
        if getattr(options, key) is not None:
            request[key] = getattr(options, key)
    if options.mask_token is not None:
        request["mask_token"] = options.mask_token  # the program must know it too
    print(json.dumps({**request, **dict(options.set)}))


def make_questions(options):
    checkpoint = Checkpoint(options.model)
    for where, given in read_lines(options.data):
        kinds = [key for key in ("prompt", "user", "messages") if key in given]
        if len(kinds) != 1:
            raise UnusableFile(f"{where}: expected one of prompt, user and messages, got {len(kinds)}")
        unknown = sorted(set(given) - {*kinds, "answer", "gen_length", "task"})
        if unknown:
            raise UnusableFile(f"{where}: unknown key {unknown[0]}")
        text = given[kinds[0]]
        if kinds[0] != "messages" and not isinstance(text, str):
            raise UnusableFile(f"{where}: {kinds[0]} must be a string, got {shown(text)}")
        if kinds[0] == "messages" and not isinstance(text, list):
            raise UnusableFile(f"{where}: messages must be a list, with role and content, got {shown(text)}")
        if kinds[0] == "prompt":
            ids = checkpoint.prompt_ids(where, text)
        else:
            ids = checkpoint.chat_ids(where, text if kinds[0] == "messages" else [{"role": "user", "content": text}])
        question = {"prompt_ids": ids}
        if "answer" in given:
            if not isinstance(given["answer"], str):
                raise UnusableFile(f"{where}: answer must be a string")
            question["answer_ids"] = checkpoint.encode(where, given["answer"], special=False).ids
        question["gen_length"] = given.get("gen_length", options.gen_length)
        if "task" in given:
            question["task"] = given["task"]
        print(json.dumps(question))


# Token ids to text


def read_ids(where, ids):
    return [check_id(where, i) for i in expect(where, ids, list, "a list of token ids")]


def read_answer(where, tokens, sequence):
    """Ids of what stands before the response, which is empty unless a sequence with gaps was filled, and of it."""
    tokens = read_ids(where, tokens)
    if not sequence:
        return [], tokens
    sequence = read_ids(f"{where}: sequence", sequence)
    if len(sequence) < len(tokens):
        raise UnusableFile(f"{where}: its sequence of {len(sequence)} tokens is shorter than its {len(tokens)} tokens")
    prompt = len(sequence) - len(tokens)
    return sequence[:prompt], sequence[prompt:]


def generated_answers(path):
    """The answers of a file of dllm-generate."""
    result = read_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("tokens"), list):
        raise UnusableFile(f"{path}: expected an answer of dllm-generate with tokens")
    sequences = result.get("sequence")
    if sequences is None:
        sequences = [None] * len(result["tokens"])
    if not isinstance(sequences, list) or len(sequences) != len(result["tokens"]):
        raise UnusableFile(f"{path}: sequence: expected as many lists as in tokens, got {shown(sequences)}")
    for number, (tokens, sequence) in enumerate(zip(result["tokens"], sequences), 1):
        yield read_answer(f"{path}: answer {number}", tokens, sequence)


def evaluated_answers(path):
    """The answers of a file of dllm-eval."""
    for where, line in read_lines(path):
        if "format" in line:  # the head of the file says what run it was
            continue
        if not isinstance(line.get("tokens"), list):
            raise UnusableFile(f"{where}: expected an answer of dllm-eval with tokens")
        yield read_answer(where, line["tokens"], line.get("sequence"))


def print_answer(options):
    checkpoint = Checkpoint(options.model)
    tokenizer = checkpoint.tokenizer
    ends = checkpoint.end_tokens() | set(options.end_token)
    mask = checkpoint.mask_token()
    has_text = functools.cache(lambda i: tokenizer.decode([i, i], skip_special_tokens=False) != "")
    masks, without_text = 0, collections.Counter()
    answers = evaluated_answers(options.answers) if options.answers else generated_answers(options.json)
    for prompt, response in answers:
        length = next((i for i, token in enumerate(response) if token in ends), len(response))
        ids = prompt + response[:length]
        masks += ids.count(mask)
        without_text.update(i for i in ids if i != mask and not has_text(i))
        text = tokenizer.decode(ids, skip_special_tokens=not options.special)
        print(json.dumps({"answer": text}, ensure_ascii=False) if options.answers else text)
    notes = [f"{masks} masks left over"] if masks else []
    if without_text:
        first = ", ".join(str(i) for i in sorted(without_text)[:5])
        notes.append(f"{sum(without_text.values())} ids for which the tokenizer has no text: {first}"
                     + (", ..." if len(without_text) > 5 else ""))
    if notes:
        print(f"text.py: note: {options.answers or options.json}: {'; '.join(notes)}", file=sys.stderr)


# Command line

REQUEST_KEYS = {"gen_length": int, "block_length": int, "steps": int, "temperature": float, "seed": int}
LONGEST_GAP = 1000000


def token_id(text):
    if not re.fullmatch("[0-9]{1,10}", text) or not is_id(int(text)):
        raise argparse.ArgumentTypeError(f"expected a token id in [0, 2^31), got {text}")
    return int(text)


def infill(text):
    """Texts, with their escapes resolved, and the lengths of the gaps between them."""
    pieces, end = [], 0
    for gap in re.finditer(r"<mask:([^<>\s]*)(>?)", text):
        if not (re.fullmatch("[0-9]{1,7}", gap[1]) and gap[2] and 1 <= int(gap[1]) <= LONGEST_GAP):
            raise argparse.ArgumentTypeError(f"expected gaps <mask:N> with N in [1, {LONGEST_GAP}], got {gap[0]}")
        pieces += [text[end : gap.start()], int(gap[1])]
        end = gap.end()
    if not pieces:
        raise argparse.ArgumentTypeError(f"expected text with gaps <mask:N>, got {text}")
    escapes = {"n": "\n", "t": "\t", "\\": "\\"}
    return [piece if isinstance(piece, int) else re.sub(r"\\([nt\\])", lambda m: escapes[m[1]], piece)
            for piece in [*pieces, text[end:]]]


def request_key(text):
    """A key of the request, which dllm-generate checks, with its value: JSON, or else a word."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text}")
    if key == "prompt_ids":
        raise argparse.ArgumentTypeError("prompt_ids come from the text")
    try:
        return key, json.loads(value, parse_constant=str)
    except (ValueError, RecursionError):
        return key, value


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", required=True, help="checkpoint folder with its tokenizer")
    commands = parser.add_subparsers(dest="command", required=True)
    request = commands.add_parser("request", parents=[model], help="turn prompts or chats into a request on stdout")
    request.add_argument("--prompt", action="append", default=[], help="plain text (may be repeated)")
    request.add_argument("--user", action="append", default=[], help="one user message of a chat")
    request.add_argument("--chat", action="append", default=[], help="JSON file: a list of messages")
    request.add_argument("--infill", action="append", default=[], type=infill,
                         help=r"text with gaps <mask:N> of N tokens; \n, \t, \\ are escapes; gen_length 0 unless given")
    request.add_argument("--mask-token", type=token_id, help="id of the mask, where the folder does not say")
    for key, kind in REQUEST_KEYS.items():
        request.add_argument(f"--{key.replace('_', '-')}", type=kind, help="written into the request")
    request.add_argument("--set", action="append", default=[], type=request_key, metavar="KEY=VALUE",
                         help="any other key of the request, for example cache_kind=balanced")
    questions = commands.add_parser("questions", parents=[model], help="turn questions into token ids for dllm-eval")
    questions.add_argument("--data", required=True,
                           help="JSON lines: prompt, user or messages; answer, gen_length, task")
    questions.add_argument("--gen-length", type=int, default=128, help="where a line has none (128)")
    answer = commands.add_parser("answer", parents=[model], help="print answers of dllm-generate or dllm-eval as text")
    source = answer.add_mutually_exclusive_group(required=True)
    source.add_argument("--json", help="what dllm-generate wrote")
    source.add_argument("--answers", help="what dllm-eval --save-answers wrote; one JSON object a line")
    answer.add_argument("--special", action="store_true", help="show special tokens")
    answer.add_argument("--end-token", action="append", default=[], type=token_id,
                        help="id of a further token that ends an answer (may be repeated)")
    options = parser.parse_args()
    if options.command == "request":
        if not (options.prompt or options.user or options.chat or options.infill):
            parser.error("one of --prompt, --user, --chat and --infill must be given")
        keys = [key for key in REQUEST_KEYS if getattr(options, key) is not None] + [key for key, _ in options.set]
        for key in keys:
            if keys.count(key) > 1:
                parser.error(f"{key} is given twice")
    return options


def main():
    options = parse_options()
    sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal's locale: answers hold any character
    try:
        {"request": make_request, "questions": make_questions, "answer": print_answer}[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for example head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnusableFile as error:
        print("text.py:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"text.py: {error.name} is missing: pip install -r examples/requirements.txt", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"text.py: {error.filename or 'stdout'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
