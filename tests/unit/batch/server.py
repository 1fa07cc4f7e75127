"""A scripted endpoint in a process of its own: `-m tests.unit.batch.server LOG FAULTS DELAY`.

Prints its port. Of each question, the first FAULTS percent of a fixed draw get faults before their
answer. A question may hold orders: "always:STATUS", "once:STATUS:RETRY_AFTER". When standard input
ends, writes one JSON line per request to LOG and ends.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

from tests.mock_server import Call, MockServer, Script

KIND = "application/json"
FAULTS = [
    Script(status=429, headers=(("retry-after", "0"),)),
    Script(status=503),
    Script(status=500, body=b"<html>oops"),
    Script(status=0),
    Script(content_type=KIND, body=b'{"choices": []}', ending="cut"),
]


def main(log: Path, percent: float, delay: float) -> None:
    asked: Counter[str] = Counter()
    statuses: list[int] = []

    def answer(call: Call) -> Script:
        script = decide(call)
        statuses.append(script.status if script.ending == "done" else -1)
        return script

    def decide(call: Call) -> Script:
        text = question(call)
        asked[text] += 1
        first = asked[text] == 1
        for word in text.split():
            order, _, rest = word.partition(":")
            status, _, wait = rest.partition(":")
            if order == "always" or (order == "once" and first):
                headers = (("retry-after", wait),) if wait else ()
                return Script(status=int(status), headers=headers, content_type=KIND)
        draw = random.Random(text)
        if first and draw.random() * 100 < percent:
            return draw.choice(FAULTS)
        said = {"object": "answer", "said": text, "model": call.body.get("model")}
        body = json.dumps(said, indent=1 if "pretty" in text else None).encode()
        headers = (("x-request-id", f"r-{call.number}"),)
        return Script(content_type=KIND, body=body, headers=headers, delay=delay)

    with MockServer(answer) as server:
        print(server.port, flush=True)
        sys.stdin.read()
    with log.open("w") as file:
        for call, status in zip(server.calls, statuses, strict=True):
            facts = {"text": question(call), "status": status, "path": call.path}
            facts |= {"received": call.received, "ended": call.ended, "body": call.body}
            file.write(json.dumps(facts) + "\n")


def question(call: Call) -> str:
    if "messages" in call.body:
        return str(call.body["messages"][0]["content"])
    return str(call.body.get("prompt", call.body.get("input")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
