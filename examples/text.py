#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Text in, text out for real checkpoints: makes requests for dllm-generate and reads its answers.

  text.py request --model DIR --prompt "Once upon a time" --gen-length 128 > request.json
  text.py request --model DIR --user "What is 7 times 6?" > request.json
  dllm-generate --model DIR --request request.json --json answer.json
  text.py answer --model DIR --json answer.json

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
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages
    ):
        raise UnusableFile(f"{path}: expected a list of messages with role and content")
    return messages


def make_request(options):
    tokenizer = load_tokenizer(options.model)
    prompts = []
    for prompt in options.prompt:
        # A plain prompt gets the special tokens that the tokenizer itself adds, for example a BOS.
        prompts.append(tokenizer.encode(prompt).ids)
    chats = [read_messages(path) for path in options.chat]
    chats += [[{"role": "user", "content": text}] for text in options.user]
    for messages in chats:
        # The template writes its special tokens itself.
        text = render_chat(options.model, messages)
        prompts.append(tokenizer.encode(text, add_special_tokens=False).ids)
    request = {"prompt_ids": prompts}
    for key in ("gen_length", "block_length", "steps", "temperature", "seed"):
        if getattr(options, key) is not None:
            request[key] = getattr(options, key)
    json.dump(request, sys.stdout)
    print()


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
    result = read_json(options.json)
    tokens = result.get("tokens") if isinstance(result, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(ids, list) for ids in tokens):
        raise UnusableFile(f"{options.json}: expected an answer of dllm-generate with tokens")
    for ids in tokens:
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        print(tokenizer.decode(ids[:length], skip_special_tokens=not options.special))


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
    answer = commands.add_parser("answer", help="print the answers of dllm-generate as text")
    answer.add_argument("--model", required=True, help="checkpoint folder with tokenizer.json")
    answer.add_argument("--json", required=True, help="what dllm-generate wrote")
    answer.add_argument("--special", action="store_true", help="show special tokens")
    options = parser.parse_args()
    if options.command == "request" and not (options.prompt or options.user or options.chat):
        parser.error("one of --prompt, --user and --chat must be given")
    try:
        make_request(options) if options.command == "request" else print_answer(options)
    except UnusableFile as error:
        print(f"text.py: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"text.py: {error.name} is missing: pip install -r examples/requirements.txt", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
