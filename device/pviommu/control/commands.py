"""The commands of the control socket. Whoever adds one describes it here, and carries it out as `.answers` does."""

from __future__ import annotations

from dataclasses import replace

from .description import Argument, Command, Field, Form, paged

__all__ = ["COMMANDS", "MOST_AREAS", "MOST_CONTEXTS", "MOST_FAULTS", "MOST_OPERATIONS"]

MOST_AREAS, MOST_CONTEXTS, MOST_FAULTS, MOST_OPERATIONS = 1024, 1024, 32, 512
"""Of one reply."""

_CONTEXT = Argument("context", "number of a context, 0 is the default one", most=(1 << 16) - 1, required=True)
_CARD = Argument("card", "name of its socket", Form.TEXT, required=True)
_NAME = Field("name", "of its socket", Form.TEXT)
_NEXT = Field("next", "`first` for the entries that follow, null if there are none")
_MAPPING = (
    Field("iova", "first byte", Form.HEX, "bytes"),
    Field("length", "size", Form.HEX, "bytes"),
    Field("gfn", "guest frame of the first page", Form.HEX),
    Field("access", "READ, WRITE or READ|WRITE", Form.TEXT),
    Field("distance", "between it and the address", Form.INTEGER, "bytes"),
)
_OPERATION = (
    Field("number", "counts operations from 0 on"),
    Field("operation", "map, unmap, alloc, free, attach, block, unblock, reset or ram", Form.TEXT),
    Field("time_ns", "when, by the server's monotonic clock", Form.TIME, "ns"),
    Field("ago_ns", "how long before this was asked", Form.TIME, "ns"),
    Field("context", "the context that it changed"),
    Field("dfn", "first page", Form.HEX),
    Field("pages", "asked for"),
    Field("done", "pages changed"),
    Field("gfn", "of a map: first guest frame", Form.HEX),
    Field("access", "of a map: READ, WRITE or READ|WRITE", Form.TEXT),
    Field(
        "before",
        "first page before: gfn << 2 | access bits (1 read, 2 write), 0 unmapped; of attach: context",
        Form.HEX,
    ),
    Field("after", "the same, afterwards", Form.HEX),
    Field("stop", "why not all was done", Form.TEXT),
    Field("stream", "endpoint, if one is concerned"),
    Field("ring", "ring that it came by, null: by none"),
    Field("slot", "index of the slot, as the producer index counts"),
    Field("sequence", "what the guest wrote into the slot as its sequence"),
    Field("result", "what the guest was answered: 0 or a negative errno"),
)
_EXPLAINED = (
    Field("cause", "why, in one word", Form.TEXT),
    Field("text", "why, in one sentence", Form.TEXT),
    Field(
        "now",
        "what is at the address: state, gfn, access; of tables of the guest, the entries of the walk",
        Form.OBJECT,
    ),
    Field("below", "nearest mapping before it", Form.OBJECT, fields=_MAPPING),
    Field("above", "nearest mapping behind it", Form.OBJECT, fields=_MAPPING),
    Field("contexts", "others that map the address", Form.LIST),
    Field("operations", "on this page, the last one first, 16 at most", Form.LIST, fields=_OPERATION),
    Field("history", "size, first operation looked at, operations so far; empty without --history", Form.OBJECT),
    Field(
        "rules",
        "what fault rules did about this page lately, the last one first, 4 at most",
        Form.LIST,
        fields=(
            Field("rule", "its id", Form.TEXT),
            Field("action", "what it did, as `fail` or `drop`", Form.TEXT),
            Field("on", "place", Form.TEXT),
            Field("ago_ns", "how long ago", Form.TIME, "ns"),
        ),
    ),
)
_READ = (
    Field("what", "STE, CD, the first level of a table of them (L1STD, L1CD), stage 1 or stage 2", Form.TEXT),
    Field("address", "where; of a table of stage 1 below a stage 2, what that translates", Form.HEX),
    Field("level", "of a table's descriptor"),
    Field("value", "hexadecimal: of a descriptor the number, else the bytes; empty: it cannot be read", Form.TEXT),
    Field("fields", "of a structure: those that are not 0", Form.TEXT),
)
_WALKED = (
    Field("smmu", "its name", Form.TEXT),
    Field("sid", "the StreamID", Form.HEX),
    Field("event", "type of the event that a write there would be; null: none", Form.TEXT),
    Field("leads_to", "guest physical address, null if a write is refused", Form.HEX, "bytes"),
)
_SMMUS = (
    _NAME,
    Field("enabled", "whether it translates", Form.BOOLEAN),
    Field("registers", "those that are not 0, without identification", Form.TEXT),
    Field("commands", "that wait to be carried out"),
    Field("stalled", "transactions that wait for RESUME"),
    Field("cached", "how many STEs, CDs, and translations of each stage", Form.OBJECT),
    Field("invalidations", "of ATCs that are not answered, for which CMD_SYNC waits"),
    Field("page_requests", "of endpoints, pages that wait for PRI_RESP"),
    Field(
        "streams",
        "of the endpoints behind it, each with its StreamID; blocked: until its reset; ATC: translations that it "
        "keeps, or off",
        Form.TEXT,
    ),
    Field("parent_faults", "accesses that led to where the guest has no memory, 256 at most"),
    Field("stale", "uses of cached entries that were otherwise in memory, 256 at most; with `strict` only"),
)
_SMMU_EVENTS = (
    Field("smmu", "whose", Form.TEXT),
    Field("event", "its type", Form.TEXT),
    Field("sid", "the StreamID", Form.HEX),
    Field("iova", "the input address", Form.HEX, "bytes"),
    Field("record", "its four dwords", Form.TEXT),
    Field("told", "whether there was room for it in the queue", Form.BOOLEAN),
)
_FAULT = (
    Field("number", "counts faults from 1 on"),
    Field("time_ns", "when, by the server's monotonic clock", Form.TIME, "ns"),
    Field("stream", "endpoint"),
    Field("sbdf", "its PCI address in the guest, or unbound", Form.TEXT),
    Field("context", "context that it was in"),
    Field("iova", "first byte refused", Form.HEX, "bytes"),
    Field("length", "span that the address is in", Form.INTEGER, "bytes"),
    Field("access", "READ or WRITE", Form.TEXT),
    Field("reason", "what the guest was told", Form.TEXT),
    Field("operations", "operations before it"),
    Field("explanation", "as of `explain`, made when it happened; missing if too many came at a time", Form.OBJECT),
)
_LINKS = Field(
    "links",
    "network cards, in the order of the topology",
    Form.LIST,
    fields=(
        _NAME,
        Field("link", "none, peer, or tap", Form.TEXT),
        Field("other", "the tap, or the card at the other end", Form.TEXT),
        Field("up", "whether the guest sees the link up", Form.BOOLEAN),
        Field("set", "up or down, as `link` has set it", Form.TEXT),
        Field("mac", "its address", Form.TEXT),
        Field("sent", "frames of the guest that the link took"),
        Field("sent_bytes", "in them", unit="bytes"),
        Field("received", "frames that the guest was given"),
        Field("received_bytes", "in them", unit="bytes"),
        Field("sent_dropped", "frames of the guest that were dropped, by reason", Form.OBJECT),
        Field("received_dropped", "frames for the guest that were dropped, by reason", Form.OBJECT),
    ),
)
"""All is counted since the server began."""

_VERDICT = (
    Field("ok", "whether all did what was expected so far", Form.BOOLEAN),
    Field("seed", "of the scenario"),
    Field("state", "that the scenario is in", Form.TEXT),
    Field("events", "written since the server began"),
    Field(
        "rules",
        "in the order of the scenario",
        Form.LIST,
        fields=(
            Field("id", "name", Form.TEXT),
            Field("class", "conforming, or adversarial: no correct IOMMU does that", Form.TEXT),
            Field("on", "places", Form.TEXT),
            Field("passed", "calls that met its conditions"),
            Field("fired", "calls at which it acted"),
            Field("expected", "of `fired`", Form.TEXT),
            Field("problems", "what is not as expected", Form.LIST),
            Field("text", "what it stands for", Form.TEXT),
        ),
    ),
    Field("problems", "of the run as a whole", Form.LIST),
    Field("suspended", "tags under which something waits for `resume`", Form.LIST),
)
COMMANDS = (
    Command(
        "version",
        "say what the server is",
        result=(
            Field("version", "of pviommu", Form.TEXT),
            Field("abi", "version of the interface to the guest"),
            Field("profiles", "that a guest may select", Form.LIST),
            Field("core", "what carries out maps: native or python", Form.TEXT),
        ),
    ),
    Command(
        "commands",
        "list the commands with their arguments and results",
        result=(
            Field(
                "commands",
                "all of them",
                Form.LIST,
                fields=(Field("name", "what to execute", Form.TEXT), Field("help", "what it does", Form.TEXT)),
            ),
        ),
    ),
    Command(
        "status",
        "say what the server is doing",
        result=(
            Field("uptime_ns", "since it began to serve", Form.TIME, "ns"),
            Field("contexts", "allocated, the default one not among them"),
            Field("mapped_pages", "in all of them"),
            Field("pool_pages_used", "page-table pages in use"),
            Field("pool_pages", "page-table pages that there are"),
            Field("faults", "refused DMA requests so far"),
            Field("history", "operations kept at most, 0: none"),
            Field("operations", "recorded so far"),
            Field("trace", "whether vfio-user messages are logged", Form.BOOLEAN),
            Field(
                "functions",
                "PCI functions",
                Form.LIST,
                fields=(
                    _NAME,
                    Field("kind", "iommu, or kind of endpoint", Form.TEXT),
                    Field("client", "process that is connected", Form.TEXT),
                    Field("bus_master", "whether the guest allows DMA", Form.BOOLEAN),
                ),
            ),
            Field(
                "rings",
                "command rings",
                Form.LIST,
                fields=(
                    Field("ring", "number"),
                    Field("entries", "slots, 0: off"),
                    Field("completed", "index of the next slot"),
                    Field("pending", "slots submitted and not completed"),
                    Field("broken", "stopped for an impossible index", Form.BOOLEAN),
                ),
            ),
        ),
    ),
    Command(
        "contexts",
        "list the contexts",
        paged(256, MOST_CONTEXTS, "number of the context"),
        (
            Field(
                "contexts",
                "in order",
                Form.LIST,
                fields=(
                    Field("context", "number"),
                    Field("kind", "identity, blocked, paging, clone or tables (those of the guest)", Form.TEXT),
                    Field("pages", "mapped by the guest"),
                    Field("direct", "ranges mapped 1:1 for endpoints in it"),
                    Field("streams", "endpoints in it", Form.LIST),
                ),
            ),
            _NEXT,
        ),
        "contexts",
    ),
    Command(
        "dump",
        "list what a context maps",
        (_CONTEXT, *paged(256, MOST_AREAS, "device frame", "pages", Form.HEX)),
        (
            Field("context", "number"),
            Field("kind", "identity, blocked, paging, clone or tables (those of the guest)", Form.TEXT),
            Field(
                "direct",
                "regions mapped 1:1 for endpoints in it, over the areas",
                Form.LIST,
                fields=(Field("dfn", "first device frame", Form.HEX), Field("pages", "how many")),
            ),
            Field(
                "areas",
                "runs of adjacent frames with one access, each from one map call",
                Form.LIST,
                fields=(
                    Field("dfn", "first device frame", Form.HEX),
                    Field("pages", "how many"),
                    Field("gfn", "first guest frame", Form.HEX),
                    Field("access", "READ, WRITE or READ|WRITE", Form.TEXT),
                ),
            ),
            _NEXT,
        ),
        "areas",
    ),
    Command(
        "endpoints",
        "list the endpoints and the contexts that they are in",
        result=(
            Field(
                "endpoints",
                "in order of their streams",
                Form.LIST,
                fields=(
                    Field("stream", "number"),
                    _NAME,
                    Field("kind", "as in the topology", Form.TEXT),
                    Field("sbdf", "PCI address in the guest, or unbound", Form.TEXT),
                    Field("context", "that it is in"),
                    Field("blocked", "whether all its DMA is refused", Form.BOOLEAN),
                    Field("failed", "whether it stopped in an exception", Form.BOOLEAN),
                ),
            ),
        ),
    ),
    Command(
        "statistics",
        "show what was counted since the server began",
        (
            Argument(
                "format",
                "json: `statistics`; prometheus: `text`, in the text format of Prometheus",
                Form.TEXT,
                default="json",
                choices=("json", "prometheus"),
            ),
        ),
        (
            Field(
                "statistics",
                "counters by name; `ops` has operations by kind; `dma_requests` and `dma_bytes` count DMA as it was "
                "done: native code makes other requests than Python for the same frames of a network card",
                Form.OBJECT,
            ),
            Field("text", "the same as Prometheus reads it", Form.TEXT),
            replace(_LINKS, help=f"{_LINKS.help}, if there are any, as of `links`"),
        ),
    ),
    Command("links", "list the network cards, with their links and what was counted", result=(_LINKS,)),
    Command(
        "link",
        "set the link of a network card up or down, as by plugging its cable in or out; the guest is told",
        (
            _CARD,
            Argument("state", "up or down", Form.TEXT, required=True, choices=("up", "down")),
        ),
        (
            _NAME,
            Field("up", "whether the guest now sees the link up: the other end may be down", Form.BOOLEAN),
        ),
    ),
    Command(
        "mac",
        "give a network card another address; the guest is told, and Linux uses it when its driver is bound anew",
        (
            _CARD,
            Argument("address", "as 52:54:00:12:34:56", Form.TEXT, required=True),
        ),
        (
            _NAME,
            Field("mac", "the address that it now has", Form.TEXT),
        ),
    ),
    Command(
        "faults",
        "list the last refused DMA requests, each with why",
        paged(16, MOST_FAULTS, "number of the fault"),
        (
            Field("faults", "in order, the last 1024 at most", Form.LIST, fields=_FAULT),
            Field("count", "refused since the server began"),
            Field("unexplained", "of which too many came at a time to be explained"),
            _NEXT,
        ),
        "faults",
    ),
    Command(
        "explain",
        "say why DMA to an address is refused, or was; behind an SMMU, what its structures and tables make of it",
        (
            Argument("iova", "device address", Form.HEX, "bytes", required=True),
            Argument("context", "context to look into", most=(1 << 16) - 1),
            Argument("stream", "endpoint whose context to look into", most=(1 << 32) - 1),
            Argument("pasid", "of DMA that has one, of a stream behind an SMMU", most=(1 << 20) - 1),
        ),
        (
            *_EXPLAINED[:2],
            Field("iova", "the address", Form.HEX, "bytes"),
            Field("context", "that was looked into"),
            *_EXPLAINED[2:],
            Field("fault", "the last refused request in this page", Form.OBJECT, fields=_FAULT[:-1]),
            Field("smmu", "of a stream behind an SMMU: what a write there meets", Form.OBJECT, fields=_WALKED),
            Field("reads", "there: what decides that, in the order in which it is read", Form.LIST, fields=_READ),
            Field(
                "cached",
                "there: what the SMMU or the endpoint's ATC has cached otherwise, as an invalidation is missing",
                Form.LIST,
            ),
        ),
    ),
    Command(
        "smmus",
        "list virtual SMMUs and their last events",
        (),
        (
            Field("smmus", "of the topology", Form.LIST, fields=_SMMUS),
            Field("events", "of each 16 at most, the last one first", Form.LIST, fields=_SMMU_EVENTS),
        ),
    ),
    Command(
        "operations",
        "list recorded operations",
        paged(64, MOST_OPERATIONS, "number of the operation; the oldest one that is left if that is gone,"),
        (Field("operations", "in order", Form.LIST, fields=_OPERATION), _NEXT),
        "operations",
    ),
    Command(
        "trace",
        "log vfio-user messages, or do not any more",
        (Argument("state", "on or off", Form.TEXT, required=True, choices=("on", "off")),),
        (Field("trace", "whether they are logged now", Form.BOOLEAN),),
    ),
    Command(
        "reset",
        "reset a function as its client would: registers and, of the PV-IOMMU, contexts and bindings",
        (Argument("function", "name of its socket", Form.TEXT, required=True),),
    ),
    Command(
        "snapshot",
        "write the state of the whole machine to a file; stop the guest before",
        (Argument("file", "on the server's host", Form.PATH, required=True),),
        (Field("bytes", "written"),),
    ),
    Command(
        "restore",
        "go on from such a file; clients with the same guest memory are there already",
        (Argument("file", "on the server's host", Form.PATH, required=True),),
    ),
    Command("rules", "show the fault rules that are loaded, and what they did so far", result=_VERDICT),
    Command(
        "rules-load",
        "replace the fault rules by those of a scenario; those that go are judged, and what they held goes on, unless "
        "it hangs",
        (Argument("scenario", "as in docs/faults.md", Form.OBJECT, required=True),),
        (Field("loaded", "rules"),),
    ),
    Command(
        "rules-unload",
        "take the fault rules away; shows what they did, which is part of the server's verdict",
        result=_VERDICT[:-1],
    ),
    Command(
        "resume",
        "let go on what a rule suspended",
        (Argument("tag", "that the rule gave", Form.TEXT, required=True),),
        (Field("resumed", "calls"),),
    ),
    Command("quit", "end the server: clients are dropped, its sockets removed"),
)
"""In the order in which they are shown."""
