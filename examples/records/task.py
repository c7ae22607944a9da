#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Questions about small tables with exact answers, one token a character.

  task.py --count 2000 --seed 7 --out questions.jsonl

A prompt is a CSV table and an instruction: `>from NAME` asks for that row and all below it,
`>get NAME` for that row as a line of JSON, `>json NAME` for the last rows, from that one on, as
lines of JSON. Evaluation and training draw from random streams seeded by different texts
("evaluation SEED" and "training SEED"), so that no two seeds give both the same stream.
Needs only the standard library. Exit codes: 0 done, 1 a file cannot be written, 2 a bad option.
"""
import argparse
import json
import random
import string
import sys
from dataclasses import asdict, dataclass

EOS, MASK, PAD = 0, 1, 2
CHARACTERS = "\n " + string.ascii_lowercase + string.digits + ',:;=>{}"._-@|'
VOCABULARY_SIZE = 64
SYMBOLS = ["<eos>", "<mask>", "<pad>", *CHARACTERS]
SYMBOLS += [f"<unused{i}>" for i in range(len(SYMBOLS), VOCABULARY_SIZE)]
TOKEN_OF = {character: SYMBOLS.index(character) for character in CHARACTERS}

TASKS = ("from", "get", "json")
GEN_LENGTHS = (64, 128, 192)
LONGEST_PROMPT = 400
LONGEST_ANSWER = GEN_LENGTHS[-1] - 1
COMMON_NAMES = """
    ana bob carl dina emil fay gus hana ivan jo kira liam mona nils olga pete quin rosa sven tara
    umar vera wim xena yara zoe alice bruno clara david elena frank greta hugo irene jonas karin
    lukas maria nadia oscar paula rafael sofia tomas ursula victor wanda amir boris celia derek
    edith fiona gino helga ines jamal
""".split()
# Of each column: the characters of its values, the fewest and the most of them.
COLUMNS = {
    "id": (string.ascii_lowercase + string.digits, 5, 5),
    "key": (string.ascii_lowercase, 4, 6),
    "tel": (string.digits, 6, 6),
    "code": (string.ascii_lowercase + string.digits, 4, 4),
}


@dataclass
class Question:
    prompt: str
    answer: str
    gen_length: int
    task: str


@dataclass
class Shape:
    """What tables are drawn: bounds, both included, and how often a value resembles another."""

    rows: tuple = (8, 14)
    columns: tuple = (2, 3)
    shortest_prompt: int = 0
    shortest_answer: int = 0
    similar: float = 0.0


FULL_SIZE = Shape(shortest_prompt=200, shortest_answer=45)


def encode(text):
    return [TOKEN_OF[character] for character in text]


def decode(tokens):
    """The text before the first end of sequence; a token without a character reads as '?'."""
    characters = []
    for token in tokens:
        if token == EOS:
            break
        characters.append(SYMBOLS[token] if SYMBOLS[token] in TOKEN_OF else "?")
    return "".join(characters)


def random_text(rng, alphabet, shortest, longest):
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(shortest, longest)))


def resembling(rng, text, alphabet):
    """The text with one character drawn anew."""
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(alphabet) + text[place + 1 :]


def draw_names(rng, count, similar):
    names = []
    while len(names) < count:
        if names and rng.random() < similar:
            name = resembling(rng, rng.choice(names), string.ascii_lowercase)
        elif rng.random() < 0.5:
            name = rng.choice(COMMON_NAMES)
        else:
            name = random_text(rng, string.ascii_lowercase, 4, 6)
        if name not in names:
            names.append(name)
    return names


def draw_values(rng, column, count, similar):
    alphabet, shortest, longest = COLUMNS[column]
    values = []
    for _ in range(count):
        if values and rng.random() < similar:
            values.append(resembling(rng, rng.choice(values), alphabet))
        else:
            values.append(random_text(rng, alphabet, shortest, longest))
    return values


def csv_line(values):
    return ",".join(values) + "\n"


def json_line(header, values):
    return "{" + ",".join(f'"{k}":"{v}"' for k, v in zip(header, values)) + "}\n"


def gen_length_for(answer):
    """The shortest generation that holds the answer and an end of sequence."""
    return next(length for length in GEN_LENGTHS if length > len(answer))


def draw_question(rng, task, shape=FULL_SIZE):
    """One question of the task; draws again until prompt and answer have allowed lengths."""
    while True:
        count = rng.randint(*shape.rows)
        chosen = rng.sample(list(COLUMNS), rng.randint(*shape.columns))
        header = ["name", *chosen]
        columns = [draw_names(rng, count, shape.similar)]
        columns += [draw_values(rng, column, count, shape.similar) for column in chosen]
        rows = list(zip(*columns))
        if task == "json":
            asked = max(0, count - rng.randint(2, 3))
        else:
            asked = rng.randrange(count)
        if task == "from":
            answer = "".join(csv_line(row) for row in rows[asked:])
        else:
            last = asked + 1 if task == "get" else count
            answer = "".join(json_line(header, row) for row in rows[asked:last])
        instruction = f">{task} {rows[asked][0]}\n"
        prompt = csv_line(header) + "".join(csv_line(row) for row in rows) + instruction
        if not shape.shortest_prompt <= len(prompt) <= LONGEST_PROMPT:
            continue
        if shape.shortest_answer <= len(answer) <= LONGEST_ANSWER:
            return Question(prompt, answer, gen_length_for(answer), task)


def evaluation_questions(count, seed):
    """Full-size questions in the fixed order from, get, from, json."""
    rng = random.Random(f"evaluation {seed}")
    order = ("from", "get", "from", "json")
    return [draw_question(rng, order[i % len(order)]) for i in range(count)]


def training_rng(seed):
    return random.Random(f"training {seed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="how many questions")
    parser.add_argument("--seed", type=int, default=1, help="seed of the evaluation stream")
    parser.add_argument("--out", required=True, help="the JSON lines file to write")
    options = parser.parse_args()
    if options.count < 0:
        parser.error("--count must not be negative")
    lines = [json.dumps(asdict(q)) for q in evaluation_questions(options.count, options.seed)]
    try:
        with open(options.out, "w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
    except OSError as error:
        print(f"task.py: {options.out}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
