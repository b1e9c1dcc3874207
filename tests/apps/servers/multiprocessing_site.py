"""Children of multiprocessing that hand over and end; run as a program with the way to start them."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys

from incident_messaging import MessagingConfig, MessagingService

service = MessagingService(MessagingConfig.from_mapping(json.loads(os.environ["SETTINGS"])))


def work(word: str) -> None:
    if word == "process0":
        assert service.consume_one("inbox", group="child", timeout=30.0) is not None
    for number in range(20):
        service.publish_nowait("work", {"word": f"{word} {number}"})


def main(method: str) -> None:
    context = multiprocessing.get_context(method)
    service.publish("work", {"word": "parent before"})
    service.publish("inbox", {})
    processes = [context.Process(target=work, args=(f"process{number}",)) for number in range(2)]
    for process in processes:
        process.start()
    service.publish("work", {"word": "parent meanwhile"}, timeout=5.0)
    for process in processes:
        process.join(60.0)
        assert process.exitcode == 0, process.exitcode
    pool = context.Pool(2)
    pool.map(work, [f"pool{number}" for number in range(4)], chunksize=1)
    pool.close()  # terminate, and the end of a with block, kill the children
    pool.join()
    service.publish("work", {"word": "parent after"}, timeout=5.0)


if __name__ == "__main__":
    main(sys.argv[1])
