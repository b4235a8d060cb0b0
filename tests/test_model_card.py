"""The card of a model: what the hub reads of it, and that a configuration's values stay text."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from asr import model_card
from asr.runs import Run


class Told:
    """A run as its files tell it."""

    def __init__(self, run_dir):
        found = Run.load(run_dir)
        self.record, self.config, self.metrics, self.path = found.record, found.config, found.metrics, found.path


@pytest.fixture
def told(run_dir):
    return Told(run_dir)


def test_a_run_leaves_a_card_in_its_model_that_the_hub_s_client_reads(run_dir):
    card = ModelCard.load(run_dir / "model" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "automatic-speech-recognition")
    assert card.data.metrics == ["wer", "cer"]
    measured = Run.load(run_dir).metrics
    assert {one.metric_type: one.metric_value for one in card.data.eval_results} == {
        name: pytest.approx(measured[f"eval_{name}"], abs=1e-6) for name in ("wer", "cer")
    }
    assert {(one.dataset_name, one.dataset_split) for one in card.data.eval_results} == {("spoken_digits", "test")}
    assert "base_model" not in card.data.to_dict()
    low, high = (100 * measured[f"eval_wer_{end}"] for end in ("low", "high"))
    for part in (
        f"| WER | {100 * measured['eval_wer']:.2f} % | {low:.2f} to {high:.2f} |",
        "| train | train | 24 |",
        "| eval | test | 10 |",
        "trained from scratch on spoken\\_digits",
        "python launch.py dataset.num_train_utterances=24",
    ):
        assert part in card.text, part


def test_the_whole_configuration_is_in_it(run_dir, told):
    text = str(model_card.card(told))
    block = text.partition("```yaml\n")[2].partition("\n```")[0]
    assert yaml.safe_load(block) == Run.load(run_dir).config


def test_a_checkpoint_a_hub_dataset_and_a_language_are_named_as_the_hub_does(told):
    told.config["model"]["name_or_path"] = "facebook/wav2vec2-base"
    told.config["dataset"] |= {"path": "google/fleurs", "config_name": "tr_tr", "language": "tr"}
    told.record["dataset"]["name"] = "google/fleurs"
    data = model_card.card(told).data
    assert (data.base_model, data.datasets, data.language) == ("facebook/wav2vec2-base", ["google/fleurs"], "tr")
    assert {(one.dataset_type, one.dataset_config) for one in data.eval_results} == {("google/fleurs", "tr_tr")}
    assert "facebook/wav2vec2-base, fine-tuned on google/fleurs" in str(model_card.card(told))


def test_local_folders_are_no_names_of_the_hub(told, tmp_path, monkeypatch):
    (tmp_path / "me" / "checkpoint").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told.config["model"]["name_or_path"] = "me/checkpoint"
    told.config["model"]["language"] = "hindi"  # Whisper's name for it is no code
    told.record["dataset"]["name"] = "/data/secret-project/corpus"
    card = model_card.card(told)
    assert (card.data.base_model, card.data.datasets, card.data.language) == (None, None, None)
    assert card.data.eval_results[0].dataset_name == "corpus"


def test_a_run_that_was_not_evaluated_has_a_card_without_results(told):
    told.metrics = {"train_loss": 1.0}
    card = model_card.card(told)
    assert card.data.eval_results is None
    assert "## Results" not in str(card)
    told.metrics = {"eval_wer": None}
    assert "| WER | - | - |" in str(model_card.card(told))


def test_values_are_no_markup_and_end_no_block_and_secrets_stay_here(told, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "sesame-open-please")
    told.record["dataset"]["name"] = "a|b <script>x</script> [y](z)"
    told.record["overrides"] = ["text.remove='```'", "seed=1"]
    told.config["text"]["remove"] = "````\n# no heading"
    told.config["dataset"]["root"] = f"{Path.home()}/sesame-open-please"
    told.config["experiment_name"] = "---\nlicense: mit\n---"
    text = str(model_card.card(told))
    assert "a\\|b \\<script\\>x\\</script\\> \\[y\\](z)" in text
    assert "\n````bash\n" in text
    assert "\n`````yaml\n" in text
    assert "sesame-open-please" not in text
    assert "root: ~/***" in text
    assert "license" not in ModelCard(text).data.to_dict()
