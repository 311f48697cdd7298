"""Counts for Prometheus, in its text format; kept by the event loop alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper ends of the histogram of latencies, in seconds."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What has come in and gone out since the start."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0
        self.prompt_tokens = 0
        self.generated_tokens = 0

    def count(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered; ``path`` is the route's, so that there are few."""
        self._requests[path, status] += 1
        self._seconds += seconds
        for bound in BUCKETS:
            self._buckets[bound] += seconds <= bound

    def text(self, queue_length: int, slots_in_use: int, slots: int) -> str:
        """The page that Prometheus reads."""
        total = sum(self._requests.values())
        requests = {
            f'{{path="{path}",status="{status}"}}': count
            for (path, status), count in sorted(self._requests.items())
        }
        latency: dict[str, float] = {
            f'_bucket{{le="{bound}"}}': self._buckets[bound] for bound in BUCKETS
        }
        latency |= {'_bucket{le="+Inf"}': total, "_sum": self._seconds, "_count": total}
        return "".join(
            [
                _family("requests_total", "counter", "Requests answered.", requests),
                _family("request_seconds", "histogram", "From request to answer.", latency),
                _single("prompt_tokens_total", "counter", "Tokens read.", self.prompt_tokens),
                _single(
                    "generated_tokens_total", "counter", "Tokens written.", self.generated_tokens
                ),
                _single("queue_length", "gauge", "Continuations without a slot.", queue_length),
                _single("slots_in_use", "gauge", "Continuations in a slot.", slots_in_use),
                _single("slots", "gauge", "Slots.", slots),
            ]
        )


def _single(name: str, kind: str, about: str, value: float) -> str:
    return _family(name, kind, about, {"": value})


def _family(name: str, kind: str, about: str, samples: Mapping[str, float]) -> str:
    lines = [f"# HELP gptfit_{name} {about}", f"# TYPE gptfit_{name} {kind}"]
    lines += [f"gptfit_{name}{suffix} {value}" for suffix, value in samples.items()]
    return "\n".join(lines) + "\n"
