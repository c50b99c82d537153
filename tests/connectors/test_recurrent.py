"""The GRU runs over real positions only, wherever the padding stands."""

import pytest
import torch

from espnet_bestow.connectors import RecurrentConnector, Speech


@pytest.fixture
def connector():
    torch.manual_seed(0)
    return RecurrentConnector(8, 6, hidden=5, num_layers=2, num_heads=2, dropout=0.0).eval()


def hidden(connector, rows):
    return torch.randn(connector.rnn.num_layers, rows, connector.rnn.hidden_size)


@torch.no_grad()
def test_the_rnn_equals_one_row_at_a_time_without_padding(connector):
    text, start = torch.randn(4, 5, 8), hidden(connector, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    out, last = connector._run(text, mask, start)
    for row in range(4):
        one, state = connector.rnn(text[row, mask[row]][None], start[:, row : row + 1].contiguous())
        torch.testing.assert_close(out[row, mask[row]], one[0])
        torch.testing.assert_close(last[:, row], state[:, 0])


@torch.no_grad()
def test_a_row_without_new_text_keeps_its_state(connector):
    start = hidden(connector, 2)
    mask = torch.tensor([[True, True], [False, False]])
    _, last = connector._run(torch.randn(2, 2, 8), mask, start)
    assert torch.equal(last[:, 1], start[:, 1]) and not torch.allclose(last[:, 0], start[:, 0])


@torch.no_grad()
def test_beams_move_with_their_state(connector):
    speech = Speech(torch.randn(2, 7, 6), torch.tensor([7, 5]))
    visible = torch.tensor([[7, 7], [5, 5]], dtype=torch.int32)
    state = connector.start(speech)
    text, mask = torch.randn(2, 2, 8), torch.ones(2, 2, dtype=torch.bool)
    connector(text, mask, visible, state)
    beams = state.select(torch.tensor([0, 0, 1, 1]))
    assert beams.hidden.shape[1] == 4 and beams.speech is state.speech
    assert torch.equal(beams.hidden, state.hidden[:, [0, 0, 1, 1]])
    grown = torch.randn(4, 1, 8)
    connector(grown, torch.ones(4, 1, dtype=torch.bool), visible[[0, 0, 1, 1], :1], beams)
    swapped = beams.select(torch.tensor([1, 0, 3, 2]))
    assert torch.equal(swapped.hidden, beams.hidden[:, [1, 0, 3, 2]])


@torch.no_grad()
def test_a_closed_gate_shuts_the_speech_out(connector):
    """sigmoid(gate) scales what was read; at 0 the text alone passes through the feed-forward."""
    connector.gate.weight.zero_()
    connector.gate.bias.fill_(-200.0)
    speech = Speech(torch.randn(1, 7, 6), torch.tensor([7]))
    text, mask = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    visible = torch.full((1, 3), 7, dtype=torch.int32)
    out = connector(text, mask, visible, connector.start(speech)).embeddings
    torch.testing.assert_close(out, text + connector.ffn(text))
    connector.gate.bias.fill_(200.0)
    opened = connector(text, mask, visible, connector.start(speech)).embeddings
    assert (opened - out).abs().max() > 1e-3


def test_heads_must_divide_the_llms_width():
    with pytest.raises(ValueError, match=r"dim=8 is not a multiple of num_heads=3"):
        RecurrentConnector(8, 6, num_heads=3)
