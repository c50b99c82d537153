"""Sessions: what is said depends on the audio and the policy, not on how the audio came or who else listens."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soxr
import torch

from espnet_bestow.connectors import Speech
from espnet_bestow.decoding import Greedy, Stepper
from espnet_bestow.streaming.listener import RecomputedListener
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.session import SessionOptions
from espnet_bestow.visibility import WaitKPolicy, offline
from tests.llm_fixtures import write_llm
from tests.streaming_fixtures import (
    FREE,
    HOP,
    PROMPT,
    RATE,
    ByChunks,
    encode_with,
    listener_of,
    lone,
    loud_model,
    plain,
    run,
    talk,
    template_of,
)

POLICIES = {
    "wait_k": {"k": 2, "step": 2},
    "align_att": {"threshold": 6, "step": 3},
    "ed_att": {"alpha": 0.2, "newest": 4, "step": 3},
    "local_agreement": {"n": 2, "step": 16},
    "hold_n": {"n": 2, "step": 16},
    "offline": {},
}
CUTS = {"10 ms": 160, "80 ms": 1280, "320 ms": 5120, "1.7 s": 27200, "whole": 1 << 20}
TALK = talk(1.5)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module", params=["cross_attention", "recurrent", "per_layer"])
def any_pool(llm, request):
    model = loud_model(llm, request.param, seed=38 if request.param == "per_layer" else 3)  # it would say one word only
    return Pool(model, listener_of(model), template_of(llm))


@pytest.fixture(scope="module")
def pool(llm):
    model = loud_model(llm)
    return Pool(model, listener_of(model), template_of(llm))


def opened(pool, name, options=FREE, prompt=PROMPT, **changes):
    return pool.open(prompt, build_policy(name, **POLICIES[name] | changes), options)


@pytest.mark.parametrize("name", POLICIES)
def test_words_do_not_depend_on_how_the_audio_is_cut(pool, name):
    found = {cut: plain(run(opened(pool, name), TALK, size)) for cut, size in CUTS.items()}
    assert sum(len(word[3]) for word in found["whole"]) > 8
    for cut in CUTS:
        assert found[cut] == found["whole"], cut
    assert not pool.sessions and not pool.state.seats.lengths


@torch.no_grad()
@pytest.mark.parametrize("name", ["wait_k", "align_att", "ed_att"])
def test_streamed_tokens_are_those_of_the_offline_path(pool, name):
    """Every token again through the state of offline decoding, from encodings cut where the session had cut them."""
    model, listener, prompt = pool.model, pool.listener, pool.template.encode_prompt(PROMPT)
    words = run(opened(pool, name, SessionOptions(max_tokens=40, circles=())), TALK, 1280)
    words = [word for word in words if word.segment == 0]
    tokens = [token for word in words for token in word.tokens]
    visible = [frames for word in words for frames in word.visible]
    assert len(tokens) > 3 and len(set(visible)) > 1
    ear = listener.open()
    ear.push(torch.from_numpy(TALK))
    ear.end()
    state = model.start(listener_speech(listener, ear, 1))
    real = torch.ones(1, 1, dtype=torch.bool)
    for position, token in enumerate([*prompt, *tokens[:-1]]):
        n = position - len(prompt) + 1
        frames = visible[n] if n >= 0 else 0
        speech = listener_speech(listener, ear, max(frames, 1))
        state.connector.speech = model.connector.start(speech).speech
        seen = torch.tensor([[frames]], dtype=torch.int32)
        best = int(model.step(torch.tensor([[token]]), real, seen, state)[0, -1].argmax())
        if n >= 0:
            assert best == tokens[n], n


def listener_speech(listener, ear, frames):
    heard = listener.hear([(ear, frames)])[0]
    return Speech(heard[None], torch.tensor([len(heard)]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [("offline", {}, offline), ("wait_k", {"k": 1000}, WaitKPolicy(k=1000, step=2).rule(1))],
    ids=["offline", "wait-k with a large K"],
)
def test_all_audio_first_is_offline_greedy_decoding(any_pool, name, options, rule):
    words = run(opened(any_pool, name, **options), TALK, 4000)
    speech = any_pool.model.encode(torch.from_numpy(TALK)[None], torch.tensor([len(TALK)]))
    stepper = Stepper(any_pool.model, speech, [any_pool.template.encode_prompt(PROMPT)], rule)
    assert [token for word in words for token in word.tokens] == Greedy(())(stepper, any_pool.template.end, 16)[0][
        0
    ].ids


def test_sessions_of_a_pool_say_what_they_say_alone(any_pool):
    """Different prompts, policies, lengths and paces, one of them closed half-way."""
    jobs = [
        (PROMPT, "wait_k", TALK, 1600),
        ("translate the three red birds to german", "align_att", talk(1.2, 1), 5000),
        (PROMPT, "local_agreement", talk(0.9, 2), 3000),
        ("hm", "wait_k", talk(1.5, 3), 2500),
    ]
    alone = [plain(run(opened(lone(any_pool), name, prompt=p), audio, size)) for p, name, audio, size in jobs]
    sessions = [opened(any_pool, name, prompt=p) for p, name, _, _ in jobs]
    quitter = opened(any_pool, "wait_k", k=1, step=1)
    together: list[list] = [[] for _ in jobs]
    for turn in range(30):
        for session, (_, _, audio, size) in zip(sessions, jobs, strict=True):
            chunk = audio[turn * size : (turn + 1) * size]
            if len(chunk):
                session.feed(chunk)
            elif not session.ended:
                session.end()
        if turn < 4:
            quitter.feed(TALK[turn * 4000 : (turn + 1) * 4000])
        elif turn == 4:
            quitter.close()
        while any_pool.step():
            pass
        for words, session in zip(together, sessions, strict=True):
            words += session.take()
    assert [plain(words) for words in together] == alone
    assert not any_pool.state.seats.lengths
    for session in sessions:
        session.close()


def test_causality(pool):
    """Other audio after a point changes nothing that was said from what came before."""
    other = np.concatenate([TALK[:16000], talk(0.5, 5)])
    a, b = (plain(run(opened(pool, "wait_k"), audio, 1 << 20)) for audio in (TALK, other))
    before = [word for word in a if word[1] <= 1.0]
    assert before and b[: len(before)] == before
    assert a != b


@pytest.fixture(scope="module")
def chunked(pool):
    return Pool(pool.model, ByChunks(encode_with(pool.model), RATE, HOP, 3, shortest=HOP), pool.template)


@pytest.mark.parametrize("name", POLICIES)
def test_all_of_a_chunk_is_seen_at_once_and_however_the_audio_is_cut(chunked, name):
    found = [plain(run(opened(chunked, name), TALK, size)) for size in CUTS.values()]
    assert all(words == found[0] for words in found)
    visible = [(frames, word[6]) for word in found[0] for frames in word[4]]
    whole = {segment: frames for frames, segment in sorted(visible)}  # after the end of the audio
    assert len(visible) > 8
    assert all(frames % 4 == 0 or frames == whole[segment] for frames, segment in visible)


def test_what_comes_in_a_chunk_is_seen_without_waiting_longer(pool, chunked):
    exactly, more = (run(opened(each, "wait_k"), TALK, 400) for each in (pool, chunked))
    # Until the audio ends token n waits for (n + 2) * 2 frames, and sees what there is with them.
    counts = [[frames for word in words for frames in word.visible][:10] for words in (exactly, more)]
    assert counts[1] == [-(-frames // 4) * 4 for frames in counts[0]]


def test_a_draft_does_not_agree_with_itself(pool, chunked):
    """Drafts at 2 and 4 frames would be one and the same, for all four come at once."""
    visible = [f for word in run(opened(chunked, "local_agreement", n=2, step=2), TALK, 400) for f in word.visible]
    assert min(visible) >= 8


def test_start_lag_of_wait_k_is_exact(pool):
    """(K * L + 13) frames."""
    pool = Pool(pool.model, listener_of(pool.model, right_context=13), pool.template)
    session = opened(pool, "wait_k", SessionOptions(suppress_end=False, circles=()), k=5, step=2)
    needed = (5 * 2 + 13) * HOP
    session.push(TALK[: needed - 1])
    assert not session.segments[0].written
    session.push(TALK[needed - 1 : needed])
    assert [token.visible for token in session.segments[0].written] == [10]


def test_catch_up_writes_more_per_step(pool):
    def visible(catch_up):
        words = run(opened(pool, "wait_k", catch_up=catch_up), TALK, 4000)
        return [frames for word in words for frames in word.visible][:9]

    assert visible(1.0) == [4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert visible(2.0) == [4, 4, 6, 6, 8, 8, 10, 10, 12]


def test_times_and_text_of_words(pool):
    session = opened(pool, "wait_k")
    pushed, words, clock = 0, [], 0.0
    for begin in range(0, len(TALK), 3200):
        chunk = TALK[begin : begin + 3200]
        pushed += len(chunk)
        for word in session.push(chunk):
            assert word.seen <= pushed / RATE < word.emitted
            assert word.emitted >= clock
            clock = word.emitted
            words.append(word)
    words += session.finish()
    session.close()
    assert [w.seen for w in words] == sorted(w.seen for w in words)
    assert words[-1].seen == pushed / RATE
    for word in words:
        assert 0.0 <= word.span[0] < word.span[1] <= word.seen
        assert len(word.tokens) == len(word.visible) > 0
    ids = [token for word in words for token in word.tokens]
    assert "".join(word.before + word.text for word in words) == pool.template.decode(ids)


def test_an_end_token_before_the_end_of_the_audio_means_read(pool):
    """A model whose first token would be its end: the same position is asked again with one step more to see."""
    session = opened(pool, "wait_k", k=1, step=3)
    session.push(TALK[:9600])
    early = lone(pool)
    early.template = template_of(pool.model.llm.path)
    early.template.end = session.segments[0].written[0].id
    patient = opened(early, "wait_k", k=1, step=3)
    patient.push(TALK[:9600])
    segment = patient.segments[0]
    assert segment.reads > 0 and early.template.end not in segment.ids
    wait = [(token.visible - 3) // 3 - n for n, token in enumerate(segment.written)]
    assert wait[0] >= 1 and wait == sorted(wait) and wait[-1] <= segment.reads
    gone = opened(early, "wait_k", SessionOptions(suppress_end=False), k=1, step=3)
    assert gone.push(TALK) == []
    (segment,) = gone.segments
    heard = segment.ear.received
    gone.push(TALK)  # nobody listens any more, so nothing of it is kept
    assert segment.done and segment.ear.received == heard and gone.seconds == 2 * len(TALK) / RATE
    assert gone.finish() == [] and not gone.segments
    session.close()


def test_going_in_circles_means_read_and_after_the_audio_the_end(pool):
    options = SessionOptions(max_tokens=30, circles=(1,))
    tokens = [t for word in run(opened(pool, "hold_n", options, n=0), TALK, 4000) for t in word.tokens]
    assert tokens and not any(a == b == c for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False))


def test_bad_input(pool):
    session = opened(pool, "wait_k")
    assert session.push(np.zeros(0, np.float32)) == []
    session.push(TALK[:800], RATE)
    with pytest.raises(ValueError, match=r"after 0\.050 s are NaN or infinite: 1 of 3"):
        session.push(np.array([0.0, np.nan, 0.0]))
    for kind in (bool, np.uint8):
        with pytest.raises(ValueError, match=f"type {np.dtype(kind)}; float or signed integer PCM is needed"):
            session.push(np.zeros(3, kind))
    with pytest.raises(ValueError, match=r"shape \(2, 800\)"):
        session.push(np.zeros((2, 800)))
    with pytest.raises(ValueError, match=r"sample_rate=8000 after 0\.050 s at 16000"):
        session.push(np.zeros(3), 8000)
    session.finish()
    for call in (lambda: session.push(np.zeros(3)), session.finish):
        with pytest.raises(ValueError, match="after finish"):
            call()
    session.close()
    session.close()


@pytest.mark.parametrize("name", ["wait_k", "local_agreement", "offline"])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5])
def test_silence_and_nothing_at_all_are_defined(pool, seconds, name):
    session = opened(pool, name)
    words = [*session.push(np.zeros(int(seconds * RATE))), *session.finish()]
    assert bool(words) == (seconds * RATE >= HOP)
    assert not session.segments
    session.close()


def test_a_hundred_dropped_sessions_leave_no_more_than_ten_at_a_time_need(pool):
    for begin in range(0, 100, 10):
        sessions = [opened(pool, "wait_k", k=1, step=1) for _ in range(10)]
        for session in sessions:
            session.feed(TALK[begin * 100 : begin * 100 + 4000])
        pool.step()
        assert len(pool.state.seats.lengths) == 10
        for session in sessions:
            session.close()
    assert not pool.sessions and not pool.state.seats.lengths
    assert len(pool.state.connector.frames.buffer.data) <= 16
    assert len(pool.state.llm.cache.layers[0]._buffers[0].data) <= 16


@pytest.mark.parametrize(
    ("rate", "channels", "dtype"), [(22050, 1, np.int16), (48000, 2, np.float64), (8000, 1, np.int32)]
)
def test_any_rate_width_and_channels_in_pushes_of_any_size(pool, rate, channels, dtype):
    audio = soxr.resample(TALK, RATE, rate) * 0.5
    audio = np.stack([audio] * channels, 1) if channels > 1 else audio
    audio = (audio * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else audio.astype(dtype)
    found = [plain(run(opened(pool, "wait_k"), audio, size, rate)) for size in (rate // 100, rate, 7 * rate)]
    assert len(found[0]) > 1 and found[0] == found[1] == found[2]
    assert found[0][-1][1] == pytest.approx(len(audio) / rate)


def test_a_full_segment_goes_on_in_a_new_one(pool):
    """The limit of tokens, or of the LLM's context, is not the end of a talk; only its end is."""
    options = SessionOptions(max_tokens=4, circles=())
    found = [run(opened(pool, "wait_k", options, k=1, step=1), TALK, size) for size in (1600, 1 << 20)]
    assert plain(found[0]) == plain(found[1])
    words = found[0]
    sizes = [sum(len(w.tokens) for w in words if w.segment == n) for n in range(words[-1].segment + 1)]
    assert len(sizes) > 2 and max(sizes) == 4
    assert [w.seen for w in words] == sorted(w.seen for w in words)
    firsts = [w for before, w in pairwise(words) if w.segment != before.segment]
    assert all(w.before == " " for w in firsts)


def test_long_audio_is_cut_by_its_length(pool):
    options = SessionOptions(max_tokens=50, circles=(), max_seconds=0.5)
    words = run(opened(pool, "ed_att", options), TALK, 1600)
    assert words[-1].segment > 1
    assert max(frames for w in words for frames in w.visible if w.segment < words[-1].segment) <= 0.5 * RATE / HOP


def test_a_policy_that_waits_for_the_end_does_not_wait_longer_than_a_segment(pool):
    """It hears the pieces that a segment may be long, each as if it were alone, however they were pushed."""
    options = SessionOptions(max_tokens=50, circles=(), max_seconds=0.4)
    found = [run(opened(pool, "offline", options), TALK, size) for size in (160, 7000, 1 << 20)]
    assert plain(found[0]) == plain(found[1]) == plain(found[2])
    size = round(0.4 * RATE)
    for number, begin in enumerate(range(0, len(TALK), size)):
        alone = run(opened(pool, "offline", SessionOptions(50, circles=())), TALK[begin : begin + size], 1600)
        assert [w.tokens for w in found[0] if w.segment == number] == [w.tokens for w in alone]
    both = replace(options, segment_silence=0.3)
    assert [w.tokens for w in run(opened(pool, "offline", both), TALK[: 2 * size], 1600)] == [
        w.tokens for w in found[0] if w.segment < 2
    ]


@pytest.mark.parametrize(
    ("policy", "seconds", "message"),
    [
        ("wait_k", 0.01, r"max_seconds=0.01 holds less than the \d.\d\d s that come before the first token"),
        ("wait_k", 0.0, "max_seconds=0.0 must be more than 0"),
        ("offline", -1.0, "max_seconds=-1.0 must be more than 0"),
    ],
)
def test_segments_that_could_hold_nothing_are_refused(pool, policy, seconds, message):
    before = len(pool.sessions)
    with pytest.raises(ValueError, match=message):
        opened(pool, policy, SessionOptions(max_seconds=seconds))
    assert len(pool.sessions) == before


def test_an_encoder_that_needs_more_audio_than_the_first_frame_has(pool):
    """Without right context, one frame is less than it can take: it waits, it does not ask for ever."""
    listener = RecomputedListener(encode_with(pool.model), RATE, HOP, 0, shortest=4 * HOP)
    assert (listener.needed(0), listener.needed(1), listener.needed(5)) == (0, 4 * HOP, 5 * HOP)
    hurried = Pool(pool.model, listener, pool.template)
    words = run(hurried.open(PROMPT, build_policy("wait_k", k=1, step=1), FREE), TALK, 160)
    assert words[0].visible[0] == 1


def test_segments_by_silence(pool):
    """Each part says what it says alone, whatever the silence around it."""
    silence = np.zeros(16000, np.float32)
    options = SessionOptions(max_tokens=60, circles=(), segment_silence=0.5)
    audio = np.concatenate([silence, TALK[:9600], silence, TALK[:9600], silence])
    found = [run(opened(pool, "wait_k", options), audio, size) for size in (160, 7000, 1 << 20)]
    assert plain(found[0]) == plain(found[1]) == plain(found[2])
    parts = [[w.tokens for w in found[0] if w.segment == n] for n in (0, 1)]
    assert parts[0] and parts[0] == parts[1]
    assert all(w.span[0] >= 1.0 - 0.2 for w in found[0])
    assert run(opened(pool, "wait_k", options), np.zeros(32000, np.float32), 1600) == []


def test_sessions_with_one_instruction_read_it_once(any_pool):
    """Whether they begin together or later; what they say is what they say alone."""
    jobs = [("wait_k", talk(1.0, 4)), ("align_att", talk(1.0, 5)), ("wait_k", talk(1.2, 6)), ("ed_att", talk(0.8, 7))]
    alone = [plain(run(opened(lone(any_pool), name), audio, len(audio))) for name, audio in jobs]
    rows = []
    hook = any_pool.model.llm.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    sessions = []
    for name, audio in jobs:
        sessions.append(opened(any_pool, name))
        sessions[-1].feed(audio[:1])
        if len(sessions) >= 3:  # three begin together, one later
            any_pool.step()
    hook.remove()
    lengths = any_pool.state.seats.lengths
    assert rows == [1] and len(lengths) == 4 and len(set(lengths.values())) == 1
    assert [plain(run(s, audio[1:], len(audio))) for s, (_, audio) in zip(sessions, jobs, strict=True)] == alone


def test_the_decision_to_read_needs_no_llm(pool):
    """AlignAtt asks the connector; the LLM runs for the prompt and for tokens that are accepted, here none."""
    thoughts = []
    hook = pool.model.llm.register_forward_hook(lambda *_: thoughts.append(1))
    try:
        session = opened(pool, "align_att", threshold=1000)
        session.push(TALK)
        segment = session.segments[0]
    finally:
        hook.remove()
        session.close()
    assert segment.reads > 10 and not segment.written and len(thoughts) == 1


def test_one_encoder_call_serves_the_tokens_of_a_push(pool):
    """wait-k asks for L frames more whatever becomes of a token, AlignAtt only after a READ."""

    class Counted(type(pool.listener)):
        def hear(self, requests):
            calls.append([frames for _, frames in requests])
            return super().hear(requests)

    calls: list[list[int]] = []
    listener = Counted(encode_with(pool.model), RATE, HOP, right_context=3, shortest=HOP)
    with opened(Pool(pool.model, listener, pool.template), "wait_k", k=2, step=2) as session:
        session.push(TALK[: (8 + 3) * HOP])
        session.push(TALK[(8 + 3) * HOP : (10 + 3) * HOP])
    assert calls == [[4, 6, 8], [10]]
    calls.clear()
    with opened(Pool(pool.model, listener, pool.template), "align_att", step=2, threshold=0) as session:
        session.push(TALK[: (8 + 3) * HOP])
    assert calls and all(len(frames) == 1 for frames in calls)
