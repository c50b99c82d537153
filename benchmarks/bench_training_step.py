"""What the compiled attention brings to a whole training step: time and peak memory as a table and as JSON.

    OMP_NUM_THREADS=1 python benchmarks/bench_training_step.py --threads 1 --out training_step.json
    python benchmarks/bench_training_step.py --size paper --part connector
    python benchmarks/bench_training_step.py --size paper --device cuda --dtype bf16

A step is forward, loss, backward and AdamW of one module, under wait-k and offline. Only the attention to speech is
exchanged: ours, its plain PyTorch twin, and SDPA with a dense mask that is made once per step. All take turns within a
round; a ratio is the median over rounds of (best peer's time / ours). Memory is the most that two steps take
beyond weights and inputs, on a CPU in a fresh process per contestant. With one thread the clock is this process's CPU
time, so that other work on the machine matters less. The LLM is frozen, gradients pass through it.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from espnet_bestow.connectors import CrossAttentionConnector, Speech
from espnet_bestow.connectors import attention as connector_attention
from espnet_bestow.llm.causal_lm import FrozenCausalLM
from espnet_bestow.model import BestowModel
from espnet_bestow.ops import built, reference, staircase_attention
from espnet_bestow.visibility import answer_index, offline, wait_k

K = 6
VOCABULARY = 1000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """B, U, F, L, D_llm, D_enc, what CrossAttentionConnector takes, and the LLM's layers, heads and inner width."""

    batch: int
    positions: int
    frames: int
    step: int
    text_dim: int
    speech_dim: int
    connector: dict[str, int]
    llm: tuple[int, int, int]


SIZES = {
    "tiny": Size(2, 12, 20, 2, 32, 16, {"dim": 32, "num_heads": 2}, (1, 2, 64)),
    "small": Size(4, 128, 750, 8, 256, 256, {"dim": 256, "num_heads": 4}, (4, 4, 768)),
    "paper": Size(4, 128, 750, 8, 2048, 512, {}, (22, 32, 5632)),  # the defaults' connector, TinyLlama's LLM
}


@dataclass(frozen=True)
class Problem:
    """One line of the table before it is measured."""

    size: str
    part: str  # connector, or connector + LLM
    policy: str
    dtype: str
    device: str


@dataclass(frozen=True)
class Row(Problem):
    """One line of the table: the median of a step in milliseconds and its memory in MiB, per contestant."""

    density: float
    milliseconds: dict[str, float]
    ratio: float
    mebibytes: dict[str, float]


def twin(visible: Tensor, frames: int) -> Attention:
    """The reference, which makes its mask at every call."""
    return reference.staircase_attention


def dense(visible: Tensor, frames: int) -> Attention:
    """SDPA with a mask made here, once per step. A row must see something: one that sees nothing is wiped after."""
    mask = (torch.arange(frames, device=visible.device) < visible.clamp(min=1).unsqueeze(-1)).unsqueeze(1)
    blind = (visible == 0)[:, None, :, None]
    return lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).masked_fill(blind, 0.0)


def ours(visible: Tensor, frames: int) -> Attention:
    """What the connector calls anyway."""
    return staircase_attention


CONTESTANTS = {"ours": ours, "twin": twin, "sdpa mask": dense}


class Step:
    """One training step of a problem, with the attention of any contestant."""

    def __init__(self, problem: Problem):
        torch.manual_seed(0)
        self.problem, self.size = problem, SIZES[problem.size]
        size, device = self.size, problem.device
        connector = CrossAttentionConnector(size.text_dim, size.speech_dim, **size.connector)
        self.module = (connector if problem.part == "connector" else whole_model(size, connector)).to(device)
        self.optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-4)
        self.frames = torch.randn(size.batch, size.frames, size.speech_dim, device=device)
        self.lengths = torch.full((size.batch,), size.frames, device=device)
        self.ids = torch.randint(VOCABULARY, (size.batch, size.positions), device=device)
        self.text = torch.randn(size.batch, size.positions, size.text_dim, device=device)
        self.mask = torch.ones_like(self.ids, dtype=torch.bool)
        index = answer_index(self.mask, torch.full_like(self.lengths, size.positions // 4))
        if problem.policy == "offline":
            self.visible = offline(index, self.mask, self.lengths)
        else:
            self.visible = wait_k(index, self.mask, self.lengths, torch.tensor([K], device=device), size.step)

    def loss(self) -> Tensor:
        """Scalar."""
        speech = Speech(self.frames, self.lengths)
        if isinstance(self.module, BestowModel):
            logits = self.module.teacher_forced(speech, self.ids, self.mask, self.visible)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())
        assert isinstance(self.module, CrossAttentionConnector)
        out = self.module(self.text, self.mask, self.visible, self.module.start(speech))
        return out.embeddings.square().mean()

    def with_attention(self, contestant: str) -> Tensor:
        """The loss as this contestant computes it."""
        device, dtype = self.problem.device, DTYPES[self.problem.dtype]
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device, dtype, enabled=dtype != torch.float32))
            attention = CONTESTANTS[contestant](self.visible, self.size.frames)
            stack.enter_context(patch.object(connector_attention, "staircase_attention", attention))
            return self.loss()

    def run(self, contestant: str) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad()
        loss = self.with_attention(contestant)
        loss.backward()
        self.optimizer.step()
        loss.item()  # waits for the device

    def compare(self, contestant: str) -> float:
        """The loss where everybody drops the same."""
        torch.manual_seed(0)
        return self.with_attention(contestant).item()

    def forget(self) -> None:
        """Before the first step there are neither gradients nor a state of the optimizer."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()

    def twice(self, contestant: str) -> None:
        """Two steps: the optimizer's state comes with the first and is there during the second."""
        self.run(contestant)
        self.run(contestant)


def whole_model(size: Size, connector: CrossAttentionConnector) -> BestowModel:
    """The connector before a frozen Llama; speech is given as encoder frames."""
    layers, heads, inner = size.llm
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.text_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 8),
        intermediate_size=inner,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
        # As in training: a large LLM that is only read stays in the precision in which it is published.
        llm = FrozenCausalLM(folder, "bfloat16" if size.text_dim >= 2048 else "float32")
    return BestowModel(nn.Identity(), connector, llm, nn.Identity()).train()


def measure(problem: Problem, rounds: int) -> Row:
    """Times all contestants in turns, then their memory."""
    step = Step(problem)
    losses = {name: step.compare(name) for name in CONTESTANTS}
    if max(losses.values()) - min(losses.values()) > (1e-4 if problem.dtype == "fp32" else 2e-2) * losses["twin"]:
        raise SystemExit(f"bench_training_step: contestants disagree: {losses}")
    clock = time.process_time if problem.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for turn in range(rounds + 1):
        for name in CONTESTANTS:
            start = clock()
            step.run(name)
            if turn:  # the first is for warming up
                times[name].append(1e3 * (clock() - start))
    ratio = min(
        statistics.median(peer / own for peer, own in zip(times[name], times["ours"], strict=True))
        for name in CONTESTANTS
        if name != "ours"
    )
    return Row(
        **asdict(problem),
        density=float(step.visible.sum()) / (step.visible.numel() * step.size.frames),
        milliseconds={name: statistics.median(spent) for name, spent in times.items()},
        ratio=ratio,
        mebibytes={name: memory(step, name) for name in CONTESTANTS},
    )


def memory(step: Step, contestant: str) -> float:
    """MiB that training takes at most beyond weights and inputs: activations, gradients, the optimizer's state."""
    if step.problem.device == "cuda":
        step.forget()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.twice(contestant)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # A process that has not allocated before, from a server that has imported what takes long but run nothing.
    context = get_context("forkserver")
    context.set_forkserver_preload(["espnet_bestow.model", "transformers.models.llama.modeling_llama"])
    with ProcessPoolExecutor(1, context) as fresh:
        return fresh.submit(resident_memory, step.problem, contestant, torch.get_num_threads()).result()


def resident_memory(problem: Problem, contestant: str, threads: int) -> float:
    """MiB, by the high-water mark that Linux keeps."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    step = Step(problem)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the mark falls to what is resident now
    before = resident("VmRSS")
    step.twice(contestant)
    return (resident("VmHWM") - before) / 2**20


def resident(what: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return 1024 * int(lines[what].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--part", choices=("connector", "connector + LLM"), help="default: both")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16 is autocast")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    native = built()
    if args.device not in native.DEVICES:
        raise SystemExit(f"bench_training_step: the kernels are not built for {args.device}")
    torch.set_num_threads(args.threads)
    disable_progress_bar()
    rows = []
    print(f"{args.size}, {args.dtype}: ms (MiB) ".ljust(30) + "".join(f"{name:>19}" for name in CONTESTANTS))
    for part in [args.part] if args.part else ["connector", "connector + LLM"]:
        for policy in ("wait-k", "offline"):
            row = measure(Problem(args.size, part, policy, args.dtype, args.device), args.rounds)
            cells = (f"{row.milliseconds[name]:9.1f} ({row.mebibytes[name]:6.0f})" for name in CONTESTANTS)
            print(f"{part:16} {policy:8} {row.density:.2f} " + " ".join(cells) + f"  {row.ratio:.2f}x", flush=True)
            rows.append(asdict(row))
    if args.out:
        device = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.processor()} {native.cpu_isa()}"
        machine = {"device": device, "threads": args.threads, "torch": torch.__version__}
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
