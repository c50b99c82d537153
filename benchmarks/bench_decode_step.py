"""The connector's step for one token on this CPU beside its peers: tables, and the same as JSON.

    OMP_NUM_THREADS=1 python benchmarks/bench_decode_step.py --threads 1 --out decode_step.json
    make bench-nemo-step    # with NVIDIA NeMo's decoder beside it (in an environment of its own)

Two blocks of width 2048 with a feed-forward of 8192, 16 heads, an encoder of width 512, 750 frames (60 s), 32 earlier
text positions. Every round times all contestants one after the other; a ratio is the median over rounds of (a peer's
time / ours). With one thread the clock is this process's CPU time, so that other work on the machine matters less. The
error is the largest difference from the first contestant, over its largest output.

* step: the same module in eager PyTorch, float32 and bfloat16, its attention the plain PyTorch twin; ours with kernels.
* NeMo: its decoder with its hidden-state cache and the same weights, float32 both; ours also with smaller weights.
* new frames: an encoder that recomputes its frames, once per token; what both cross-attentions cost after it.
  Peers project keys and values of all frames again, as the modules stand or by one product with folded weights.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow import ops
from espnet_bestow.connectors import CrossAttentionConnector, Speech
from espnet_bestow.connectors.seated import AbsorbedSpeech, SeatedFrames
from espnet_bestow.quantize import quantize
from espnet_bestow.seats import Seats

FRAMES, HISTORY = 750, 32
Run = Callable[[], Tensor]


@contextmanager
def without_kernels() -> Iterator[None]:
    native, ops.native = ops.native, None
    try:
        yield
    finally:
        ops.native = native


def step_of(connector: CrossAttentionConnector, speech: Speech, history: Tensor, text: Tensor) -> Run:
    """One token (B, 1, D_llm) behind a history (B, 32, D_llm), again and again."""
    state = connector.start(speech)
    batch = len(text)

    def advance(new: Tensor) -> Tensor:
        mask = torch.ones(new.shape[:2], dtype=torch.bool)
        visible = torch.full((batch, new.shape[1]), FRAMES, dtype=torch.int32)
        return connector(new, mask, visible, state).embeddings

    advance(history)
    caches, mask = list(state.text), state.mask

    def run() -> Tensor:
        state.text, state.mask = list(caches), mask
        return advance(text)

    return run


def steps(connector: CrossAttentionConnector, batch: int) -> dict[str, Run]:
    speech = Speech(torch.randn(batch, FRAMES, 512), torch.full((batch,), FRAMES))
    history, text = torch.randn(batch, HISTORY, 2048), torch.randn(batch, 1, 2048)
    found = {"eager fp32": step_of(connector, speech, history, text)}
    low = copy.deepcopy(connector).bfloat16()
    frames = Speech(speech.frames.bfloat16(), speech.lengths)
    found["eager bf16"] = step_of(low, frames, history.bfloat16(), text.bfloat16())
    for name, run in list(found.items()):
        found[name] = with_twin(run)
    for precision in ("bf16", "int8"):
        found[f"ours {precision}"] = step_of(smaller(connector, precision), speech, history, text)
    return found


def with_twin(run: Run) -> Run:
    def plain() -> Tensor:
        with without_kernels():
            return run()

    return plain


def smaller(connector: CrossAttentionConnector, precision: str) -> CrossAttentionConnector:
    small = copy.deepcopy(connector)
    quantize(small, precision)  # type: ignore[arg-type]
    return small


def beside_nemo(connector: CrossAttentionConnector, batch: int) -> dict[str, Run]:
    from benchmarks.nemo.connector import NemoConnector

    speech = Speech(torch.randn(batch, FRAMES, 512), torch.full((batch,), FRAMES))
    history, text = torch.randn(batch, HISTORY, 2048), torch.randn(batch, 1, 2048)
    theirs = NemoConnector(connector)
    frames = theirs.speech_in(speech.frames)  # once: not part of a step
    theirs.step(history, frames)
    mems = theirs.mems

    def nemo() -> Tensor:
        theirs.mems = mems
        return theirs.step(text, frames)

    found: dict[str, Run] = {"nemo fp32": nemo, "ours fp32": step_of(connector, speech, history, text)}
    for precision in ("bf16", "int8"):
        found[f"ours {precision}"] = step_of(smaller(connector, precision), speech, history, text)
    return found


def new_frames(connector: CrossAttentionConnector, batch: int) -> dict[str, Run]:
    """Both blocks' reading of speech by one query each, the frames being new."""
    heard = Speech(torch.randn(batch, FRAMES, 512), torch.full((batch,), FRAMES))
    q = torch.randn(batch, 16, 1, 128)
    visible = torch.full((batch, 1), FRAMES, dtype=torch.int32)
    attentions = [block.cross_attention for block in connector.blocks]
    seated, seats = SeatedFrames(512), Seats()
    places = [seats.take() for _ in range(batch)]
    absorbed = [AbsorbedSpeech(attention, [connector.speech_in], seated) for attention in attentions]
    at = seats.place(places, torch.ones(batch, 1, dtype=torch.bool))
    # Keys and values straight from the encoder's frames: (2 D, D_enc) per block. The bias of keys changes nothing.
    folded = [torch.cat([block.key.mT.flatten(0, 1), block.value.flatten(0, 1)]) for block in absorbed]

    def ours() -> Tensor:
        for seat in places:
            seated.put(seat, heard.frames[seat])
        seated.sit(at)
        return torch.cat([block.attend(q, visible) for block in absorbed])

    def modules() -> Tensor:
        frames = connector.speech_in(heard.frames)
        return torch.cat([attention.keys_values(frames).attend(q, visible) for attention in attentions])

    def one_product() -> Tensor:
        out = []
        for weight, block in zip(folded, absorbed, strict=True):
            keys, values = F.linear(heard.frames, weight).unflatten(-1, (2, 16, 128)).transpose(1, 3).unbind(2)
            out.append(F.scaled_dot_product_attention(q, keys, values) + block.value_bias[:, None])
        return torch.cat(out)

    return {"re-projection": modules, "re-projection, folded": one_product, "ours absorbed": ours}


def race(what: str, batch: int, runs: dict[str, Run], rounds: int) -> list[dict]:
    """Milliseconds and ratios of all contestants; the first one's output is the truth."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    truth = next(iter(runs.values()))().double()
    errors = {name: float((run().double() - truth).abs().max() / truth.abs().max()) for name, run in runs.items()}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            spent[name].append(1e3 * (clock() - start))
    rows = []
    for name in runs:
        ratios = {
            peer: statistics.median(p / own for p, own in zip(spent[peer], spent[name], strict=True))
            for peer in runs
            if name.startswith("ours") and not peer.startswith("ours")
        }
        row = {"what": what, "batch": batch, "contestant": name, "ms": statistics.median(spent[name])}
        rows.append(row | {"error": errors[name], "times_faster_than": ratios})
        faster = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in ratios.items())
        print(f"{what:10} B {batch} {name:22} {row['ms']:8.2f} ms  error {errors[name]:.1e}  {faster}", flush=True)
    return rows


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--only", nargs="+", default=["step", "NeMo", "new frames"])
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    native = ops.built()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    connector = CrossAttentionConnector(2048, 512, dim=2048, num_heads=16).eval()
    for parameter in connector.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0 if float(parameter.mean()) else 0.0, 0.1)
    rows = []
    for what, make in (("step", steps), ("NeMo", beside_nemo), ("new frames", new_frames)):
        if what not in args.only:
            continue
        for batch in args.batches:
            try:
                rows += race(what, batch, make(connector, batch), args.rounds)
            except ImportError as error:
                print(f"{what}: {error}; see tools/make_nemo_venv.sh")
                break
    if args.out:
        machine = {"threads": args.threads, "isa": native.cpu_isa(), "torch": torch.__version__}
        machine["cpu"] = platform.processor()
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
