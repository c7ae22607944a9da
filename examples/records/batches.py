# SPDX-License-Identifier: Apache-2.0
"""Batches of masked questions, and the states that decoding would reach from them.

A sample is masked in one of two ways. Uniform: each position of the answer is masked with
probability t. Blockwise: what precedes a block is known, what follows it is masked, and only the
block is learnt. A blockwise batch comes back after its step: the block gains the true tokens where
the network was right and confident, as decoding would have committed them, so that the network
also learns from partly filled blocks of the kind that decoding meets.
"""
from dataclasses import dataclass, field

import torch

from task import EOS, MASK, TASKS, Shape, draw_question, encode

TASK_WEIGHTS = (0.45, 0.28, 0.27)
BLOCKS, BLOCK_WEIGHTS = (4, 8, 16, 32, 64), (1, 1, 2, 5, 1)
BLOCKWISE_SHARE = 0.7
FULLY_MASKED_SHARE = 0.5
PASSES = 3
CONFIDENT = 0.9
QUESTIONS_DRAWN = 240
LENGTH_STEP = 16


@dataclass
class Batch:
    """Token rows of about one length, filled up with end of sequence, and what is masked."""

    tokens: torch.Tensor
    prompt_lengths: list
    answer_lengths: list
    line_starts: list
    masked: torch.Tensor = None
    learnt: torch.Tensor = None
    weight: torch.Tensor = None
    blocks: list = field(default_factory=list)  # (first, end) or None for a uniform sample
    passes: int = 0


def shape_at(level, rng):
    """From tables of a row or two at level 0 to full size at level 1, where a few stay small."""
    if level >= 1 and rng.random() < 0.8:
        return Shape(shortest_answer=30, similar=0.15 if rng.random() < 0.3 else 0.0)
    most = max(3, round(3 + 11 * level))
    return Shape(rows=(1 if level < 1 else 2, most), columns=(1, 3))


def copying_text(rng):
    """A few short random lines and an instruction to repeat them or one of them."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    lines = []
    for _ in range(rng.randint(1, 4)):
        words = ["".join(rng.choices(alphabet, k=rng.randint(3, 6)))
                 for _ in range(rng.randint(1, 4))]
        lines.append(",".join(words))
    if len(lines) < 4 and rng.random() < 0.4:
        asked, instruction = lines, ">copy"
    else:
        asked = [rng.choice(lines)]
        instruction = ">where " + rng.choice(asked[0].split(","))
    return "\n".join([*lines, instruction, ""]), "".join(line + "\n" for line in asked)


def draw_texts(rng, level):
    """Prompt, answer and generation length; below level 0 the texts are for copying."""
    if level < 0:
        prompt, answer = copying_text(rng)
        return prompt, answer, (len(answer) // 32 + 1) * 32
    question = draw_question(rng, rng.choices(TASKS, TASK_WEIGHTS)[0], shape_at(level, rng))
    longer = question.gen_length + 64
    stretched = rng.random() < 0.1 and longer <= 192
    return question.prompt, question.answer, longer if stretched else question.gen_length


def make_batch(texts, length):
    tokens = torch.full((len(texts), length), EOS)
    for row, (prompt, answer, _) in enumerate(texts):
        known = encode(prompt + answer)
        tokens[row, : len(known)] = torch.tensor(known)
    starts = [[i + 1 for i, c in enumerate(answer[:-1]) if c == "\n"] for _, answer, _ in texts]
    return Batch(tokens, [len(p) for p, _, _ in texts], [len(a) for _, a, _ in texts], starts)


def draw_batches(rng, level, budget):
    """Unmasked batches, each of at most `budget` tokens of questions of like length."""
    texts = [draw_texts(rng, level) for _ in range(QUESTIONS_DRAWN)]
    texts.sort(key=lambda t: len(t[0]) + t[2])
    batches, group, length = [], [], 0
    for text in texts:
        rounded = -(-(len(text[0]) + text[2]) // LENGTH_STEP) * LENGTH_STEP
        if group and max(length, rounded) * (len(group) + 1) > budget:
            batches.append(make_batch(group, length))
            group, length = [], 0
        group.append(text)
        length = max(length, rounded)
    if not batches or length * len(group) > budget // 2:
        batches.append(make_batch(group, length))
    rng.shuffle(batches)
    return batches


def first_block(rng, batch, row):
    """A block of a size that decoding may use; most start where decoding would start them."""
    size = rng.choices(BLOCKS, BLOCK_WEIGHTS)[0]
    answer = batch.answer_lengths[row]
    place = rng.random()
    if place < 0.5:
        start = rng.randrange(answer // size + 1) * size
    elif place < 0.7:
        start = 0
    elif place < 0.85:
        start = rng.choice([0, *batch.line_starts[row]])
    else:
        start = rng.randint(0, answer)
    return block_at(batch, row, start, size)


def block_at(batch, row, start, size):
    first = batch.prompt_lengths[row] + start
    return first, min(first + size, batch.tokens.shape[1])


def mask_block(batch, row, block, open_places):
    """Masks the open places of the block and all that follows it; only the block is learnt."""
    first, end = block
    prompt = batch.prompt_lengths[row]
    size = end - first
    length = batch.tokens.shape[1] - prompt
    batch.blocks[row] = block
    batch.masked[row] = False
    batch.masked[row, first:end] = open_places
    batch.learnt[row] = batch.masked[row]
    batch.masked[row, end:] = True
    part = max(float(open_places.float().mean()), 0.2)
    batch.weight[row] = min(12.0, (length / size) ** 0.75) / part


def mask_batch(rng, batch):
    """Masks a batch anew: each sample blockwise or uniformly, by chance or as it was before."""
    rows, length = batch.tokens.shape
    times = (torch.randperm(rows) + torch.rand(rows)) / rows
    times = (0.04 + 0.96 * times)[:, None]
    response = torch.arange(length)[None] >= torch.tensor(batch.prompt_lengths)[:, None]
    batch.masked = response & (torch.rand(rows, length) < times)
    batch.learnt = batch.masked.clone()
    batch.weight = (1 / times.clamp(min=0.1)).repeat(1, length)
    before, batch.blocks = batch.blocks, [None] * rows
    for row in range(rows):
        blockwise = before[row] is not None if before else rng.random() < BLOCKWISE_SHARE
        if blockwise:
            block = first_block(rng, batch, row)
            time = 1.0 if rng.random() < FULLY_MASKED_SHARE else rng.uniform(0.1, 1.0)
            open_places = torch.rand(block[1] - block[0]) < time
            open_places[rng.randrange(len(open_places))] = True
            mask_block(batch, row, block, open_places)
    batch.passes = 1


def next_open_places(rng, confidence, right):
    """Where the block stays masked; confidence is below 0 where it already is not."""
    still = confidence >= 0
    if rng.random() < 0.5:
        chosen = confidence >= CONFIDENT
        chosen[confidence.argmax()] = True
    else:
        chosen = torch.zeros_like(still)
        count = rng.randint(1, min(8, int(still.sum())))
        chosen[confidence.topk(count).indices] = True
    chosen &= right & still
    if not chosen.any():
        chosen[still.nonzero()[0]] = True
    return still & ~chosen


def advance_batch(rng, batch, logits):
    """Takes the blockwise samples a decoding step on and masks the others anew; False at the end.

    Only right tokens are committed, so that all that is known stays true. A filled block is
    followed by the next one of its size, or by a new one after the end of the answer.
    """
    if batch.passes == PASSES:
        return False
    confidence = torch.full(batch.tokens.shape, -1.0)
    right = torch.zeros(batch.tokens.shape, dtype=torch.bool)
    best, token = logits.softmax(-1).max(-1)
    confidence[batch.learnt] = best
    right[batch.learnt] = token == batch.tokens[batch.learnt]
    passes, blocks = batch.passes, batch.blocks
    mask_batch(rng, batch)
    batch.passes = passes + 1
    for row, block in enumerate(blocks):
        if block is None:
            continue
        first, end = block
        open_places = next_open_places(rng, confidence[row, first:end], right[row, first:end])
        if not open_places.any():
            if end > batch.prompt_lengths[row] + batch.answer_lengths[row]:
                continue
            block = (end, min(2 * end - first, batch.tokens.shape[1]))
            open_places = torch.ones(block[1] - block[0], dtype=torch.bool)
        mask_block(batch, row, block, open_places)
    return True


def masked_tokens(batch):
    return torch.where(batch.masked, MASK, batch.tokens)
