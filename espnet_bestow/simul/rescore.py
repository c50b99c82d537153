"""SimulEval's own latency scores of a log, to lay beside ours."""

from pathlib import Path

from simuleval import options
from simuleval.evaluator import SentenceLevelEvaluator

# SimulEval's names and ours.
METRICS = {
    "LAAL": "laal",
    "AL": "al",
    "AP": "ap",
    "DAL": "dal",
    "StartOffset": "start_offset",
    "EndOffset": "end_offset",
}


def simuleval_latency(folder: Path, unit: str = "word") -> dict[str, float]:
    """What ``simuleval --score-only --output folder`` says, under our names of the metrics."""
    words = ["--score-only", "--output", str(folder), "--source-type", "speech", "--target-type", "text"]
    words += ["--eval-latency-unit", unit, "--latency-metrics", *METRICS, "--quality-metrics", "BLEU"]
    parser = options.general_parser()
    options.add_evaluator_args(parser)
    options.add_scorer_args(parser, words)
    options.add_dataloader_args(parser, words)
    evaluator = SentenceLevelEvaluator.from_args(parser.parse_args(words))
    return {METRICS[name]: float(value) for name, value in evaluator.latency.items()}
