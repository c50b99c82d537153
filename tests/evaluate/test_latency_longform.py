import json

import pytest

from espnet_bestow.evaluate.instances import Instance
from espnet_bestow.evaluate.longform import Segment, align_recording, read_segments, score_longform

SEGMENTS = [Segment(1000, 2000, "der alte mann"), Segment(4000, 1000, "er lacht"), Segment(6000, 500, "ja")]


def talk(prediction, delays, clock=()):
    return Instance(0, prediction, tuple(delays), "", 7000, "/x/talk.wav", clock=tuple(clock))


def test_words_go_to_the_segment_they_were_said_in():
    parts = align_recording(talk("der kalte Mann er lachte", [1500, 2000, 3500, 4500, 5600]), SEGMENTS)
    assert [part.units for part in parts] == [("der", "kalte", "Mann"), ("er", "lachte"), ()]
    assert [part.delays for part in parts] == [(500, 1000, 2500), (500, 1600), ()]
    assert [part.recording_end for part in parts] == [5500, 2500, 500]


def test_an_inserted_word_goes_to_the_side_it_resembles():
    after = align_recording(talk("der alte mann erl er lacht", range(6)), SEGMENTS)
    assert [len(part.units) for part in after] == [3, 3, 0]
    before = align_recording(talk("der alte mann mannn er lacht", range(6)), SEGMENTS)
    assert [len(part.units) for part in before] == [4, 2, 0]


def test_long_yaal_by_hand():
    # Segment 1: three words in 2 s, pace 2000 / 3; segment 2: two in 1 s, of which one after the recording's end.
    instance = talk("der alte mann er lacht", [1500, 2000, 3500, 4500, 6500], [1600, 2100, 3600, 4600, 6600])
    first = (500 + (1000 - 2000 / 3) + (2500 - 4000 / 3)) / 3
    report = score_longform([instance], {"talk": SEGMENTS})
    assert report.values["long_yaal"] == pytest.approx((first + 500) / 2)
    assert report.values["long_yaal_ca"] == pytest.approx((first + 100 + 600) / 2)
    assert (report.segments, report.empty, report.unplaced) == (3, 1, 0)


def test_marks_match_marks_when_a_tokenizer_sets_them_apart():
    def split(word):
        return [word[:-1], word[-1]] if len(word) > 1 and not word[-1].isalnum() else [word]

    segments = [Segment(0, 1000, "ja ."), Segment(1000, 1000, "nein")]
    whole = align_recording(talk("ja. nein", [1, 2]), segments)
    apart = align_recording(talk("ja. nein", [1, 2]), segments, split=split)
    assert [p.units for p in whole] == [p.units for p in apart] == [("ja.",), ("nein",)]
    assert apart[0].delays == (1,)  # the mark adds no unit of its own


def test_a_unit_without_a_home_is_counted():
    report = score_longform([talk(", der", [1200, 1500])], {"talk": [Segment(1000, 2000, "der")]})
    assert report.unplaced == 1
    assert report.values["long_yaal"] == pytest.approx(500)


def test_missing_segments_are_an_error():
    with pytest.raises(ValueError, match="instance 0: recording 'talk' has no segments"):
        score_longform([talk("ja", [1])], {"walk": SEGMENTS})
    with pytest.raises(ValueError, match="none of 1 segments has a reference"):
        align_recording(talk("ja", [1]), [Segment(0, 10, "")])


def test_an_empty_answer_is_defined():
    report = score_longform([talk("", [])], {"talk": SEGMENTS})
    assert (report.empty, report.values) == (3, {})


@pytest.mark.parametrize("name", ["cuts.json", "cuts.yaml"])
def test_iwslt_segmentations_are_read(tmp_path, name):
    cuts, texts = tmp_path / name, tmp_path / "ref"
    if name.endswith("json"):
        cuts.write_text(json.dumps([{"wav": "a/talk.wav", "offset": 1, "duration": 2.0, "speaker_id": "x"}]))
    else:
        cuts.write_text("- {wav: a/talk.wav, offset: 1, duration: 2.0, speaker_id: x}\n")
    texts.write_text("der alte mann\n")
    assert read_segments(cuts, texts) == {"talk": SEGMENTS[:1]}
    texts.write_text("der alte mann\nja\n")
    with pytest.raises(ValueError, match=r"has 1 segments, .* 2 lines"):
        read_segments(cuts, texts)


def test_broken_segmentations_are_errors(tmp_path):
    cuts, texts = tmp_path / "cuts.json", tmp_path / "ref"
    texts.write_text("ja\n")
    for text, message in (
        ("{}", "expected a list of segments, got dict"),
        ('[{"wav": "x"}]', "entry 0: expected wav, offset and duration"),
        ('[{"wav": "x", "offset": 0, "duration": 0}]', r"duration 0\.0 make no segment"),
    ):
        cuts.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_segments(cuts, texts)
