"""The card of a trained model: README.md in model/, with its data, metrics, configuration and command, as the hub reads it.

In: a run directory. Out: Markdown with YAML in front, through huggingface_hub's ModelCard. Secrets and the home folder's name are left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from asr import __version__, hub, runs
from asr.metrics import BUILT_IN
from asr.runs import Run
from asr.secrets import printable, redacted

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

CARD_FILE = "README.md"
TASK = "automatic-speech-recognition"
_CODE = re.compile(r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$")
"""A language's code as the hub takes it (ISO 639)."""


def write(run: Run, folder: Path) -> Path:
    """Write the card of a run's model into the model's folder."""
    path = folder / CARD_FILE
    runs.write_text(path, str(card(run)))
    return path


def card(run: Run) -> ModelCard:
    """Return the card of a run's model."""
    from huggingface_hub import ModelCard, ModelCardData

    config, record = run.config, run.record
    base = [name for name in _base_models(config["model"]) if hub.is_name(name)]
    title = f"{record['experiment']} {record.get('version', '')}".strip()
    data = ModelCardData(
        language=_language(config),
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=base[0] if len(base) == 1 else base or None,
        datasets=_hub_datasets(config["dataset"]) or None,
        metrics=[name for name in BUILT_IN if f"eval_{name}" in run.metrics] or None,
        tags=["asr-gaudi"],
        model_name=title,
        eval_results=_results(run, config) or None,
    )
    text = (resources.files("asr") / "templates" / "model_card.md").read_text(encoding="utf-8")
    shown = {
        "title": title,
        "base": base,
        "version": __version__,
        "rates": {name.upper(): _rate(run.metrics, f"eval_{name}") for name in BUILT_IN if f"eval_{name}" in run.metrics},
        "dataset": _cell(_dataset_name(record)),
        "splits": {role: {key: _cell(value) for key, value in split.items()} for role, split in _splits(record).items()},
        "settings": {key: _cell(value) for key, value in _settings(run, config).items()},
        "command": _block("python launch.py " + shlex.join(map(str, record.get("overrides", ()))), "bash"),
        "config": _block(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip("\n"), "yaml"),
    }
    made = ModelCard.from_template(data, template_str=text, **shown)
    return ModelCard(_shareable(str(made)))


def _shareable(text: str) -> str:
    """Return a text without secrets, a terminal's codes and the name of the user's home."""
    return printable(redacted(text)).replace(f"{Path.home()}/", "~/")


def _base_models(model: Mapping[str, Any]) -> list[str]:
    return [model[key] for key in ("name_or_path", "encoder_name_or_path", "decoder_name_or_path") if model.get(key)]


def _language(config: Mapping[str, Any]) -> str | None:
    """Return the code of the language where the configuration says it; Whisper's may be a name, which is no code."""
    said = [config[node].get("language") for node in ("dataset", "model")]
    return next((str(language) for language in said if language and _CODE.match(str(language))), None)


def _hub_datasets(dataset: Mapping[str, Any]) -> list[str]:
    """Return the names that the dataset has on the hub."""
    if dataset.get("root"):
        return []
    paths = [dataset.get("path"), *(part.get("path") for part in dataset.get("parts") or ())]
    return list(dict.fromkeys(path for path in paths if isinstance(path, str) and path.count("/") == 1 and hub.is_name(path)))


def _dataset_name(record: Mapping[str, Any]) -> str:
    """Return the corpus' name; of a local path the last part."""
    parts = str((record.get("dataset") or {}).get("name", "unknown")).split("+")
    return "+".join(Path(part).name if Path(part).is_absolute() else part for part in parts)


def _results(run: Run, config: Mapping[str, Any]) -> list[EvalResult]:
    """Return the error rates as the hub lists them: shares, as in metrics.json."""
    from huggingface_hub import EvalResult

    on_hub, name = _hub_datasets(config["dataset"]), _dataset_name(run.record)
    return [
        EvalResult(
            task_type=TASK,
            task_name="Speech Recognition",
            dataset_type=on_hub[0] if on_hub else name,
            dataset_name=name,
            dataset_config=config["dataset"].get("config_name"),
            dataset_split=str(config["dataset"]["eval_split"]),
            metric_type=rate,
            metric_name=rate.upper(),
            metric_value=round(run.metrics[f"eval_{rate}"], 6),
        )
        for rate in BUILT_IN
        if run.metrics.get(f"eval_{rate}") is not None
    ]


def _rate(metrics: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return a rate and its interval in percent; - where there is none."""
    ends = [metrics.get(f"{key}_{end}") for end in ("low", "high")]
    known = [f"{100 * end:.2f}" for end in ends if isinstance(end, (int, float))]
    value = metrics[key]
    return {"value": "-" if value is None else f"{100 * value:.2f} %", "interval": " to ".join(known) if len(known) == 2 else "-"}


def _splits(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    splits = (record.get("dataset") or {}).get("splits") or {}
    keys = ("split", "utterances", "hours", "speakers")
    return {role: {key: "-" if split.get(key) is None else split[key] for key in keys} for role, split in splits.items()}


def _settings(run: Run, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people ask of a training first."""
    args, metrics, record = config["trainer"].get("args") or {}, run.metrics, run.record
    parameters = record.get("parameters") or {}
    found = {
        "parameters": f"{parameters['total']:,}, of which {parameters['trained']:,} trained" if parameters else None,
        "learning rate": args.get("learning_rate"),
        "batch, each device": args.get("per_device_train_batch_size"),
        "steps accumulated": args.get("gradient_accumulation_steps"),
        "epochs": metrics.get("epoch"),
        "training loss": metrics.get("train_loss"),
        "training time": f"{metrics['train_runtime']:.0f} s" if isinstance(metrics.get("train_runtime"), (int, float)) else None,
        "device": record.get("topology", {}).get("device"),
        "trainer": record.get("trainer_class"),
        "seed": config.get("seed"),
        "commit": (record.get("git") or {}).get("commit"),
        "packages": ", ".join(f"{name} {version}" for name, version in (record.get("packages") or {}).items()),
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


def _cell(value: object) -> str:
    """Return a value as a cell of Markdown's tables takes it: neither markup nor the end of the cell."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(value).split()))


def _block(text: str, language: str) -> str:
    """Return a block of code that nothing within it ends."""
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
