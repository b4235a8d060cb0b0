import numpy as np
import pytest
from conftest import sound

from asr.audio import read
from asr.errors import ConfigError, DataError
from asr.sources.common_voice import CommonVoice

COLUMNS = "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()


def row(speaker: str, clip: str, sentence: str) -> str:
    return "\t".join([speaker, clip, sentence, "2", "0", "", "", "", "", "tr", ""])


@pytest.fixture
def root(tmp_path):
    rows = {
        "train": [row("s1", "common_voice_tr_2.mp3", '"Nasılsın?" dedi'), row("s2", "common_voice_tr_1.mp3", 'bir "tırnak')],
        "dev": [row("s3", "common_voice_tr_3.mp3", "İyiyim")],
        "test": [row("s4", "common_voice_tr_4", "Evet")],
    }
    for split, lines in rows.items():
        (tmp_path / "tr").mkdir(exist_ok=True)
        (tmp_path / "tr" / f"{split}.tsv").write_text("\n".join(["\t".join(COLUMNS), *lines]) + "\n", encoding="utf-8")
    for number in range(1, 5):
        sound(tmp_path / "tr" / "clips" / f"common_voice_tr_{number}.mp3", 0.5)
    return tmp_path


def test_rows_come_in_the_order_of_the_table_quotation_marks_and_all(root):
    rows = list(CommonVoice(root=str(root), language="tr").utterances("train"))
    assert [(r.id, r.speaker, r.text) for r in rows] == [
        ("common_voice_tr_2", "s1", '"Nasılsın?" dedi'),
        ("common_voice_tr_1", "s2", 'bir "tırnak'),
    ]
    assert np.ptp(read(rows[0].audio, 16000)) > 0.5


def test_root_may_be_the_language_itself_and_plus_joins(root):
    for source in (CommonVoice(root=str(root / "tr")), CommonVoice(root=str(root / "tr"), language="tr")):
        assert [r.id[-1] for r in source.utterances("train+dev")] == ["2", "1", "3"]


def test_a_clip_without_a_suffix_is_an_mp3(root):
    (only,) = CommonVoice(root=str(root), language="tr").utterances("test")
    assert only.id == "common_voice_tr_4" and only.audio == root / "tr" / "clips" / "common_voice_tr_4.mp3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"language": "tur"}, r"^language: there is no language 'tur' .*holds tr\. Did you mean tr"),
        ({}, "^language: is missing; it holds tr"),
        ({"language": "tr", "train_split": "trian"}, r"^train_split: .*it has dev, test, train\. Did you mean train"),
        ({"language": "tr", "text_column": "sentense"}, r"^text_column: .*train\.tsv has no column 'sentense'; .*Did you mean sentence"),
        ({"language": "tr", "audio_column": "audio"}, "^audio_column: .* it has client_id, path, "),
    ],
)
def test_what_is_not_there_names_its_key_and_the_nearest(root, arguments, message):
    source = CommonVoice(root=str(root), **arguments)
    with pytest.raises(ConfigError, match=message):
        list(source.utterances(source.train_split))


def test_another_column_may_hold_the_transcript(root):
    rows = CommonVoice(root=str(root), language="tr", text_column="locale").utterances("train")
    assert {r.text for r in rows} == {"tr"}


@pytest.mark.parametrize(
    ("line", "message"),
    [(row("s", "../../x.mp3", "a"), r"train\.tsv:4: .*'\.\.'"), ("s1\tx.mp3", r"train\.tsv:4 has 2 fields where the header has 11")],
)
def test_a_bad_line_is_named(root, line, message):
    table = root / "tr" / "train.tsv"
    table.write_text(table.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(CommonVoice(root=str(root), language="tr").utterances("train"))
