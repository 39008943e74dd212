"""Whether the Hugging Face hub answers, so that without a network nobody waits for it.

Its libraries ask again and again before they look into their caches. Here it is asked once."""

import ssl
import urllib.error
import urllib.request
from functools import lru_cache

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
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        if not isinstance(why, ssl.SSLError):  # the libraries bring certificates of their own
            return f"{constants.ENDPOINT} does not answer ({why})"
    return ""
