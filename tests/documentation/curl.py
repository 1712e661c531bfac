"""What the pages use of curl, for machines that have none; an error of the server's is an error, as with `--fail`."""

import argparse
import sys
import urllib.error
import urllib.request
from pathlib import Path


def main() -> int:
    """Print the answer's body; 22 when its status is an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-N", "--no-buffer", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("-d", "--data", "--data-binary")
    asked = parser.parse_intermixed_args()
    headers = dict(each.split(": ", 1) for each in asked.header)
    data = None if asked.data is None else _content(asked.data)
    if asked.json is not None:
        data = asked.json.encode()
        headers |= {"Content-Type": "application/json", "Accept": "application/json"}
    request = urllib.request.Request(asked.url, data, headers, method=asked.request)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        sys.stdout.buffer.write(answer.read() + b"\n")
        return 22 if answer.status >= 400 else 0


def _content(text: str) -> bytes:
    return Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()


if __name__ == "__main__":
    sys.exit(main())
