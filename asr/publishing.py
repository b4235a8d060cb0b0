"""A trained model on the Hugging Face hub: what is looked at before anything is trained, and the push after a good end.

In: the repository's name (trainer.args.hub_model_id) and a token of the environment. Out: a commit there, recorded in run.json; or one
error with the mend. The token is written nowhere.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from asr import hub, model_card, runs
from asr.errors import ConfigError, PublishError
from asr.runs import Run

log = logging.getLogger(__name__)

KEY, NAME_KEY, TOKEN = "publish", "trainer.args.hub_model_id", "HF_TOKEN"


def check_name(name: object, *, key: str = NAME_KEY) -> None:
    """Raise ConfigError for what can't name a repository of the hub; asks nobody."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(name, str) or not name:
        raise ConfigError("is missing: name the repository that the model is pushed to, such as my-name/my-model.", key=key)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{name!r} can't name a repository of the hub; it is like my-name/my-model.", key=key) from error


def check(name: str, *, key: str = KEY, name_key: str = NAME_KEY) -> None:
    """Raise ConfigError unless the hub answers, knows the token, and lets it write where `name` says, as far as it tells."""
    later = "or leave it false and publish later: asr publish RUN"
    if hub.is_offline():
        raise ConfigError(f"needs the hub, and HF_HUB_OFFLINE is set: unset it, {later}.", key=key)
    if not token():
        raise ConfigError(f"needs a token of the hub that may write: set {TOKEN} in the environment, {later}.", key=key)
    if hub.why_silent():
        raise ConfigError(f"{hub.endpoint()} can't be asked: {hub.why_silent()}. Check the network, {later}.", key=key)
    who = _who(key)
    access = (who.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise ConfigError(f"the token in {TOKEN} may only read: make one that may write (huggingface.co/settings/tokens).", key=key)
    spaces = [str(who.get("name")), *(str(group.get("name")) for group in who.get("orgs") or ())]
    owner, slash, _ = name.partition("/")
    if slash and owner not in spaces:
        raise ConfigError(
            f"{name}: the token in {TOKEN} is of {spaces[0]}, who isn't in {owner}; it may write to {', '.join(spaces)}.", key=name_key
        )


def token() -> str:
    """Return the token of the environment, and of nowhere else; empty where there is none."""
    return os.environ.get(TOKEN, "").strip()


def _who(key: str) -> dict[str, Any]:
    """Return what the hub says of the token's owner."""
    from huggingface_hub import HfApi

    try:
        return dict(hub.patiently(lambda: HfApi(token=token()).whoami(), []))
    except hub.failures() as error:
        if _status(error) == 401:
            raise ConfigError(f"the hub doesn't know the token in {TOKEN}: make one that may write, and set it.", key=key) from error
        raise ConfigError(f"{hub.endpoint()} doesn't say whose the token is: {hub.reason(error)}.", key=key) from error


def publish(run: Run, name: str, *, private: bool | None = None) -> str:
    """Push a run's model/ to the hub and return its address there; raise PublishError. run.json has what was done, or why not."""
    from huggingface_hub import HfApi

    folder = run.path / runs.MODEL_FOLDER
    log.info("publishing %s to %s", folder, name)
    title = f"{run.record['experiment']} {run.record.get('version', '')}".strip()
    problems: tuple[type[BaseException], ...] = (*hub.failures(), ValueError)  # ValueError: the card's YAML isn't as the hub wants it
    try:
        api = HfApi(token=token())
        repository = api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository.repo_id, folder_path=str(folder), commit_message=f"Model of {title}")
    except problems as error:
        why = _why(error)
        run.save(published={"repository": name, "error": why, "at": runs.now()})
        raise PublishError(
            f"{name} can't be pushed to {hub.endpoint()}: {why}. The run is whole; try again: asr publish {run.path}"
        ) from error
    run.save(published={"repository": repository.repo_id, "url": str(repository), "commit": done.oid, "at": runs.now()})
    log.info("published: %s", repository)
    return str(repository)


def publish_later(run: Run, name: str | None, *, private: bool | None = None) -> str:
    """Push the model of a run that has finished; `name` None takes the configuration's. Raises ConfigError and PublishError."""
    ended = "a rehearsal" if run.record.get("rehearsal") else run.record.get("status")
    if ended != "finished":
        raise ConfigError(f"{run.path} is {ended}: only a run that has finished is published.")
    folder = run.path / runs.MODEL_FOLDER
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{run.path} has no model: it trained none, or {folder} has gone.")
    args = run.config.get("trainer", {}).get("args", {})
    wanted = name or args.get("hub_model_id")
    check_name(wanted, key="--to")
    check(wanted, key="asr publish", name_key="--to")
    if not (folder / model_card.CARD_FILE).exists():
        model_card.write(run, folder)
    return publish(run, wanted, private=args.get("hub_private_repo") if private is None else private)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _why(error: BaseException) -> str:
    """Return why a push failed, in a user's words: the hub says 401 and 403 of tokens."""
    known = {401: f"the token in {TOKEN} isn't known there", 403: f"the token in {TOKEN} may not write there"}
    return known.get(_status(error) or 0) or hub.reason(error)
