import pytest
import torch

from espnet_bestow.visibility import (
    BehindSilence,
    Chunks,
    InChunks,
    OfflinePolicy,
    WaitKPolicy,
    answer_index,
    offline,
    wait_k,
)


def layout(prompt: list[int], total: list[int]):
    lengths = torch.tensor(total)
    mask = torch.arange(max(total)) < lengths[:, None]
    return mask, torch.tensor(prompt)


def test_last_prompt_token_predicts_the_first_answer_token():
    mask, prompt = layout([3, 1], [5, 3])
    index = answer_index(mask, prompt)
    assert index[0].tolist() == [-2, -1, 0, 1, 2]
    assert index[1, :3].tolist() == [0, 1, 2]


def test_answer_index_does_not_depend_on_the_side_of_the_padding():
    prompt = torch.tensor([3])
    left = answer_index(torch.tensor([[False, False, True, True, True]]), prompt)[0, 2:]
    right = answer_index(torch.tensor([[True, True, True, False, False]]), prompt)[0, :3]
    assert left.tolist() == right.tolist() == [-2, -1, 0]


def test_incremental_index_continues_the_full_one():
    mask, prompt = layout([3, 2], [6, 6])
    full = answer_index(mask, prompt)
    for u in range(6):
        assert answer_index(mask[:, u : u + 1], prompt, seen=u)[:, 0].tolist() == full[:, u].tolist()


def test_offline_sees_everything_but_padding_sees_nothing():
    mask, prompt = layout([2, 2], [4, 3])
    visible = offline(answer_index(mask, prompt), mask, torch.tensor([9, 5]))
    assert visible.tolist() == [[9, 9, 9, 9], [5, 5, 5, 0]]
    assert visible.dtype == torch.int32


def test_wait_k_by_hand():
    mask, prompt = layout([3], [7])
    visible = wait_k(answer_index(mask, prompt), mask, torch.tensor([13]), k=torch.tensor([2]), step=3)
    # prompt rows 0; the last prompt token sees K * L = 6; then L more each; clamped to the 13 frames there are
    assert visible[0].tolist() == [0, 0, 6, 9, 12, 13, 13]


def test_wait_k_with_large_k_is_offline_on_answer_positions():
    mask, prompt = layout([3, 2], [7, 6])
    index, lengths = answer_index(mask, prompt), torch.tensor([13, 8])
    large = wait_k(index, mask, lengths, k=torch.tensor([1000, 1000]), step=1)
    answers = mask & (index >= 0)
    assert torch.equal(large[answers], offline(index, mask, lengths)[answers])
    assert (large[~answers] == 0).all()


def test_k_is_drawn_per_utterance_and_both_ends_are_included():
    torch.manual_seed(0)
    rule = WaitKPolicy(k=[3, 5], step=1).rule(400)
    visible = rule(torch.zeros(400, 1), torch.ones(400, 1, dtype=torch.bool), torch.full((400,), 99))
    assert sorted(set(visible[:, 0].tolist())) == [3, 4, 5]


def test_offline_policy_has_nothing_to_draw():
    assert OfflinePolicy().rule(3) is offline


@pytest.mark.parametrize("options", [{"k": 0}, {"k": [5, 3]}, {"k": 2, "step": 0}])
def test_wrong_numbers_are_named(options):
    with pytest.raises(ValueError, match=r"wait_k: (k|step)="):
        WaitKPolicy(**options)


@pytest.mark.parametrize("policy", [WaitKPolicy([1, 5], step=3), WaitKPolicy(4, step=2), OfflinePolicy()])
def test_reach_bounds_what_any_answer_sees_and_wait_k_meets_it(policy):
    mask, prompt = layout([3, 1], [8, 6])  # answers of 6 tokens, the last of which is not fed
    furthest = 0
    for _ in range(60):
        visible = policy.rule(2)(answer_index(mask, prompt), mask, torch.tensor([99, 90]))
        furthest = max(furthest, int(visible.max()))
    reach = policy.reach(6)
    assert furthest == (99 if reach is None else reach)


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(7), Chunks(3, lead=3)])
def test_who_sees_the_first_frame_of_a_chunk_sees_the_last(chunks):
    frames = torch.arange(24, dtype=torch.int32)[None]
    shown = chunks.show(frames, torch.tensor([20]))
    assert shown.tolist()[0] == [min(chunks.whole(n), 20) for n in range(24)]
    assert shown.dtype == torch.int32


def test_a_policy_in_chunks_by_hand():
    policy = InChunks(WaitKPolicy(k=2, step=2), Chunks(7))
    mask, prompt = layout([2], [7])
    visible = policy.rule(1)(answer_index(mask, prompt), mask, torch.tensor([13]))
    # Waited for: 4, 6, 8, 10, 12 and 14 frames.
    assert visible.tolist() == [[0, 7, 7, 13, 13, 13, 13]]
    assert policy.reach(6) == 14
    assert InChunks(OfflinePolicy(), Chunks(7)).reach(6) is None


def test_behind_silence_a_policy_begins_where_speech_does():
    mask, prompt = layout([2, 1], [6, 5])
    silent = BehindSilence(WaitKPolicy(k=2, step=2), torch.tensor([3, 0]))
    visible = silent.rule(2)(answer_index(mask, prompt), mask, torch.tensor([13, 9]))
    assert visible.tolist() == [[0, 7, 9, 11, 13, 13], [4, 6, 8, 9, 9, 0]]
    assert silent.reach(5) == 15
    everything = BehindSilence(OfflinePolicy(), torch.tensor([3, 0]))
    assert everything.rule(2)(answer_index(mask, prompt), mask, torch.tensor([13, 9])).amax(1).tolist() == [13, 9]
    assert everything.reach(5) is None
