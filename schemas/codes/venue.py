"""Codes of the venue and the market: connections and answers, portfolio, paper exchange, market data."""

from __future__ import annotations

from typing import Final

from tallystick.schemas.codes.code import DEAD, ERROR, NOTICE, ORDER, Code

_ASKED: Final = (
    "Nothing at once: execution asks the venue what became of the order; look at the venue's status page if it goes on."
)
_DUMP: Final = "The line names file and line number: fetch the dump again, or correct the line."
_PAPER: Final = "Correct the paper exchange's configuration; `tallystick init` makes a new one."
_VALUE: Final = "Correct the value that the line names."

CODES: Final = (
    Code(
        "VENUE",
        ERROR,
        "The trust root names no such venue, or custody has no account there.",
        "Correct `[venue]` in `deployment.toml` and run `tallystick admit DIR`.",
    ),
    Code(
        "VENUE_AWAY",
        ORDER | NOTICE,
        "There is no connection to the venue; what was to be sent was not sent.",
        "Look at the network and at the venue's status page; it is tried again.",
    ),
    Code(
        "VENUE_ANSWER",
        ORDER | NOTICE,
        "An answer of the venue that cannot be read, is too long, or is about something else.",
        _ASKED,
    ),
    Code("NO_ANSWER", ORDER, "The connection to the venue broke after a request was sent.", _ASKED),
    Code("HTTP_*", ORDER, "The venue's HTTP status, where it gave no error number.", _ASKED),
    Code(
        "-*",
        ORDER,
        "The venue's own error number, with its text.",
        "Look the number up in the venue's documentation.",
    ),
    Code(
        "VENUE_BACKOFF",
        ORDER | NOTICE,
        "The venue asked for no more requests for a while (as a notice: of portfolio); nothing is sent until then.",
        "Send fewer orders, or look what else asks the venue from this address; a strategy may try again later.",
    ),
    Code(
        "VENUE_CLOCK",
        NOTICE,
        "The venue says that our clock and its own disagree.",
        "Set this machine's clock (NTP).",
    ),
    Code(
        "VENUE_CREDENTIAL",
        NOTICE,
        "The venue refuses the API key or its signature.",
        "Look whether the key is registered, not expired and bound to this address; if it is, somebody else may "
        "be using it.",
    ),
    Code("VENUE_REFUSED", NOTICE, "The venue refused a request of portfolio.", "The text holds the venue's words."),
    Code(
        "VENUE_TLS",
        ERROR,
        "The TLS context would not verify the venue, or would allow less than TLS 1.3.",
        "It is a defect to report.",
    ),
    Code(
        "VENUE_KIND",
        ERROR,
        "There is no adapter for a venue of this kind.",
        "Correct `venue.kind` in `deployment.toml`, or write an adapter.",
    ),
    Code("VENUE_HOST", ERROR, "The venue's host is not HOST:PORT.", "Correct `venue.host` in `deployment.toml`."),
    Code(
        "USER_STREAM_DOWN",
        NOTICE,
        "Portfolio's stream of fills and balances is down; it is opened again.",
        "Look at the network and at the venue's status page.",
    ),
    Code(
        "FILL_TOO_OLD",
        NOTICE,
        "A fill older than all that portfolio remembers; it is not counted again.",
        "Compare the position with the venue's.",
    ),
    Code(
        "FILL_WITHOUT_PERMIT",
        NOTICE,
        "A fill that no permit backs; the gateway counts it nowhere.",
        "Trip the breaker with `tallystick kill DIR` and look into the account: somebody else trades with its key.",
    ),
    Code(
        "POSITION_RANGE",
        NOTICE,
        "A fill that brings a position out of the range of numbers.",
        "Compare the position with the venue's.",
    ),
    Code(
        "EXCHANGE",
        ERROR,
        "The exchange library knows no such exchange.",
        "Correct the exchange's name in `deployment.toml`.",
    ),
    Code(
        "LIVE_SYMBOL",
        ERROR,
        "The exchange has no such market.",
        "Correct the instrument's symbol in `deployment.toml`.",
    ),
    Code(
        "LIVE_TRADE",
        ERROR,
        "A trade of the live feed is not in its form and is left out.",
        "Nothing, if seldom; else compare the pinned ccxt with the exchange's changes.",
    ),
    Code(
        "LIVE_QUOTE",
        ERROR,
        "A quote of the live feed is not in its form and is left out.",
        "Nothing, if seldom; else compare the pinned ccxt with the exchange's changes.",
    ),
    Code(
        "MARKET_DATA",
        ERROR,
        "The table `[market_data]` is wrong, or there is no instrument to show.",
        "Correct `[market_data]` in `deployment.toml`.",
    ),
    Code(
        "SYNTHETIC",
        ERROR,
        "The synthetic market cannot be made from these values.",
        "Give the instrument a `market_price` of at least four of its ticks.",
    ),
    Code(
        "DUMP_CHANGED",
        ERROR,
        "A dump changed between its check and its playing, or while it was read.",
        "Do not write to a dump that is played; start again.",
    ),
    Code("DUMP_COLUMNS", ERROR, "A line of a dump has the wrong number of columns.", _DUMP),
    Code(
        "DUMP_CHECKSUM",
        ERROR,
        "A dump is not what the exchange's checksum beside it says.",
        "Fetch the dump and its .CHECKSUM file again.",
    ),
    Code("DUMP_EMPTY", ERROR, "A dump without trades.", "Give a dump that holds trades; a day beside it is enough."),
    Code(
        "DUMP_FUTURES",
        ERROR,
        "A dump of futures.",
        "Fetch the spot dump: what is traded here is spot.",
    ),
    Code("DUMP_KINDS", ERROR, "Dumps of aggTrades and of trades in one run.", "Give dumps of one kind."),
    Code("DUMP_LINE", ERROR, "A line of a dump is broken.", _DUMP),
    Code(
        "DUMP_NAME",
        ERROR,
        "A dump whose name does not say what it holds.",
        "Name it as the exchange does: XRPETH-aggTrades-2019-10-11.zip.",
    ),
    Code("DUMP_NONE", ERROR, "No dump to play.", "Name a dump in `[market_data]`."),
    Code(
        "DUMP_ORDER",
        ERROR,
        "A dump in which ids go back, or times by more than an hour.",
        "Sort its lines by id, each once, as the line says, or fetch the dump again.",
    ),
    Code("DUMP_OVERLAP", ERROR, "Two dumps cover the same time.", "Give each day once."),
    Code("DUMP_PATH", ERROR, "A dump cannot be opened.", "Give a .zip or .csv file that is there."),
    Code(
        "DUMP_SYMBOL",
        ERROR,
        "A dump of a symbol that is no instrument here, or whose quote asset is not known.",
        "Declare the instrument in `deployment.toml`.",
    ),
    Code(
        "DUMP_ZIP",
        ERROR,
        "A dump that is no whole zip file with one .csv in it, is encrypted, or unpacks to too much.",
        "Fetch the dump again.",
    ),
    Code(
        "SPEED",
        ERROR,
        "A speed that is none, or at which the demo's market would be over too soon or last too long.",
        "Give a number above zero, for the demo within the bounds that the line names; for `replay`, also `max`.",
    ),
    Code("DURATION", ERROR, "A playing time that is not above zero.", _VALUE),
    Code(
        "PAPER",
        ERROR,
        "The paper exchange cannot start: the venue is another kind, or a file of its own is missing.",
        "Set `[venue]` to the paper exchange, or restore the folder from a backup.",
    ),
    Code("PAPER_CONFIG", ERROR, "The paper exchange's configuration cannot be read.", _PAPER),
    Code("PAPER_KEY", ERROR, "An API key of the paper exchange cannot be used or is not registered.", _PAPER),
    Code(
        "PAPER_STATE",
        ERROR,
        "The paper exchange's kept state disagrees with its configuration, or cannot be read or written.",
        "Put back the configuration, or remove the file that the line names to begin anew.",
    ),
    Code("PAPER_TLS", ERROR, "The paper exchange would allow less than TLS 1.3.", "It is a defect to report."),
    Code("COMMISSION", ERROR, "A commission of the paper exchange that is no share from 0 to below 1.", _PAPER),
    Code("DEPTH", ERROR, "A depth of the paper exchange out of its range.", _PAPER),
    Code("BALANCE", ERROR, "A balance of the paper exchange out of its range.", _PAPER),
    Code(
        "MARKET_SYMBOL",
        DEAD,
        "A trade of an instrument that the paper exchange does not have.",
        "Nothing; market data shows more than is traded here.",
    ),
    Code(
        "MARKET_PRICE",
        DEAD,
        "A trade at a price that the paper exchange's instrument cannot have.",
        "Correct the instrument's tick in `deployment.toml`.",
    ),
)
