"""Random staircase problems, and the three ways to solve one: twin in float64, twin, op."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_bestow.ops import reference, staircase_attention, staircase_weights

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Case:
    """One problem with the gradient of its output."""

    q: Tensor  # (B, H, U, D)
    k: Tensor  # (B, H_kv, F, D)
    v: Tensor  # (B, H_kv, F, D)
    grad: Tensor  # (B, H, U, D)
    visible: Tensor  # (B, U) int32
    scale: float | None = None

    def __str__(self) -> str:
        shapes = f"q {tuple(self.q.shape)} {self.q.stride()}, k {tuple(self.k.shape)} {self.k.stride()}"
        return f"{shapes}, {self.q.dtype}, scale {self.scale}, visible {self.visible.tolist()}"

    def solve(self, attention: Callable[..., Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        """Output and the gradients of q, k, v, all in float64."""
        inputs = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (self.q, self.k, self.v)]
        out = attention(*inputs, self.visible, self.scale)
        gradients = torch.autograd.grad(out, inputs, self.grad.to(out.dtype))
        return [x.detach().double() for x in (out, *gradients)]


def random_case(seed: int) -> Case:
    """Everything may vary: sizes, groups, dtype, strides, and what is visible (any int32)."""
    random = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=random))

    batch, kv_heads, group = 1 + below(3), 1 + below(3), 1 + below(3)
    positions, frames = (1 + below(n) for n in ((6, 12), (40, 90), (90, 200))[below(3)])
    width = (8 * (1 + below(8)), 32, 64, 128, 1 + below(20), 256)[below(6)]
    dtype = DTYPES[below(3)]

    def tensor(heads: int, rows: int) -> Tensor:
        layout = below(4)
        x = torch.randn(batch, rows, heads, width, generator=random).to(dtype)
        if layout == 0:  # as a projection leaves it: heads side by side
            return x.transpose(1, 2)
        if layout == 1:  # the width is not the dense dimension
            return x.permute(0, 2, 3, 1).contiguous().transpose(2, 3)
        if layout == 2:  # every second row of something longer
            return torch.cat([x, x], 3).unflatten(3, (2, width)).select(3, 1).transpose(1, 2)
        return x.transpose(1, 2).contiguous()

    heads = kv_heads * group
    q, grad, k, v = (
        tensor(heads, positions),
        tensor(heads, positions),
        tensor(kv_heads, frames),
        tensor(kv_heads, frames),
    )
    visible = torch.randint(-2, frames + 3, (batch, positions), generator=random, dtype=torch.int32)
    if below(2):
        visible = visible.sort(1).values
    visible[:, : below(positions + 1) // 2] = (0, -(2**31), 0, 2**31 - 1)[below(4)]
    if below(4) == 0:
        visible = visible.t().contiguous().t()
    return Case(q, k, v, grad, visible, (None, 0.3, -0.2, 0.0)[below(4)])


def complaints(case: Case) -> list[str]:
    """What is wrong with the op's answer: nothing, one hopes."""
    exact, plain = case.solve(reference.staircase_attention, torch.float64), case.solve(reference.staircase_attention)
    found = []
    scale = case.q.shape[3] ** -0.5 if case.scale is None else case.scale
    keys = case.k.repeat_interleave(case.q.shape[1] // case.k.shape[1], 1)
    steepness = abs(scale) * float((case.q.double() @ keys.double().mT).abs().max())
    # A gradient may cancel to 0 (a row that sees one key); the terms that cancel are rounded float32 numbers.
    values = case.v.repeat_interleave(case.q.shape[1] // case.v.shape[1], 1)
    terms = abs(scale) * float((case.grad.double() @ values.double().mT).abs().max())
    floor = 4 * torch.finfo(torch.float32).eps * terms * float(max(case.q.abs().max(), case.k.abs().max()))
    blind = (case.visible <= 0)[:, None, :, None]
    answers = zip(("out", "dq", "dk", "dv"), exact, plain, case.solve(staircase_attention), strict=True)
    for name, right, usual, ours in answers:
        if not torch.isfinite(ours).all():
            found.append(f"{name} is not finite")
        # Twice plain PyTorch's error, but never tighter than a few roundings of the greatest number in sight; a
        # rounded score s moves its weight by s roundings.
        grain = torch.finfo(case.q.dtype).eps * float(right.abs().max()) * max(1.0, steepness / 2)
        allowed, error = 2 * float((usual - right).abs().max()) + 2 * grain + floor, float((ours - right).abs().max())
        if error > allowed:
            found.append(f"{name}: error {error:.3g}, allowed {allowed:.3g}")
        if name in ("out", "dq") and ours.masked_select(blind).any():
            found.append(f"{name} is not 0 in a row that sees nothing")
    return found


def few_rows(seed: int) -> Case:
    """A random problem, cut down to at most 8 rows of a key head."""
    case = random_case(seed)
    rows = max(1, 8 * case.k.shape[1] // case.q.shape[1])
    case.q, case.grad, case.visible = case.q[:, :, :rows], case.grad[:, :, :rows], case.visible[:, :rows]
    return case


def weights_complaints(case: Case) -> list[str]:
    """The same for the weights of a problem's rows."""
    exact = reference.staircase_weights(case.q.double(), case.k.double(), case.visible, case.scale)
    usual = reference.staircase_weights(case.q, case.k, case.visible, case.scale).double()
    ours = staircase_weights(case.q, case.k, case.visible, case.scale)
    if ours.dtype != case.q.dtype or ours.shape != exact.shape:
        return [f"weights are {ours.dtype} {tuple(ours.shape)}"]
    found = []
    unseen = torch.arange(case.k.shape[2]) >= case.visible[:, None, :, None]
    if ours.masked_select(unseen.expand_as(ours)).any():
        found.append("what is not seen has a weight")
    allowed = 2 * float((usual - exact).abs().max()) + 4 * torch.finfo(case.q.dtype).eps
    error = float((ours.double() - exact).abs().max())
    if not error <= allowed:  # NaN is wrong, too
        found.append(f"weights: error {error:.3g}, allowed {allowed:.3g}")
    return found
