"""Muon: layers learn in all directions alike (Jordan et al. 2024).

A few directions make most of a layer's gradient, and AdamW spends its steps on them. Muon makes all singular values of
the mean gradient one, and small models need fewer steps. What is no matrix from hidden vectors to hidden vectors
(embeddings, output layers, convolutions, norms, biases) learns with AdamW.

PyTorch's own Muon takes nothing but matrices, one by one, and multiplies them in bfloat16, which most CPUs do slowly.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

_TOWARDS_ONE = ((7.7110, -22.1138, 16.2487), (3.2153, -2.4112, 0.5013), (2.2183, -1.5940, 0.4107))
"""a, b, c of odd polynomials ax + bx^3 + cx^5 that one after the other bring all x from 0.02 to 1 within 0.1 of 1. Each
is the best of its degree on what the one before leaves, as Amsel et al. (2025) choose theirs."""


def by_kind(model: nn.Module, outputs: Iterable[nn.Module | None] = ()) -> list[dict[str, Any]]:
    """The groups of parameters that :class:`Muon` takes: matrices, and the rest.

    Args:
        model: all its parameters are in one of them.
        outputs: its layers from which classes are read, whose rows have little to do with each other.
    """
    matrices = {each.weight: None for each in model.modules() if _multiplies(each)}  # in the order of the model
    for layer in (*outputs, *(each for each in model.modules() if isinstance(each, nn.Embedding))):
        if layer is not None:
            matrices.pop(layer.weight, None)  # type: ignore[call-overload]
    rest = [each for each in model.parameters() if each not in matrices]
    groups = [{"params": [*matrices], "matrices": True}, {"params": rest, "matrices": False}]
    return [group for group in groups if group["params"]]


def _multiplies(module: nn.Module) -> bool:
    pointwise = isinstance(module, nn.Conv1d) and module.kernel_size == (1,) and module.groups == 1
    plain = module._parameters.get("weight") is not None  # not what a parametrization makes of others
    return plain and (isinstance(module, nn.Linear) or pointwise)


class Muon(Optimizer):
    """Muon for matrices, AdamW for the rest.

    Args:
        params: groups; those with ``"matrices": True`` are of weights of linear and pointwise layers (:func:`by_kind`).
        lr: learning rate of AdamW.
        betas, eps: AdamW's.
        weight_decay: of all parameters, times ``lr``.
        momentum: how much of a matrix's mean gradient stays from step to step.
        rms: root mean square of what a matrix learns in a step, in units of ``lr``; 0.2 to 0.4 is AdamW's usual one.
        every: matrices learn at every so manyth step, and then so many times as much. Their mean gradients change
            slowly, and to make something of these takes most of Muon's time.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        rms: float = 0.3,
        every: int = 1,
    ):
        fine = {
            f"lr={lr}": lr >= 0.0,
            f"momentum={momentum}": 0.0 <= momentum < 1.0,
            f"rms={rms}": rms > 0.0,
            f"every={every}": every >= 1 and every == int(every),
        }
        for option, makes_sense in fine.items():
            if not makes_sense:
                raise ValueError(f"optim_conf: {option} makes no sense for muon")
        adamw_options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        options = {"momentum": momentum, "rms": rms, "every": every, "matrices": False, "steps": 0}
        super().__init__(params, {**adamw_options, **options})
        for shape in (each.shape for group in self.param_groups if group["matrices"] for each in group["params"]):
            if len(shape) < 2:
                raise ValueError(f"muon: a parameter of shape {tuple(shape)} is no matrix")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [each for each in group["params"] if each.grad is not None]
            group["steps"] += 1
            if learning:
                (self._learn_matrices if group["matrices"] else self._learn_rest)(group, learning)
        return loss

    def _learn_matrices(self, group: dict[str, Any], learning: list[nn.Parameter]) -> None:
        means, gradients = self._state("mean", learning), _gradients(learning)
        torch._foreach_lerp_(means, gradients, 1.0 - group["momentum"])
        if group["steps"] % group["every"]:
            return
        torch._foreach_lerp_(gradients, means, group["momentum"])  # a step ahead of the mean (Nesterov)
        rate = group["lr"] * group["every"]
        alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for weight, gradient in zip(learning, gradients, strict=True):
            alike.setdefault(gradient.flatten(1).shape, []).append((weight, gradient))
        for shape, pairs in alike.items():
            factors = polar_factors(torch.stack([gradient.flatten(1) for _, gradient in pairs]))
            size = group["rms"] * max(shape) ** 0.5  # theirs is the root of 1 / the longer side
            for (weight, _), factor in zip(pairs, factors, strict=True):
                weight.mul_(1.0 - rate * group["weight_decay"])
                weight.add_(factor.reshape(weight.shape), alpha=-rate * size)

    def _learn_rest(self, group: dict[str, Any], learning: list[nn.Parameter]) -> None:
        for each in learning:
            if not self.state[each]:
                self.state[each]["step"] = torch.zeros((), device=each.device)
        adamw(
            [*learning],
            _gradients(learning),
            self._state("exp_avg", learning),
            self._state("exp_avg_sq", learning),
            [],
            [self.state[each]["step"] for each in learning],
            fused=all(each.device.type in ("cpu", "cuda") for each in learning),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, name: str, learning: list[nn.Parameter]) -> list[Tensor]:
        """What is remembered of each parameter under a name, zeros at first."""
        for each in learning:
            if name not in self.state[each]:
                self.state[each][name] = torch.zeros_like(each)
        return [self.state[each][name] for each in learning]


def _gradients(learning: list[nn.Parameter]) -> list[Tensor]:
    return [each.grad for each in learning if each.grad is not None]


def polar_factors(matrices: Tensor) -> Tensor:
    """Matrices (N, R, C) with all their singular values near one; those below a fiftieth of the largest stay smaller.

    What is taken for the largest is the fourth root of the sum of the fourth powers: a little more, and at hand.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return polar_factors(matrices.mT).mT
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-30)
    if x.is_cuda:
        x = x.bfloat16()
    squares = x @ x.mT  # (N, R, R)
    largest = torch.linalg.matrix_norm(squares, keepdim=True).sqrt().clamp(min=1e-15)
    x, squares = x / largest, squares / largest.square()
    for number, (a, b, c) in enumerate(_TOWARDS_ONE):
        if number > 0:
            squares = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
