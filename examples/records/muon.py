# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum made orthogonal by a Newton-Schulz iteration, for weight matrices."""
import torch

# Coefficients of the quintic iteration published with Muon.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
DECAY = 0.01


def orthogonalise(stack):
    """Brings the singular values of each matrix of the stack near 1."""
    a, b, c = QUINTIC
    x = stack / (stack.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.float()


class Muon:
    """Matrices of one shape (or its transpose) are stepped together, the short side first."""

    def __init__(self, matrices):
        groups = {}
        for p in matrices:
            groups.setdefault(tuple(sorted(p.shape)), []).append(p)
        self.groups = list(groups.items())
        self.momenta = [torch.zeros(len(ps), *shape) for shape, ps in self.groups]

    @torch.no_grad()
    def step(self, rate, momentum):
        for (shape, matrices), kept in zip(self.groups, self.momenta):
            gradient = torch.stack([as_shape(p.grad, shape) for p in matrices])
            kept.lerp_(gradient, 1 - momentum)
            updates = orthogonalise(gradient.lerp(kept, momentum))
            for p, update in zip(matrices, updates):
                scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - rate * DECAY)
                p.add_(as_shape(update, tuple(p.shape)), alpha=-rate * scale)

    def state_dict(self):
        return {"momenta": self.momenta}

    def load_state_dict(self, state):
        for kept, stored in zip(self.momenta, state["momenta"]):
            kept.copy_(stored)


def as_shape(matrix, shape):
    return matrix if tuple(matrix.shape) == shape else matrix.T
