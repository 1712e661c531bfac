"""What the pages use of curl, for machines that have none."""

import argparse
import sys
import urllib.error
import urllib.request


def main() -> int:
    """Print the answer's body, whatever its status, as curl does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("--json")
    asked = parser.parse_intermixed_args()
    headers = dict(each.split(": ", 1) for each in asked.header)
    data = None
    if asked.json is not None:
        data = asked.json.encode()
        headers |= {"Content-Type": "application/json", "Accept": "application/json"}
    request = urllib.request.Request(asked.url, data, headers, method=asked.request)
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        sys.stdout.buffer.write(answer.read())
    return 0


if __name__ == "__main__":
    sys.exit(main())
