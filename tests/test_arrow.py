import io

import numpy as np
import pyarrow
import pytest
import soundfile

from asr import arrow, audio
from asr.errors import DataError


def encoded(num_samples, format="FLAC"):
    stream = io.BytesIO()
    soundfile.write(stream, np.full(num_samples, 0.25), 16000, format=format)
    return stream.getvalue()


@pytest.fixture
def table(tmp_path):
    """An Arrow file of five rows in three record batches, as datasets writes them."""
    path = tmp_path / "data.arrow"
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    rows = [{"bytes": encoded(1600 * i), "path": f"{i}.flac"} for i in range(1, 5)] + [{"bytes": None, "path": "gone.wav"}]
    schema = pyarrow.schema({"audio": kind, "n": pyarrow.int64()})
    with pyarrow.ipc.new_stream(str(path), schema) as writer:
        for start in (0, 2, 4):
            part = rows[start : start + 2]
            writer.write_batch(pyarrow.record_batch([pyarrow.array(part, kind), pyarrow.array(range(len(part)))], schema=schema))
    return path


def test_cells_of_all_batches_are_found(table):
    assert [audio.seconds_of(table, column="audio", row=i) for i in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    samples = audio.read(table, 16000, column="audio", row=2, seconds=0.3)
    assert samples.shape == (4800,)
    assert np.abs(samples - 0.25).max() < 1e-3


@pytest.mark.parametrize(
    ("column", "row", "said"), [("audio", 4, "holds no audio bytes"), ("sound", 0, "Arrow file"), ("audio", 9, "Arrow file")]
)
def test_what_isn_t_there_is_named(table, column, row, said):
    with pytest.raises(DataError, match=rf"data\.arrow.*{said}"):
        audio.seconds_of(table, column=column, row=row)


def test_a_file_that_is_no_arrow_file_is_named(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"x\.arrow can't be read as an Arrow file"):
        arrow.audio_bytes(tmp_path / "x.arrow", "audio", 0)


def test_an_empty_table_has_no_cell(tmp_path):
    path = tmp_path / "empty.arrow"
    with pyarrow.ipc.new_stream(str(path), pyarrow.schema({"audio": pyarrow.binary()})):
        pass
    with pytest.raises(DataError, match="can't be read as an Arrow file"):
        arrow.audio_bytes(path, "audio", 0)
