"""Searches over a model small enough to enumerate."""

import itertools

import pytest
import torch

from espnet_bestow.connectors import Speech
from espnet_bestow.decoding import Beam, Greedy, Sampling, Stepper
from espnet_bestow.visibility import offline
from tests.llm_fixtures import write_llm
from tests.test_model import batch, build, teacher_forced

END = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(write_llm(tmp_path_factory.mktemp("llm")))


def stepper(model, rows=(0, 1)):
    speech, prompts, _ = batch()
    rows = list(rows)
    chosen = Speech(speech.frames[rows], speech.lengths[rows])
    return Stepper(model, chosen, [prompts[r] for r in rows])


def score(model, row, answer):
    """Log-probability of an answer by the full teacher-forced pass."""
    speech, prompts, _ = batch()
    one = Speech(speech.frames[row : row + 1, : int(speech.lengths[row])], speech.lengths[row : row + 1])
    full = teacher_forced(model, one, [prompts[row]], [answer], offline)[0]
    return sum(float(full[len(prompts[row]) - 1 + n, token]) for n, token in enumerate(answer))


@torch.no_grad()
def test_greedy_takes_the_best_token_and_reports_its_score(model):
    for row, nbest in enumerate(Greedy()(stepper(model), END, 6)):
        answer = nbest[0].ids + ([END] if nbest[0].ended else [])
        assert nbest[0].score == pytest.approx(score(model, row, answer), abs=1e-3)


class Scripted:
    """A stepper whose rows say given tokens over and over."""

    def __init__(self, *texts):
        self.texts = [itertools.cycle(text) for text in texts]
        self.steps = 0
        self.write(None)

    def write(self, tokens):
        self.steps += 1
        self.logp = torch.full((len(self.texts), 10), -5.0)
        for row, text in zip(self.logp, self.texts, strict=True):
            row[next(text)] = 0.0


def test_an_answer_in_circles_is_cut_where_they_begin():
    script = Scripted([3, 4, 5, 6], [7, 8, 9, END], [6])
    (long,), (ended,), (short,) = Greedy()(script, END, 60)
    assert (long.ids, long.ended) == ([3, 4, 5, 6], False)
    assert (ended.ids, ended.ended) == ([7, 8, 9], True)
    assert (short.ids, short.ended) == ([6], False)
    assert script.steps == 12  # the third time of the longest circle


@torch.no_grad()
def test_a_beam_of_one_is_greedy(model):
    greedy = Greedy()(stepper(model), END, 6)
    beam = Beam(size=1, length_penalty=0.0)(stepper(model), END, 6)
    assert [n[0].ids for n in greedy] == [n[0].ids for n in beam]


@torch.no_grad()
def test_beam_scores_are_the_models(model):
    for row, nbest in enumerate(Beam(size=4)(stepper(model), END, 5)):
        assert len(nbest) == 4
        for hypothesis in nbest:
            answer = hypothesis.ids + ([END] if hypothesis.ended else [])
            assert hypothesis.score == pytest.approx(score(model, row, answer), abs=1e-3)


@torch.no_grad()
def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_of_all_answers(model):
    """Two tokens at most: every answer can be scored by hand."""
    size = model.llm.model.config.vocab_size
    found = Beam(size=size, length_penalty=0.0)(stepper(model, [0]), END, 2)[0][0]
    first = stepper(model, [0])
    start = first.logp[0].clone()
    answers = {(): float(start[END])}
    first.repeat(size)
    first.write(torch.arange(size))
    for token in range(size):
        if token != END:
            answers[(token,)] = float(start[token] + first.logp[token, END])
    best = max(answers, key=answers.__getitem__)
    assert tuple(found.ids) == best and found.score == pytest.approx(answers[best], abs=1e-3)


@torch.no_grad()
def test_a_batch_is_searched_as_its_members_alone(model):
    together = Beam(size=3)(stepper(model), END, 5)
    for row in (0, 1):
        alone = Beam(size=3)(stepper(model, [row]), END, 5)[0]
        assert [h.ids for h in together[row]] == [h.ids for h in alone]


class Markov:
    """A stepper whose next token depends on the last one only, by the matrix (V, V) of each row."""

    def __init__(self, *matrices):
        self.matrices = torch.stack(matrices).log_softmax(-1)
        self.row = torch.arange(len(matrices))
        self.write(torch.zeros(len(matrices), dtype=torch.long))

    def write(self, tokens):
        self.last = tokens
        self.logp = self.matrices[self.row, tokens]

    def repeat(self, times):
        self.row, self.last = (x.repeat_interleave(times) for x in (self.row, self.last))
        self.write(self.last)

    def select(self, rows):
        self.row, self.last = self.row[rows], self.last[rows]


def test_who_has_found_an_answer_does_not_go_on_for_others():
    """A beam that is worse at its present length may catch up later, by going in circles; alone it never gets there."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        matrices = [4.0 * torch.randn(5, 5, generator=generator) for _ in range(3)]
        together = Beam(size=2)(Markov(*matrices), END, 40)
        alone = [Beam(size=2)(Markov(matrix), END, 40)[0] for matrix in matrices]
        assert [[h.ids for h in nbest] for nbest in together] == [[h.ids for h in nbest] for nbest in alone]


class Branching:
    """A stepper of one utterance whose next token depends on all before it."""

    def __init__(self, rule):
        self.rule, self.rows = rule, [()]
        self._look()

    def _look(self):
        self.logp = torch.tensor([self.rule(row) for row in self.rows]).log()

    def repeat(self, times):
        self.rows = [row for row in self.rows for _ in range(times)]
        self._look()

    def select(self, rows):
        self.rows = [self.rows[row] for row in rows.tolist()]

    def write(self, tokens):
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens.tolist(), strict=True)]
        self._look()


def _short_or_long(row):
    """Chances of the end, 1, 2 and 3 behind a row."""
    tiny = 1e-9
    early = [[tiny, 0.6, 0.4, tiny], [0.05, 0.02, 0.03, 0.54], [0.3, 0.02, 0.03, 0.65], [0.1, 0.25, 0.25, 0.4]]
    if row[:1] == (2,):
        return [0.65, 0.3, 0.02, 0.03]
    if len(row) < len(early):
        return early[len(row)]
    return [tiny, tiny, tiny, 1.0] if len(row) < 15 else [1.0, tiny, tiny, tiny]


def test_beams_longer_than_what_has_ended_are_ranked_by_their_own_length():
    """The two answers that end first are short; open beams, though they have said more, are worth more by the token."""
    (best,) = Beam(size=2)(Branching(_short_or_long), 0, 40)
    assert [len(h.ids) for h in best] == [15, 15]
    assert Beam().rank(best[0].score, 16) > -0.16


@pytest.mark.parametrize("penalty", [-1.0, 0.0])
def test_nothing_is_lost_by_stopping_where_longer_answers_gain_nothing(penalty):
    class Patient(Beam):
        def _settled(self, finished, best, length):
            return False

    (found,), (expected,) = (kind(2, penalty)(Branching(_short_or_long), 0, 40) for kind in (Beam, Patient))
    assert [h.ids for h in found] == [h.ids for h in expected]


@torch.no_grad()
def test_length_penalty_prefers_longer_answers(model):
    def mean_length(penalty):
        return sum(len(n[0].ids) for n in Beam(size=8, length_penalty=penalty)(stepper(model), END, 8))

    assert mean_length(0.0) <= mean_length(1.0) <= mean_length(3.0)


@torch.no_grad()
def test_sampling_is_a_function_of_its_seed(model):
    draws = [Sampling(seed=s)(stepper(model), END, 6) for s in (0, 0, 1, 2, 3)]
    ids = [[n[0].ids for n in draw] for draw in draws]
    assert ids[0] == ids[1]
    assert any(ids[0] != other for other in ids[2:])


@torch.no_grad()
def test_sampling_limits():
    logp = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert Sampling(top_k=1).probabilities(logp)[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(Sampling(top_p=0.8).probabilities(logp), torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    cold = Sampling(temperature=0.1).probabilities(logp)
    assert cold[0, 0] > 0.99
    torch.testing.assert_close(Sampling().probabilities(logp), logp.exp())


@pytest.mark.parametrize(
    ("build_search", "message"),
    [
        (lambda: Beam(size=0), "beam: size=0"),
        (lambda: Sampling(temperature=0.0), "temperature=0.0"),
        (lambda: Sampling(top_p=1.5), "top_p=1.5"),
    ],
)
def test_wrong_options_are_named(build_search, message):
    with pytest.raises(ValueError, match=message):
        build_search()


@torch.no_grad()
def test_speech_is_projected_once_per_utterance(model):
    """Not per token and not per beam: counted at the projection itself."""
    calls = []
    hook = model.connector.speech_in.register_forward_hook(lambda _, args, __: calls.append(args[0].shape[0]))
    try:
        Beam(size=4)(stepper(model), END, 6)
    finally:
        hook.remove()
    assert calls == [2]


@torch.no_grad()
def test_the_best_of_a_beam_is_at_least_as_good_as_greedy(model):
    greedy = Greedy()(stepper(model), END, 6)
    wide = Beam(size=8, length_penalty=0.0)(stepper(model), END, 6)
    for g, w in zip(greedy, wide, strict=True):
        if g[0].ended and w[0].ended:
            assert w[0].score >= g[0].score - 1e-4
    assert list(itertools.chain(*wide))
