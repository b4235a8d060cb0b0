"""Recordings through a model and into files: cutting, joining, what can't be read, and where transcripts go."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import sound
from test_audio import tone

from asr import audio, recogniser, recordings, transcription
from asr.ctc import CTCModel
from asr.errors import ConfigError, DataError
from asr.recogniser import Heard
from asr.seq2seq import EncoderDecoderModel
from asr.transcription import Cutting, Transcriber

RATE = 16000


class Ear:
    """Stands in for a recogniser: a frame of 20 ms is the letter whose loudness it has, heard badly at a chunk's edges."""

    device, rate_hz, frame_samples, blank = "cpu", RATE, 320, 0

    def __init__(self, tokenizer, generates=False):
        self.tokenizer, self.found = tokenizer, SimpleNamespace(generates=generates)
        self.sizes = []

    def shape_of(self, *sizes):
        return None

    def hear(self, batch, *, shape=None, log_probs=False):
        self.sizes += [len(samples) for samples in batch]
        return [self.of(samples) for samples in batch]

    def of(self, samples):
        whole = samples[: len(samples) // 320 * 320].reshape(-1, 320)
        tokens = np.round(np.abs(whole).max(axis=1) * 10).astype(np.int32) if len(whole) else np.zeros(0, np.int32)
        if self.found.generates:
            return Heard(text=self.tokenizer.decode(tokens.tolist()))
        tokens[:2] = tokens[len(tokens) - 2 :] = 0
        return Heard(tokens)


def spelled(letters, silence=5):
    """Return the samples of some of the letters abcdef, a space between words."""
    ids = [{" ": 2}.get(letter, "abcdef".find(letter) + 3) for letter in letters]
    frames = [token for i in ids for token in [*[0] * silence, i, i, i]] + [0] * silence
    return np.repeat(np.array(frames, np.float32) / 10, 320)


TEXT = "abba faded cafe " * 8 + "end"


@pytest.mark.parametrize("generates", [False, True])
@pytest.mark.parametrize(("chunk", "overlap"), [(60.0, 0.0), (5.0, 1.5), (3.0, 1.5)])
def test_a_long_recording_is_what_it_is_in_one_piece(tmp_path, tokenizer, chunk, overlap, generates):
    samples = spelled("".join(c for c in TEXT if c in "abcdef "))
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    [whole] = recordings.measured(recordings.find([str(tmp_path / "a.wav")]))[0]
    ear = Ear(tokenizer, generates)
    [(number, found)] = Transcriber(ear, Cutting(chunk, overlap, 20.0)).transcripts([whole])
    expected = " ".join("".join(c for c in TEXT if c in "abcdef ").split())
    assert (number, found.text) == (0, expected)
    assert found.seconds == pytest.approx(len(samples) / RATE)
    assert len(ear.sizes) == (1 if chunk == 60 else -(-(len(samples) - int(overlap * RATE)) // int((chunk - overlap) * RATE)))
    if not generates:
        assert [word.text for word in found.words] == expected.split()
        starts = [word.start for word in found.words]
        assert starts == sorted(starts)
        assert found.words[-1].end == pytest.approx(found.seconds, abs=0.2)


def test_recordings_short_and_long_are_heard_together(tmp_path, tokenizer):
    texts = ["abc", "fade " * 30, "a", "", "bead cafe"]
    for i, text in enumerate(texts):
        soundfile.write(tmp_path / f"{i}.wav", spelled(text) if text else np.zeros(0), RATE, subtype="FLOAT")
    found, _ = recordings.measured(recordings.find([str(tmp_path)]))
    heard = []
    transcriber = Transcriber(Ear(tokenizer), Cutting(5.0, 1.5, 12.0), progress=heard.append)
    transcripts = dict(transcriber.transcripts(found))
    assert [transcripts[i].text for i in range(5)] == [text.strip() for text in texts]
    assert sum(heard) == pytest.approx(sum(recording.seconds for recording in found))


def test_8_khz_in_stereo_is_heard_at_the_model_s_rate(tmp_path, tokenizer):
    left = 1.2 * tone(3, 8000)  # 0.6 at its peaks, and half of it with the silent right: the letter of 0.3
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1), 8000)
    found, _ = recordings.measured(recordings.find([str(tmp_path)]))
    [(_, transcript)] = Transcriber(ear := Ear(tokenizer), Cutting(2.0, 0.5)).transcripts(found)
    assert (transcript.text, sorted(ear.sizes)) == ("a", [24000, 32000])
    assert transcript.seconds == pytest.approx(3.0)


def test_one_that_can_t_be_read_to_its_end_is_left_out_and_the_rest_goes_on(tmp_path, tokenizer):
    soundfile.write(tmp_path / "a.wav", spelled("abba"), RATE, subtype="FLOAT")
    bad = spelled("cafe " * 20)
    bad[-100] = np.nan
    soundfile.write(tmp_path / "b.wav", bad, RATE, subtype="FLOAT")
    found, _ = recordings.measured(recordings.find([str(tmp_path)]))
    transcriber = Transcriber(Ear(tokenizer), Cutting(2.0, 0.5, 2.0))
    assert [(n, t.text) for n, t in transcriber.transcripts(found)] == [(0, "abba")]
    assert "b.wav holds samples that are NaN" in transcriber.problems[1]


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_blocks_are_the_samples_of_the_whole(tmp_path, monkeypatch, rate):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.stack([tone(3, rate), np.zeros(3 * rate)], axis=1), rate)
    monkeypatch.setattr(audio, "STREAMED_SECONDS", 1)
    found = list(audio.blocks(path, RATE))
    assert len(found) == 3
    whole = audio.read(path, RATE)
    joined = np.concatenate(found)
    assert abs(len(joined) - len(whole)) <= 1
    np.testing.assert_allclose(joined[: len(whole)], whole[: len(joined)], atol=1e-4)
    part = np.concatenate(list(audio.blocks(path, RATE, start_seconds=0.5, seconds=1.25)))
    np.testing.assert_allclose(part, audio.read(path, RATE, start_seconds=0.5, seconds=1.25)[: len(part)], atol=1e-4)


def test_blocks_of_a_file_cut_short_end_in_its_name(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.flac (is cut short|can't be read as audio)"):
        list(audio.blocks(path, RATE))


def test_memory_does_not_grow_with_the_length(tmp_path, tokenizer):
    """Of decoded audio and NumPy's arrays: half an hour takes what a tenth of it does, but for a number a frame."""
    peaks = []
    for minutes in (3, 30):
        with soundfile.SoundFile(tmp_path / "a.wav", "w", 8000, 2, subtype="PCM_16") as file:
            for _ in range(minutes):
                file.write(np.zeros((60 * 8000, 2), np.int16))
        found, _ = recordings.measured(recordings.find([str(tmp_path / "a.wav")]))
        tracemalloc.start()
        [(_, transcript)] = Transcriber(Ear(tokenizer), Cutting(5.0, 1.0, 20.0)).transcripts(found)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (transcript.text, round(transcript.seconds)) == ("", minutes * 60)
    assert peaks[1] < 1.3 * peaks[0] + 4 * 50 * 60 * 27


def test_how_recordings_are_cut_is_checked():
    assert Cutting.of(20.0, None, None, 120.0, most=None) == Cutting(20.0, 20.0 / 3, 120.0)
    for chunk, overlap, batch, most, key in (
        (0.1, None, 1, None, "--chunk-seconds"),
        (31, None, 1, 30.0, "--chunk-seconds"),
        (10, 6, 1, None, "--overlap-seconds"),
        (10, float("nan"), 1, None, "--overlap-seconds"),
        (10, 1, 0, None, "--batch-seconds"),
    ):
        with pytest.raises(ConfigError) as caught:
            Cutting.of(20.0, chunk, overlap, batch, most=most)
        assert caught.value.key == key


def test_transcripts_are_named_after_their_recordings(tmp_path):
    found = recordings.find([str(sound(tmp_path / name)) for name in ("a/one.wav", "b/one.wav", "b/two.flac", "b/two.wav", "c.wav")])
    places = transcription.places(found, tmp_path / "out", ["srt"], overwrite=False)
    assert places[-1] == tmp_path / "out" / "c"
    assert len(set(places)) == 5
    assert all(place.parent == tmp_path / "out" for place in places)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c.srt").write_text("mine")
    with pytest.raises(ConfigError, match=r"c\.srt is there already"):
        transcription.places(found, tmp_path / "out", ["text", "srt"], overwrite=False)
    assert transcription.places(found, tmp_path / "out", ["srt"], overwrite=True) == places


@pytest.mark.parametrize(("formats", "number", "key"), [(["xml"], 1, "--format"), (["srt"], 2, "--into"), (["text", "json"], 1, "--into")])
def test_formats_that_can_t_be_shown_are_told(formats, number, key):
    with pytest.raises(ConfigError) as caught:
        transcription.check_formats(formats, None, number)
    assert caught.value.key == key


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small CTC model with random weights, as a run saves it."""
    import torch
    from test_ctc import described

    from asr.vocabulary import Vocabulary

    folder = tmp_path_factory.mktemp("model")
    vocabulary = Vocabulary()
    tokenizer = vocabulary.tokenizer_from(vocabulary.build(["abcdef"]), folder)
    torch.manual_seed(0)
    node = described("wav2vec2_tiny")
    model = node.load(tokenizer, new_head=True)
    model.save_pretrained(folder)
    node.processor(tokenizer, model).save_pretrained(folder)
    return folder


def test_a_model_s_folder_is_a_recogniser_as_whole_file_decoding_has_it(saved, tmp_path):
    from transformers import pipeline

    dice = np.random.default_rng(0)
    waves = [dice.standard_normal(n).astype(np.float32) * 0.1 for n in (RATE, 2 * RATE, 40)]
    ear = recogniser.Recogniser(recogniser.find(str(saved)), "cpu")
    assert ear.frame_samples == 320
    pipe = pipeline("automatic-speech-recognition", model=str(saved), device="cpu")
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i}.wav", wave, RATE, subtype="FLOAT")
    found, _ = recordings.measured(recordings.find([str(tmp_path)]))
    transcripts = dict(Transcriber(ear, Cutting(20.0, 5.0)).transcripts(found))
    assert [transcripts[i].text for i in range(2)] == [pipe(wave)["text"] for wave in waves[:2]]
    assert transcripts[2].seconds == 40 / RATE
    [(_, chunked)] = Transcriber(ear, Cutting(0.8, 0.0)).transcripts(found[1:2])  # where nothing overlaps, nothing is chosen
    assert chunked.text == pipe(waves[1], chunk_length_s=0.8, stride_length_s=0)["text"] != transcripts[1].text


def test_the_command_ends_in_3_after_all_others_and_shows_them_in_order(saved, tmp_path, capsys, caplog):
    named = [str(sound(tmp_path / name, seconds)) for name, seconds in (("a.wav", 0.5), ("b.flac", 1.5))]
    shown = []
    with pytest.raises(DataError, match=r"1 of 3 recordings can't be read; the others are transcribed"):
        transcription.transcribe(str(saved), [named[0], str(tmp_path / "gone.wav"), named[1]], device="cpu", show=shown.append)
    assert [line.partition("\t")[0] for line in shown] == named
    transcription.transcribe(str(saved), named, formats=["json", "vtt"], into=tmp_path / "out", device="cpu", show=shown.append)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.json", "a.vtt", "b.json", "b.vtt"]
    assert len(shown) == 2


def test_what_is_no_model_that_writes_is_told(tmp_path, saved, run_dir):
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2", "architectures": ["Wav2Vec2Model"]}')
    for name, message in (
        (str(tmp_path), "which writes no text"),
        (str(tmp_path / "nosuch"), "there is no folder"),
        ("nosuch/model", "nosuch/model"),
    ):
        with pytest.raises(ConfigError, match=message):
            recogniser.find(name)
    with pytest.raises(ConfigError, match="is Whisper's"):
        recogniser.find(str(saved), language="en")
    with pytest.raises(ConfigError, match="is not one of"):
        recogniser.device_of("tpu")
    found = recogniser.find(str(run_dir))
    assert found.folder == str(run_dir / "model")
    assert 1.0 <= found.usual_seconds <= 3.0  # what it was trained on


@pytest.mark.parametrize(
    ("model", "trained", "seconds"),
    [
        (CTCModel, (4.0, 10.0), 10.0),
        (CTCModel, (0.2, 0.4), 1.0),
        (CTCModel, (20.0, 45.0), 30.0),
        (CTCModel, None, 20.0),
        (EncoderDecoderModel, (4.0, 10.0), 7.0),
    ],
)
def test_chunks_are_as_long_as_what_the_model_has_heard_often(model, trained, seconds):
    assert recogniser.Found("folder", model(name_or_path="folder"), trained).usual_seconds == seconds
