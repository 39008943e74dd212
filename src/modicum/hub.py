"""Whether the Hugging Face hub answers, so that without a network nobody waits for it; and the way up.

Its libraries ask again and again before they look into their caches. Here it is asked once."""

import re
import shlex
import ssl
import urllib.error
import urllib.request
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

from modicum.types import UserError

SECONDS = 5.0  # to connect and to answer


@lru_cache(maxsize=1)
def silence() -> str:
    """Why the hub cannot be asked, looked at once in a process; empty: it can. Any answer will do,
    also a refusal, and one of a proxy or a mirror (HF_ENDPOINT)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, HTTPException) as error:
        why = getattr(error, "reason", error)
        if not isinstance(why, ssl.SSLError):  # the libraries bring certificates of their own
            return f"{constants.ENDPOINT} does not answer ({' '.join(str(why).split())})"
    return ""


def require_name(repo: str) -> None:
    """UserError where the hub takes no model of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push: {error}") from None


def push(folder: Path, repo: str, private: bool, dry: bool) -> str:
    """Upload a folder as a model, unless `dry`, and say where it is. UserError, which says how to do it
    later, where the hub is not to be reached or refuses."""
    from huggingface_hub import constants, create_repo, errors, get_token, upload_folder

    sizes = [place.stat().st_size for place in folder.rglob("*") if place.is_file()]
    what = f"{len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB"
    what = f"{what}, to {constants.ENDPOINT}/{repo} ({'private' if private else 'public'})"
    if dry:
        return f"would upload {what}"
    token = "" if get_token() else "there is no token: `hf auth login`, or HF_TOKEN"
    if not (why := silence() or token):
        try:
            create_repo(repo, private=private or None, exist_ok=True)
            made = upload_folder(repo_id=repo, folder_path=folder, commit_message="Model")
            return f"uploaded {what}: {made}"
        # Its base is whatever the library below raises where a connection breaks; the others are what
        # becomes of an answer that no hub gives.
        except (*errors.HfHubHTTPError.__bases__, LookupError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            why = re.sub(r"[\s\x00-\x1f]+", " ", said)[:300]
    later = f"later: hf upload {repo} {shlex.quote(str(folder))}{' --private' * private}"
    raise UserError(f"{folder} is there, and was not uploaded ({what}): {why}; {later}")
