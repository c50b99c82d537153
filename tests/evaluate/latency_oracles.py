"""What other people's tools say about the logs of `random_logs`; as a command, writes `golden_latency.json`.

    python -m tests.evaluate.latency_oracles

needs `simuleval==1.1.4`, `OmniSTEval==0.1.10` and `simulstream==1.0.0`, e.g. installed without dependencies
(`pip install --no-deps --target DIR ...`, and `TextGrid`) with DIR in PYTHONPATH. Default tests compare with the file.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from espnet_bestow.evaluate.chunk_log import Recording, write_chunk_log
from espnet_bestow.evaluate.instances import Instance, Unit, write_instances
from espnet_bestow.evaluate.longform import Segment
from tests.evaluate.random_logs import LOGS, chunk_log, long_log, short_logs

GOLDEN = Path(__file__).with_name("golden_latency.json")
SHORT = ("al", "laal", "ap", "dal", "start_offset", "end_offset", "yaal")
LONG = ("long_yaal", "long_laal", "long_al", "long_ap", "long_dal")


def simuleval_scores(instance: Instance, computation_aware: bool) -> list[float]:
    """The first six of `SHORT`, by SimulEval's scorers on a line of our log."""
    from simuleval.evaluator.instance import LogInstance
    from simuleval.evaluator.scorers.latency_scorer import LATENCY_SCORERS_DICT

    names = ("AL", "LAAL", "AP", "DAL", "StartOffset", "EndOffset")
    line = LogInstance(instance.to_json())
    return [LATENCY_SCORERS_DICT[name](computation_aware=computation_aware).compute(line) for name in names]


def _omnisteval_instances(instances: Sequence[Instance]) -> list:
    from omnisteval.io import load_shortform_instances

    with TemporaryDirectory() as folder:
        path = Path(folder) / "instances.log"
        write_instances(path, instances)
        return load_shortform_instances(str(path), None, "delays", "elapsed")


def omnisteval_yaal(instances: Sequence[Instance], computation_aware: bool) -> list[float | None]:
    """YAAL of each instance of a log."""
    from omnisteval.scoring import YAALScorer

    return [YAALScorer(computation_aware).compute(i) for i in _omnisteval_instances(instances)]


def omnisteval_words_in_time(instances: Sequence[Instance]) -> tuple[float, float]:
    """SWF and EFSW of a log."""
    from omnisteval.scoring import ShortformDegeneracyScorer

    scores = ShortformDegeneracyScorer()(_omnisteval_instances(instances))
    return scores["swf"], scores["efsw"]


class _OneProcess:
    """In place of a pool of processes, which small alignments do not pay for."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def map(self, function, items):
        return [function(item) for item in items]


@contextmanager
def _files(instances: Sequence[Instance], segments: dict[str, list[Segment]]) -> Iterator[tuple[str, str, str]]:
    with TemporaryDirectory() as folder:
        log, cuts, texts = (Path(folder) / name for name in ("instances.log", "segments.json", "references"))
        write_instances(log, instances)
        parts = [(name, part) for name, members in segments.items() for part in members]
        cuts.write_text(
            json.dumps(
                [{"wav": f"{n}.wav", "offset": p.offset / 1000, "duration": p.duration / 1000} for n, p in parts]
            )
        )
        texts.write_text("".join(f"{part.reference}\n" for _, part in parts))
        yield str(log), str(cuts), str(texts)


def omnisteval_long(
    instances: Sequence[Instance], segments: dict[str, list[Segment]], unit: Unit
) -> dict[str, list[float]]:
    """`LONG` on delays and on the clock, through OmniSTEval's own alignment."""
    from omnisteval.io import load_resegmentation_inputs
    from omnisteval.resegment import resegment
    from omnisteval.scoring import ALScorer, APScorer, DALScorer, LAALScorer, YAALScorer

    char = unit == "char"
    with _files(instances, segments) as (log, cuts, texts), patch("omnisteval.alignment.Pool", _OneProcess):
        inputs = load_resegmentation_inputs(cuts, None, texts, log, char_level=char, emission_ca_key="clock")
        parts, _ = resegment(*inputs, char_level=char)
    return {
        name: [
            YAALScorer(aware, is_longform=True)(parts),
            *(scorer(aware)(parts) for scorer in (LAALScorer, ALScorer, APScorer, DALScorer)),
        ]
        for name, aware in (("delays", False), ("clock", True))
    }


def simulstream_units(recording: Recording, join: str) -> tuple[str, list[float]]:
    """Final text and delays (ms) of its units, by simulstream's reader of its own log."""
    from simulstream.metrics.readers import LogReader

    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        write_chunk_log(path, [recording])
        config = Namespace(detokenizer_type="simuleval", latency_unit=join)
        output = LogReader(config, str(path)).final_outputs_and_latencies()[Path(recording.name).stem]
    return output.final_text, [delay * 1000 for delay in output.ideal_delays]


def golden() -> dict:
    """All numbers, rounded to four decimals."""
    logs = short_logs()
    short = {
        name: [[*simuleval_scores(i, aware), lag] for i, lag in zip(logs, omnisteval_yaal(logs, aware), strict=True)]
        for name, aware in (("delays", False), ("elapsed", True))
    }
    long = [omnisteval_long(*long_log(index)) for index in range(LOGS)]
    numbers = {
        "short": short,
        "words_in_time": omnisteval_words_in_time(logs),
        "long": {name: [row[name] for row in long] for name in ("delays", "clock")},
        "chunks": [simulstream_units(*chunk_log(index)) for index in range(0, LOGS, 10)],
    }
    return json.loads(json.dumps(numbers), parse_float=lambda text: round(float(text), 4))


def as_clock(instance: Instance) -> Instance:
    """The same with SimulEval's `elapsed` taken for a clock, so that computation-aware scores can be compared."""
    return replace(instance, clock=instance.elapsed, elapsed=())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), separators=(",", ":")).replace("],[", "],\n[") + "\n", encoding="utf-8")
