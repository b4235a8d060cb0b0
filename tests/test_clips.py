"""Sound for a page: playable, of few bytes, and said where there is none."""

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import sound

from asr.clips import MOST_SECONDS, Clips
from asr.sources import Utterance


def utterance(path, seconds, **facts):
    return Utterance("u", Path(path), "text", seconds=seconds, **facts)


def heard(clip):
    """Decode what a page would play."""
    assert clip.uri.startswith("data:audio/flac;base64,")
    return soundfile.read(io.BytesIO(base64.b64decode(clip.uri.partition(",")[2])))


def test_a_clip_is_the_audio(tmp_path):
    path = sound(tmp_path / "a.wav", 0.5)
    samples, rate = heard(Clips().of(utterance(path, 0.5)))
    assert rate == 16000
    assert np.allclose(samples, soundfile.read(path)[0], atol=1e-4)


def test_a_part_of_a_file_begins_where_it_begins(tmp_path):
    path = sound(tmp_path / "a.wav", 1.0)
    samples, _ = heard(Clips().of(utterance(path, 0.25, start_seconds=0.5)))
    assert np.allclose(samples, soundfile.read(path)[0][8000:12000], atol=1e-4)


def test_three_hours_at_8_khz_in_stereo_are_their_first_seconds(tmp_path):
    path, hours = tmp_path / "long.wav", 3 * 3600
    soundfile.write(path, np.zeros((8000, 2)), 8000, subtype="PCM_16")
    header = bytearray(path.read_bytes()[:44])
    size = hours * 8000 * 4
    header[4:8], header[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(header)
        file.truncate(44 + size)  # silence that takes no room
    clip = Clips().of(utterance(path, float(hours)))
    samples, rate = heard(clip)
    assert len(samples) == MOST_SECONDS * rate
    assert samples.ndim == 1
    assert clip.note == "the first 15 s of 10800.0"


@pytest.mark.parametrize("content", [b"", b"no sound"], ids=["empty", "text"])
def test_what_cannot_be_read_is_said(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    clip = Clips().of(utterance(tmp_path / "a.wav", 1.0))
    assert not clip.uri
    assert "can't be read as audio" in clip.note


def test_no_samples_and_no_file_are_said(tmp_path):
    path = sound(tmp_path / "a.wav", 0.0)
    assert Clips().of(utterance(path, 0.0)).note == "there is no sound in it"
    path.unlink()
    assert Clips().of(utterance(path, 0.0)).note == f"{path} is not there any more"


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.wav")
    assert "is not there" in Clips().of(utterance(tmp_path / "a.wav", 1.0)).note


def test_a_cell_of_an_arrow_file_is_heard(tmp_path):
    import pyarrow

    content = sound(tmp_path / "a.wav", 0.5).read_bytes()
    table = pyarrow.table({"audio": [{"bytes": content, "path": "a.wav"}]})
    with pyarrow.OSFile(str(tmp_path / "d.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    samples, _ = heard(Clips().of(utterance(tmp_path / "d.arrow", 0.5, row=0, column="audio")))
    assert len(samples) == 8000


def test_a_page_holds_only_so_much(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    long = utterance(tmp_path / "a.wav", 1.0)
    clips = Clips(most_bytes=40_000)
    first, second, short = clips.of(long), clips.of(long), clips.of(replace(long, seconds=0.1, start_seconds=0.0))
    assert first.uri
    assert (second.uri, second.note) == ("", "its sound is left out: the page holds enough")
    assert short.uri
    assert clips.bytes_left > 0
