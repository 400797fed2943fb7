"""Where a model is served, and the key to it.

The key is read when a request is made, and goes nowhere but into its header: not into a log, a report, or an error.
"""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

_QUOTED = 300
"""Characters of a server's own words in a message."""


class EndpointError(ValueError):
    """The server cannot be asked at all; the message names it and says what to do."""


@dataclass(frozen=True)
class Server:
    """Where a model is served.

    Parameters
    ----------
    base_url
        Up to and with `/v1`. Credentials do not belong into it.
    model
        Name under which the server knows it.
    api_key_env
        Environment variable that holds the key; None for a server without.

    Raises
    ------
    ValueError
        The address is none, or holds credentials.
    """

    base_url: str
    model: str
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "The base_url holds a user, a password or a query, which would be written to logs and reports. Give the "
                "address alone, such as https://host/v1, and put the key into an environment variable that api_key_env names."
            )
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"base_url is {self.base_url!r}; expected an address such as http://127.0.0.1:8000/v1.")
        if not self.model:
            raise ValueError("model is empty; expected a name that the server knows.")

    @property
    def address(self) -> str:
        """Host and path: what reports call the server."""
        parts = urlsplit(self.base_url)
        return parts.netloc + parts.path.rstrip("/")

    @property
    def root(self) -> str:
        """Address without `/v1`, below which servers have what is not OpenAI's."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    def key(self) -> str | None:
        """The key, from the environment.

        Raises
        ------
        EndpointError
            The variable is not set.
        """
        if self.api_key_env is None:
            return None
        if key := os.environ.get(self.api_key_env):
            return key
        raise EndpointError(
            f"The environment variable {self.api_key_env} is not set; expected the key for {self.address} in it."
        )

    def scrubbed(self, text: str) -> str:
        """A text without the key, on one line and not too long."""
        key = os.environ.get(self.api_key_env or "")
        text = " ".join(text.replace(key, "<key>").split() if key else text.split())
        return text if len(text) <= _QUOTED else text[:_QUOTED] + " ..."
