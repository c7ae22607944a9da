#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text in, text out for real checkpoints: makes requests for dllm-generate and reads its answers.

  text.py request --model DIR --prompt "Once upon a time" --gen-length 128 > request.json
  text.py request --model DIR --user "What is 7 times 6?" > request.json
  dllm-generate --model DIR --request request.json --json answer.json
  text.py answer --model DIR --json answer.json

and measures a cache on real checkpoints: questions in a file, one JSON object a line with prompt,
user or messages and, optionally, answer, gen_length and task, become token ids for dllm-eval.

  text.py questions --model DIR --data questions.jsonl --gen-length 128 > ids.jsonl
  dllm-eval --model DIR --data ids.jsonl --block-length 32 --policy balanced --save-answers out.jsonl
  text.py answer --model DIR --answers out.jsonl

The checkpoint folder holds tokenizer.json and, for chats, the template in tokenizer_config.json or
chat_template.jinja. Needs tokenizers and jinja2 from PyPI (examples/requirements.txt).
Exit codes: 0 done, 1 a file cannot be used, 2 a bad option.
"""
import argparse
import datetime
import json
import sys
from pathlib import Path


class UnusableFile(Exception):
    """A file that is missing or does not hold what it should."""


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnusableFile(f"{path}: {error}") from None


def load_tokenizer(folder):
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UnusableFile(f"{path}: {error}") from None


def token_text(value):
    """Special tokens stand in the configuration as text or as an object with the text in it."""
    return value.get("content") if isinstance(value, dict) else value


def load_config(folder):
    path = Path(folder) / "tokenizer_config.json"
    return read_json(path) if path.exists() else {}


def chat_template(folder, config):
    path = Path(folder) / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    if not isinstance(template, str):
        raise UnusableFile(f"{folder}: no chat template in chat_template.jinja or tokenizer_config.json")
    return template


def render_chat(folder, messages):
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    config = load_config(folder)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    special = {
        key: token_text(value)
        for key, value in config.items()
        if key.endswith("_token") and token_text(value) is not None
    }
    try:
        return environment.from_string(chat_template(folder, config)).render(
            messages=messages, add_generation_prompt=True, **special
        )
    except TemplateError as error:
        raise UnusableFile(f"{folder}: chat template: {error}") from None


def read_messages(path):
    messages = read_json(path)
    if not is_chat(messages):
        raise UnusableFile(f"{path}: expected a list of messages with role and content")
    return messages


def prompt_ids(tokenizer, prompt):
    # A plain prompt gets the special tokens that the tokenizer itself adds, for example a BOS.
    return tokenizer.encode(prompt).ids


def chat_ids(folder, tokenizer, messages):
    # The template writes its special tokens itself.
    return tokenizer.encode(render_chat(folder, messages), add_special_tokens=False).ids


def is_chat(messages):
    return isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages
    )


def make_request(options):
    tokenizer = load_tokenizer(options.model)
    prompts = [prompt_ids(tokenizer, prompt) for prompt in options.prompt]
    chats = [read_messages(path) for path in options.chat]
    chats += [[{"role": "user", "content": text}] for text in options.user]
    prompts += [chat_ids(options.model, tokenizer, messages) for messages in chats]
    request = {"prompt_ids": prompts}
    for key in ("gen_length", "block_length", "steps", "temperature", "seed"):
        if getattr(options, key) is not None:
            request[key] = getattr(options, key)
    json.dump(request, sys.stdout)
    print()


def read_lines(path):
    """The JSON object of every line, with its place for messages."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableFile(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UnusableFile(f"{path}: line {number}: {error}") from None
        if not isinstance(value, dict):
            raise UnusableFile(f"{path}: line {number}: expected a JSON object")
        yield f"{path}: line {number}", value


def make_questions(options):
    tokenizer = load_tokenizer(options.model)
    for where, given in read_lines(options.data):
        kinds = [key for key in ("prompt", "user", "messages") if key in given]
        if len(kinds) != 1:
            raise UnusableFile(f"{where}: expected one of prompt, user and messages, got {len(kinds)}")
        unknown = sorted(set(given) - {*kinds, "answer", "gen_length", "task"})
        if unknown:
            raise UnusableFile(f"{where}: unknown key {unknown[0]}")
        text = given[kinds[0]]
        if not (is_chat(text) if kinds[0] == "messages" else isinstance(text, str)):
            raise UnusableFile(f"{where}: {kinds[0]} must be " + ("messages with role and content"
                               if kinds[0] == "messages" else "a string"))
        if kinds[0] == "prompt":
            ids = prompt_ids(tokenizer, text)
        else:
            messages = text if kinds[0] == "messages" else [{"role": "user", "content": text}]
            ids = chat_ids(options.model, tokenizer, messages)
        question = {"prompt_ids": ids}
        if "answer" in given:
            if not isinstance(given["answer"], str):
                raise UnusableFile(f"{where}: answer must be a string")
            question["answer_ids"] = tokenizer.encode(given["answer"], add_special_tokens=False).ids
        question["gen_length"] = given.get("gen_length", options.gen_length)
        if "task" in given:
            question["task"] = given["task"]
        print(json.dumps(question))


def end_tokens(folder, tokenizer):
    """Ids after which an answer is over: those of config.json and the tokenizer's own EOS."""
    path = Path(folder) / "config.json"
    ids = read_json(path).get("eos_token_id") if path.exists() else None
    ends = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
    eos = token_text(load_config(folder).get("eos_token"))
    if eos is not None and tokenizer.token_to_id(eos) is not None:
        ends.add(tokenizer.token_to_id(eos))
    return ends


def print_answer(options):
    tokenizer = load_tokenizer(options.model)
    ends = end_tokens(options.model, tokenizer)
    def text(ids):
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return tokenizer.decode(ids[:length], skip_special_tokens=not options.special)

    if options.answers:
        for where, line in read_lines(options.answers):
            if "format" in line:  # the head of the file says what run it was
                continue
            if not isinstance(line.get("tokens"), list):
                raise UnusableFile(f"{where}: expected an answer of dllm-eval with tokens")
            print(json.dumps({"answer": text(line["tokens"])}, ensure_ascii=False))
        return
    result = read_json(options.json)
    tokens = result.get("tokens") if isinstance(result, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(ids, list) for ids in tokens):
        raise UnusableFile(f"{options.json}: expected an answer of dllm-generate with tokens")
    for ids in tokens:
        print(text(ids))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    request = commands.add_parser("request", help="turn prompts or chats into a request on stdout")
    request.add_argument("--model", required=True, help="checkpoint folder with tokenizer.json")
    request.add_argument("--prompt", action="append", default=[], help="plain text (may be repeated)")
    request.add_argument("--user", action="append", default=[], help="one user message of a chat")
    request.add_argument("--chat", action="append", default=[], help="JSON file: a list of messages")
    for key, kind in (("gen-length", int), ("block-length", int), ("steps", int), ("temperature", float), ("seed", int)):
        request.add_argument(f"--{key}", type=kind, help="written into the request")
    questions = commands.add_parser("questions", help="turn questions into token ids for dllm-eval, on stdout")
    questions.add_argument("--model", required=True, help="checkpoint folder with tokenizer.json")
    questions.add_argument("--data", required=True, help="JSON lines: prompt, user or messages; answer, gen_length, task")
    questions.add_argument("--gen-length", type=int, default=128, help="where a line has none (128)")
    answer = commands.add_parser("answer", help="print the answers of dllm-generate or dllm-eval as text")
    answer.add_argument("--model", required=True, help="checkpoint folder with tokenizer.json")
    source = answer.add_mutually_exclusive_group(required=True)
    source.add_argument("--json", help="what dllm-generate wrote")
    source.add_argument("--answers", help="what dllm-eval --save-answers wrote; one JSON object a line")
    answer.add_argument("--special", action="store_true", help="show special tokens")
    options = parser.parse_args()
    if options.command == "request" and not (options.prompt or options.user or options.chat):
        parser.error("one of --prompt, --user and --chat must be given")
    try:
        {"request": make_request, "questions": make_questions, "answer": print_answer}[options.command](options)
    except UnusableFile as error:
        print(f"text.py: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"text.py: {error.name} is missing: pip install -r examples/requirements.txt", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
