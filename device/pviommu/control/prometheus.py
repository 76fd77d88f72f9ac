"""Statistics in the text format of Prometheus, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["HELP", "LABELS", "of_links", "text"]

GAUGES = frozenset(("contexts", "mapped_pages", "pool_pages_used", "pool_pages"))
LABELS = {"ops": "operation"}
"""Of what has a value for each of several things, the label that names them."""

HELP = {
    "ops": "operations executed, failed ones too",
    "ops_failed": "operations that failed",
    "slots": "slots of command rings executed",
    "slots_posted": "of them, those that the guest did not wait for",
    "pages_mapped": "pages mapped",
    "pages_unmapped": "pages unmapped",
    "dma_requests": "DMA requests translated",
    "dma_bytes": "bytes moved by DMA",
    "faults": "DMA requests refused",
    "events": "events put into the event ring",
    "events_lost": "events that found no room there",
    "traps": "accesses to BARs that left the guest",
    "config_accesses": "accesses to configuration space",
    "doorbells": "doorbells rung",
    "interrupts": "interrupts raised",
    "drains_continued": "times that DMA or a reset waited for a later turn",
    "sleeps": "times the loop slept with its doorbells armed",
    "naps": "times the loop slept a moment",
    "waits": "times somebody in the guest waited for a completion",
    "contexts": "contexts allocated",
    "mapped_pages": "pages mapped in all contexts",
    "pool_pages_used": "page-table pages in use",
    "pool_pages": "page-table pages that there are",
}
"""What each value is."""


def text(values: Mapping[str, Any]) -> str:
    """The values of a ``statistics`` result."""
    return "".join(f"{line}\n" for name, value in values.items() for line in _metric(name, value))


def _metric(name: str, value: Any) -> Iterator[str]:
    is_gauge = name in GAUGES
    metric = f"pviommu_{name}" if is_gauge else f"pviommu_{name}_total"
    yield f"# HELP {metric} {HELP[name]}"
    yield f"# TYPE {metric} {'gauge' if is_gauge else 'counter'}"
    if name in LABELS:
        for each, count in value.items():
            yield f'{metric}{{{LABELS[name]}="{each}"}} {count}'
    else:
        yield f"{metric} {value}"


def of_links(links: Iterable[Mapping[str, Any]]) -> str:
    """The network cards of a ``statistics`` result; nothing if there are none."""
    metrics: dict[str, list[str]] = {}
    for link in links:
        card = f'card="{link["name"]}"'
        metrics.setdefault("link_up", []).append(f"{{{card}}} {int(link['up'])}")
        for direction in ("sent", "received"):
            labels = f'{card},direction="{direction}"'
            metrics.setdefault("link_frames_total", []).append(f"{{{labels}}} {link[direction]}")
            metrics.setdefault("link_bytes_total", []).append(f"{{{labels}}} {link[direction + '_bytes']}")
            for reason, count in link[f"{direction}_dropped"].items():
                metrics.setdefault("link_dropped_total", []).append(f'{{{labels},reason="{reason}"}} {count}')
    return "".join(f"{line}\n" for name, samples in metrics.items() for line in _samples(name, samples))


def _samples(name: str, samples: Iterable[str]) -> Iterator[str]:
    yield f"# HELP pviommu_{name} {_LINK_HELP[name]}"
    yield f"# TYPE pviommu_{name} {'counter' if name.endswith('_total') else 'gauge'}"
    yield from (f"pviommu_{name}{sample}" for sample in samples)


_LINK_HELP = {
    "link_up": "whether the guest sees the link of its network card up",
    "link_frames_total": "frames that a network card sent or received",
    "link_bytes_total": "bytes in these frames",
    "link_dropped_total": "frames that a network card dropped",
}
