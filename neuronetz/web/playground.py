"""The playground: one file, served as it is, with headers that let it run itself and nothing else."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import neuronetz

# What the browser runs stands between these; data in a script element has a type, and is never run.
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


class Playground(NamedTuple):
    """The page's bytes, and the headers that go with them."""

    body: bytes
    headers: Mapping[str, str]


def playground_file() -> Path:
    """The page: inside an installed package, beside it in a source checkout."""
    package = Path(neuronetz.__file__).parent
    installed = package / "playground" / "index.html"
    return installed if installed.is_file() else package.parent / "playground" / "index.html"


def load_playground() -> Playground:
    """The page as it is on the disk now. Raises ``OSError`` where an installation lacks it."""
    body = playground_file().read_bytes()
    return Playground(body, _headers(body))


def _headers(page: bytes) -> dict[str, str]:
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(_SCRIPT, page),
        "style-src": _hashes(_STYLE, page),
        "connect-src": "'self'",
        "img-src": "data:",
        "form-action": "'none'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        # Whatever a model says stays text: no string becomes markup or script.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }


def _hashes(element: re.Pattern[bytes], page: bytes) -> str:
    # A browser hashes the element's text after it has made every line end a line feed.
    texts = (text.replace(b"\r\n", b"\n") for text in element.findall(page))
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts)
