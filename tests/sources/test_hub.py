import io
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import ROOT, composed, sound

from asr import audio, composition
from asr.errors import ConfigError, DataError
from asr.pipeline import Pipeline
from asr.sources.hub import Hub

AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def level(number: int) -> float:
    """The constant that all samples of row `number` have."""
    return (number % 50 - 25) / 64


def encoded(number: int, format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(160 * (1 + number % 7), level(number)), 16000, format=format)
    return file.getvalue()


def table(start: int, end: int, **columns: list) -> pa.Table:
    """Rows as datasets writes them to Parquet; odd ones are FLAC, even ones WAV."""
    numbers = range(start, end)
    cells = [{"bytes": encoded(n, ("WAV", "FLAC")[n % 2]), "path": f"{n}.flac"} for n in numbers]
    return pa.table({"audio": pa.array(cells, type=AUDIO), "text": [f"text {n}" for n in numbers], **columns})


def features(**more: str) -> dict:
    """The metadata with which datasets marks a column as audio."""
    kinds = {"audio": {"sampling_rate": 16000, "_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    kinds |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in more.items()}
    return {"huggingface": json.dumps({"info": {"features": kinds}})}


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A folder as the hub lays one out: train in two shards, validation in one."""
    folder = tmp_path_factory.mktemp("corpus") / "data"
    folder.mkdir()
    for name, (start, end) in {
        "train-00000-of-00002": (0, 120),
        "train-00001-of-00002": (120, 200),
        "validation-00000-of-00001": (200, 210),
    }.items():
        rows = table(start, end, id=[f"id{n}" for n in range(start, end)], speaker_id=[n // 10 for n in range(start, end)])
        marked = rows.replace_schema_metadata(features(id="string", speaker_id="int64"))
        pq.write_table(marked, folder / f"{name}.parquet", row_group_size=50)
    return folder.parent


@pytest.fixture(scope="module")
def saved(parquet, tmp_path_factory):
    """The same, written by save_to_disk in several files a split."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    loaded = datasets.load_dataset(str(parquet), cache_dir=str(folder / "cache"))
    loaded.save_to_disk(str(folder / "dict"), num_shards={"train": 3, "validation": 1})
    loaded["train"].select(range(20)).save_to_disk(str(folder / "one"))
    return folder


@pytest.fixture(params=["parquet", "saved", "arrow"])
def root(request, parquet, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if request.param == "arrow":
        (tmp_path / "arrow").mkdir()
        for split, folder in (("train", "train"), ("validation", "validation")):
            for number, file in enumerate(sorted((saved / "dict" / folder).glob("*.arrow"))):
                (tmp_path / "arrow" / f"{split}-{number}.arrow").write_bytes(file.read_bytes())
        return tmp_path / "arrow"
    return parquet if request.param == "parquet" else saved / "dict"


def hub(root, cache, /, **keys) -> Hub:
    return Hub(**{"root": str(root), "cache_dir": str(cache), "eval_split": "validation", **keys})


def heard(row) -> float:
    samples = audio.read(row.audio, 16000, column=row.column, row=row.row)
    assert np.ptp(samples) < 1e-3
    return float(samples.mean())


def numbers(rows) -> list[int]:
    return [int(row.text.removeprefix("text ")) for row in rows]


def test_rows_point_at_the_cells_that_hold_their_audio(root, tmp_path):
    rows = list(hub(root, tmp_path / "c").utterances("train"))
    assert numbers(rows) == list(range(200))
    assert (rows[133].id, rows[133].speaker, rows[133].seconds) == ("id133", "13", None)
    assert all(row.audio.is_absolute() and row.audio.suffix == ".arrow" for row in rows)
    for row, number in zip(rows, range(200), strict=True):
        assert heard(row) == pytest.approx(level(number), abs=1e-3)
        assert audio.seconds_of(row.audio, column=row.column, row=row.row) == pytest.approx(0.01 * (1 + number % 7))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train[:10%]", [*range(20)]),
        ("train[100:130]", [*range(100, 130)]),
        ("train[-5:]", [*range(195, 200)]),
        ("train[50:40]", []),
        ("train[198:] + validation[:2]", [198, 199, 200, 201]),
        ("validation+train[:1%]", [*range(200, 210), 0, 1]),
    ],
)
def test_split_expressions_take_what_datasets_takes(parquet, tmp_path, spec, expected):
    rows = list(hub(parquet, tmp_path).utterances(spec))
    assert numbers(rows) == expected
    assert [heard(row) for row in rows] == pytest.approx([level(n) for n in expected], abs=1e-3)


def test_a_split_that_was_saved_alone_is_called_as_it_was(saved, tmp_path):
    assert numbers(hub(saved / "one", tmp_path).utterances("train[10:]")) == [*range(10, 20)]


def test_parts_are_joined_in_order_and_their_ids_kept_apart(parquet, saved, tmp_path):
    parts = [
        {"path": str(parquet), "train_split": "train[:2]", "eval_split": None},
        {"path": str(saved / "one"), "text_column": "id", "eval_split": "train[:1]"},
    ]
    source = Hub(parts=parts, cache_dir=str(tmp_path), train_split="train[:3]", eval_split="validation")
    rows = list(source.utterances("train[:3]"))
    assert [row.id for row in rows] == ["part0-id0", "part0-id1", "part1-id0", "part1-id1", "part1-id2"]
    assert [row.text for row in rows] == ["text 0", "text 1", "id0", "id1", "id2"]
    assert [row.id for row in source.utterances("validation")] == ["part1-id0"]
    assert source.name == f"{parquet}+{saved / 'one'}"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([{"path": "x"}, {"pth": "x"}], r"^parts\[1\]\.pth: there is no such key; .*Did you mean path"),
        ([{"path": 3}], r"^parts\[0\]\.path: 3 is not text"),
        ([{"text_column": None}], r"^parts\[0\]\.text_column: None is not text"),
    ],
)
def test_a_wrong_part_names_its_key(parts, message):
    with pytest.raises(ConfigError, match=message):
        Hub(parts=parts)


def test_a_part_with_a_wrong_column_or_split_names_its_key(parquet, tmp_path):
    def rows(**part):
        return list(Hub(parts=[{"path": str(parquet), **part}], cache_dir=str(tmp_path)).utterances("train"))

    with pytest.raises(ConfigError, match=r"^parts\[0\]\.text_column: .*Did you mean text"):
        rows(text_column="txt")
    with pytest.raises(ConfigError, match=r"^parts\[0\]\.train_split: .*Did you mean train"):
        rows(train_split="trian")
    with pytest.raises(ConfigError, match=r"^train_split and eval_split|^parts\[0\]: "):
        Hub(parts=[{"train_split": "a", "eval_split": "b"}], train_split="x", eval_split="x")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_split": "trian[:3]"}, r"^train_split: there is no split 'trian' .*it has train, validation\. Did you mean train"),
        ({"train_split": "train[:3"}, r"^train_split: 'train\[:3': .*write train\[:10%\]"),
        ({"text_column": "txet"}, r"^text_column: .*has no column 'txet'; it has audio, text, id, speaker_id\. Did you mean text"),
        ({"audio_column": "adio"}, r"^audio_column: .*Did you mean audio"),
        ({"text_column": "speaker_id"}, "^text_column: column 'speaker_id' .* holds int64, not text"),
        ({"audio_column": "speaker_id"}, "^audio_column: .* holds int64, not encoded audio or paths"),
        ({"speaker_column": "speaker"}, r"^speaker_column: .*Did you mean speaker_id"),
        ({"id_column": "idd"}, "^id_column: "),
        ({"config_name": "clean"}, "^config_name: .* has no configuration 'clean'; choose from default"),
        ({"root": None}, "^path: is missing"),
        ({"root": None, "path": "./nowhere"}, "^path: there is no folder"),
    ],
)
def test_what_is_not_there_names_its_key_and_the_nearest(parquet, tmp_path, keys, message):
    source = hub(parquet, tmp_path, **keys)
    with pytest.raises(ConfigError, match=message):
        list(source.utterances(source.train_split))


def test_a_configuration_is_chosen_by_name(parquet, tmp_path):
    (tmp_path / "two").mkdir()
    for name in ("clean", "other"):
        pq.write_table(table(0, 3), tmp_path / "two" / f"{name}.parquet")
    files = "".join(f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}.parquet\n" for n in ("clean", "other"))
    (tmp_path / "two" / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    assert numbers(hub(tmp_path / "two", tmp_path, config_name="other").utterances("train")) == [0, 1, 2]
    for given, message in {"claen": r"choose from clean, other.*Did you mean clean", None: "is missing; choose from clean, other"}.items():
        with pytest.raises(ConfigError, match=rf"^config_name: .*{message}"):
            list(hub(tmp_path / "two", tmp_path, config_name=given).utterances("train"))


def written(folder, **tables):
    folder.mkdir()
    for split, rows in tables.items():
        pq.write_table(rows, folder / f"{split}.parquet")
    return folder


def test_ids_that_repeat_are_not_ids(tmp_path):
    repeated = written(tmp_path / "a", train=table(0, 3, id=[7, 7, 8]))
    assert [row.id for row in hub(repeated, tmp_path).utterances("train[1:]")] == ["train-1", "train-2"]
    assert [row.id for row in hub(repeated, tmp_path, id_column="id").utterances("train")] == ["7", "7", "8"]
    from_zero = written(tmp_path / "b", train=table(0, 2, id=[0, 1]), test=table(2, 4, id=[0, 1]))
    assert [row.id for row in hub(from_zero, tmp_path).utterances("train")] == ["0", "1"]
    assert [row.id for row in hub(from_zero, tmp_path).utterances("train+test")] == ["train-0", "train-1", "test-0", "test-1"]


def test_a_cell_without_bytes_is_the_file_that_it_names(tmp_path):
    there = sound(tmp_path / "there.wav")
    cells = [
        {"bytes": encoded(3, "WAV"), "path": "gone.wav"},
        {"bytes": None, "path": str(there)},
        {"bytes": None, "path": "here.wav"},
        {"bytes": None, "path": "https://x/y.wav"},
        {"bytes": None, "path": None},
        None,
    ]
    rows = pa.table({"audio": pa.array(cells, type=AUDIO), "text": list("abcdef")})
    folder = written(tmp_path / "mixed", train=rows)
    inner, outer, beside, *neither = hub(folder, tmp_path).utterances("train")
    assert heard(inner) == pytest.approx(level(3), abs=1e-3)
    assert (outer.audio, outer.row, outer.column) == (there, None, "")
    assert beside.audio == folder / "here.wav"
    for row in neither:
        with pytest.raises(DataError, match="holds no audio bytes"):
            heard(row)


def test_a_column_of_paths_and_one_of_bytes_will_do(tmp_path):
    there = sound(tmp_path / "there.wav")
    paths = written(tmp_path / "paths", train=pa.table({"audio": [str(there)], "text": ["a"]}))
    assert [row.audio for row in hub(paths, tmp_path).utterances("train")] == [there]
    raw = written(tmp_path / "raw", train=pa.table({"audio": [encoded(5, "FLAC")], "text": ["a"]}))
    assert [heard(row) for row in hub(raw, tmp_path).utterances("train")] == pytest.approx([level(5)], abs=1e-3)


def test_a_path_that_leads_out_is_refused(tmp_path):
    rows = pa.table({"audio": ["../x.wav"], "text": ["a"]})
    with pytest.raises(DataError, match=r"row 0: '\.\./x\.wav' leads out"):
        list(hub(written(tmp_path / "out", train=rows), tmp_path).utterances("train"))


def test_a_hub_name_offline_fails_at_once_and_says_how_to_give_it_locally():
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"^path: openslr/librispeech_asr \(config_name clean\) can't be had: .*root=/a/folder"):
        list(Hub(path="openslr/librispeech_asr", config_name="clean").utterances("train"))
    assert time.monotonic() - start < 20


def test_a_loading_script_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("")
    with pytest.raises(ConfigError, match=r"^root: .*loading script.*revision=refs/convert/parquet"):
        list(hub(tmp_path / "script", tmp_path).utterances("train"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^root: .*can't be had: .*doesn't contain any data files"):
        list(hub(tmp_path / "empty", tmp_path).utterances("train"))


def test_a_broken_file_is_bad_data(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"broken can't be read: "):
        list(hub(tmp_path / "broken", tmp_path).utterances("train"))


def test_a_shard_that_breaks_the_conversion_is_bad_data(tmp_path):
    folder = written(tmp_path / "shards", **{"train-00000-of-00002": table(0, 2)})
    (folder / "train-00001-of-00002.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"shards can't be converted to Arrow files: .*Parquet file size"):
        list(hub(folder, tmp_path).utterances("train"))


def test_audio_files_of_their_own_are_for_the_folder_source(tmp_path):
    sound(tmp_path / "files" / "train" / "a.wav")
    (tmp_path / "files" / "train" / "metadata.csv").write_text("file_name,text\na.wav,one\n")
    with pytest.raises(ConfigError, match=r"^root: .* dataset=folder reads a local"):
        list(hub(tmp_path / "files", tmp_path).utterances("train"))


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """120 MB of audio go by without being read: the peak grows by the 10 MB or so that datasets needs itself."""
    import datasets

    big = written(
        tmp_path / "big",
        train=pa.table({"audio": pa.array([{"bytes": os.urandom(10**6), "path": None}] * 120, type=AUDIO), "text": ["a"] * 120}),
    )
    datasets.load_dataset(str(big), cache_dir=str(tmp_path / "c"))
    code = (
        "import re; from pathlib import Path; from asr.sources.hub import Hub; import datasets, pyarrow\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024\n"
        f"source, before = Hub(root={str(big)!r}, cache_dir={str(tmp_path / 'c')!r}), peak()\n"
        "assert len(list(source.utterances('train'))) == 120\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 40


def test_no_source_imports_torch(parquet, tmp_path):
    code = (
        "import sys, importlib, pkgutil, asr.sources\n"
        "for m in pkgutil.iter_modules(asr.sources.__path__): importlib.import_module('asr.sources.' + m.name)\n"
        "print([m for m in ('torch', 'torchcodec', 'datasets', 'soundfile', 'pyarrow', 'numpy') if m in sys.modules])\n"
        f"list(asr.sources.hub.Hub(root={str(parquet)!r}, cache_dir={str(tmp_path)!r}).utterances('train'))\n"
        "print([m for m in ('torch', 'torchcodec', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_parts_come_from_the_command_line_and_local_folders_become_absolute(tmp_path):
    (tmp_path / "here").mkdir()
    config = composed("dataset=hub", "dataset.path=here", "dataset.parts=[{path: here, train_split: 'train[:10%]'}, {path: owner/name}]")
    config = composition.with_absolute_paths(config, tmp_path)
    assert config["dataset"]["path"] == str(tmp_path / "here")
    assert [part["path"] for part in config["dataset"]["parts"]] == [str(tmp_path / "here"), "owner/name"]
    assert Pipeline.of(config).dataset.parts[0]["train_split"] == "train[:10%]"
    with pytest.raises(ConfigError, match=re.escape("dataset.parts[0].pth: ")):
        Pipeline.of(composed("dataset=hub", "dataset.parts=[{pth: here}]"))


def test_the_published_recipe_has_its_names():
    node = composed("dataset=librispeech_clean_100")["dataset"]
    assert [node[key] for key in ("path", "config_name", "train_split", "eval_split")] == [
        "openslr/librispeech_asr",
        "clean",
        "train.100",
        "validation",
    ]
