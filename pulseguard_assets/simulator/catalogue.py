"""The coins of the invented market: who they are, not what they cost at a given minute.

Belongs here: ids, symbols, names, base prices, supplies and the days a coin came and went.
Does not: prices over time (`market`) and how a coin is written in an answer (`answers`).
Ids, symbols and names of the first coins are those of well-known ones so that screens look
familiar; every figure is invented.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final, Literal

EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
MINUTES_A_DAY: Final = 1440

#: Periods of the waves a price is made of, in minutes, with the share of each. No two are
#: commensurable, so that no two windows of a chart look alike.
WAVES: Final[tuple[tuple[float, float], ...]] = (
    (2_013_707.3, 0.45),
    (140_119.9, 0.22),
    (34_127.7, 0.11),
    (7_639.1, 0.045),
    (1_543.3, 0.02),
    (307.9, 0.008),
    (46.7, 0.003),
)
#: Largest relative step of a price from one minute to the next, beyond its waves.
JITTER: Final = 0.0015

Values = Literal["plain", "null", "absent"]


def minute_of(instant: datetime) -> int:
    """Whole minutes since 1970 of an aware datetime. Raises ValueError when it is naive."""
    return ms_of(instant) // 60_000


def ms_of(instant: datetime) -> int:
    """Whole milliseconds since 1970 of an aware datetime. Raises ValueError when it is naive."""
    if instant.tzinfo is None:
        raise ValueError(f"{instant!r} has no time zone; pass an aware datetime, best in UTC.")
    return (instant - EPOCH) // timedelta(milliseconds=1)


def instant_of(ms: int) -> datetime:
    """The UTC datetime of milliseconds since 1970."""
    return EPOCH + timedelta(milliseconds=ms)


def _day(year: int, month: int = 1, day: int = 1) -> int:
    return minute_of(datetime(year, month, day, tzinfo=timezone.utc))


@dataclass(frozen=True)
class Coin:
    """One coin. Times are minutes since 1970; `gone` is the half-open span it is delisted for.

    Attributes:
        waves: 14 factors, sine and cosine of each of `WAVES`, volatility included.
        jitter: relative size of the step between two minutes.
        turnover: 24 h volume in USD around which the coin's volume moves; may be 0.
        period: minutes between two updates of the coin by the provider.
        lag: minutes the provider is behind with this coin (0 for all but a forgotten one).
        values: `null` coins are answered with nulls, `absent` ones without any price at all.
        whole: the price is a whole number and is written without a decimal point.
    """

    index: int
    id: str
    symbol: str
    name: str
    image: str
    base: float
    supply: float
    turnover: float
    waves: tuple[float, ...]
    jitter: float
    salt: int
    ranked: bool = True
    period: int = 1
    lag: int = 0
    values: Values = "plain"
    whole: bool = False
    born: int = _day(2013, 4, 28)
    gone: tuple[int, int] | None = None

    @property
    def whole_cap(self) -> bool:
        """Whether the market cap is a whole number: a quarter are, and all that are 0."""
        return self.index % 4 == 3 or not self.supply

    def listed_at(self, minute: int) -> bool:
        """Whether the provider knew the coin in that minute."""
        if minute < self.born:
            return False
        return self.gone is None or not self.gone[0] <= minute < self.gone[1]

    def updated_minute(self, minute: int) -> int:
        """The minute of the provider's latest update as seen in `minute`."""
        return (minute - self.lag) // self.period * self.period


@dataclass(frozen=True)
class Known:
    """A coin written down by hand. `cap` is the market cap in USD at the base price."""

    id: str
    symbol: str
    name: str
    price: float
    cap: float
    volatility: float = 1.0
    ranked: bool = True
    period: int = 1
    lag: int = 0
    values: Values = "plain"
    whole: bool = False
    volume: float | None = None


WELL_KNOWN: Final[tuple[Known, ...]] = (
    Known("bitcoin", "btc", "Bitcoin", 64_000.0, 1.27e12, 0.6),
    Known("ethereum", "eth", "Ethereum", 3_100.0, 3.7e11, 0.7),
    Known("cardano", "ada", "Cardano", 0.55, 1.95e10),
    Known("tether", "usdt", "Tether", 1.0, 1.4e11, 0.002),
    Known("solana", "sol", "Solana", 150.0, 7.2e10),
    Known("binancecoin", "bnb", "BNB", 590.0, 8.6e10, 0.6),
    Known("ripple", "xrp", "XRP", 0.92, 5.2e10),
    Known("usd-coin", "usdc", "USDC", 0.9999, 3.9e10, 0.002),
    Known("dogecoin", "doge", "Dogecoin", 0.16, 2.4e10),
    Known("staked-ether", "steth", "Lido Staked Ether", 3_098.0, 2.9e10, 0.7),
    Known("tron", "trx", "TRON", 0.15, 1.3e10, 0.5),
    Known("avalanche-2", "avax", "Avalanche", 28.0, 1.15e10),
    Known("shiba-inu", "shib", "Shiba Inu", 1.9e-05, 1.12e10),
    Known("wrapped-bitcoin", "wbtc", "Wrapped Bitcoin", 63_950.0, 9.6e9, 0.6),
    Known("the-open-network", "ton", "Toncoin", 4.1, 1.04e10),
    Known("polkadot", "dot", "Polkadot", 5.2, 7.9e9),
    Known("chainlink", "link", "Chainlink", 13.0, 8.1e9),
    Known("bitcoin-cash", "bch", "Bitcoin Cash", 380.0, 7.5e9),
    Known("weth", "weth", "WETH", 3_099.0, 7.1e9, 0.7),
    Known("near", "near", "NEAR Protocol", 4.6, 5.6e9),
    Known("litecoin", "ltc", "Litecoin", 74.0, 5.5e9, 0.7),
    Known("pepe", "pepe", "Pepe", 9.4e-06, 3.9e9, 1.5),
    Known("uniswap", "uni", "Uniswap", 7.7, 4.6e9),
    Known("stellar", "xlm", "Stellar", 0.17, 5.0e9),
    Known("internet-computer", "icp", "Internet Computer", 8.4, 3.95e9),
    Known("monero", "xmr", "Monero", 158.0, 2.9e9, 0.5),
    Known("ethereum-classic", "etc", "Ethereum Classic", 20.0, 3.0e9),
    Known("dai", "dai", "Dai", 1.0, 3.4e9, 0.002),
    Known("cosmos", "atom", "Cosmos Hub", 5.0, 1.95e9),
    Known("filecoin", "fil", "Filecoin", 3.9, 2.3e9),
    Known("arbitrum", "arb", "Arbitrum", 0.61, 2.4e9),
    Known("vechain", "vet", "VeChain", 0.025, 2.0e9),
    Known("algorand", "algo", "Algorand", 0.14, 1.2e9),
    Known("aave", "aave", "Aave", 148.0, 2.2e9),
    Known("tezos", "xtz", "Tezos", 0.75, 7.6e8),
    Known("eos", "eos", "EOS", 0.52, 7.9e8),
    Known("maker", "mkr", "Maker", 1_480.0, 1.3e9),
    Known("zcash", "zec", "Zcash", 41.0, 6.5e8),
    Known("iota", "iota", "IOTA", 0.14, 4.9e8),
    Known("dash", "dash", "Dash", 26.0, 3.1e8),
    Known("golem", "glm", "Golem", 0.33, 3.4e8),
    Known("qtum", "qtum", "Qtum", 2.6, 2.75e8),
    # About as small as a coin of the first pages gets.
    Known("baby-doge-coin", "babydoge", "Baby Doge Coin", 2.264e-09, 3.6e8, 1.3),
    Known("siacoin", "sc", "Siacoin", 0.0045, 2.6e8),
    Known("binance-peg-weth", "weth", "Binance-Peg WETH", 3_097.0, 1.9e9, 0.7),
)

#: One coin for each oddity that a reader of the real provider meets sooner or later.
ODD: Final[tuple[Known, ...]] = (
    Known("_", "gib", "╲ (•◡•) ╱ Underscore", 0.0021, 4.4e8),
    Known("1move token", "1mt", "1Move Token", 0.0074, 4.2e8),
    Known("boringdao-[old]", "bor", "BoringDAO [OLD]", 121.0, 0.0, ranked=False),
    Known("-10", "10", "Minus Ten", 0.00041, 0.0, ranked=False),
    Known("4", "four", "4", 3.4, 4.0e8),
    Known(
        "the-very-long-and-winding-name-of-a-bridged-wrapped-staked-governance-go",
        "long",
        "The Very Long and Winding Name of a Bridged, Wrapped and Staked Governance Token on Base",
        1.7,
        3.8e8,
    ),
    Known("quoted-coin", "quo", 'The "Quoted" Coin, Inc.', 0.083, 3.7e8),
    Known("trailing-space", "nbsp", "Trailing Space\u00a0", 0.92, 3.6e8),
    Known("apostrophe", "apos", "Satoshi's Vision; DROP TABLE", 1.3, 3.5e8),
    Known("nameless-symbol", "", "Empty Symbol", 0.51, 3.4e8),
    Known("blank-symbol", " ", "Blank Symbol", 0.0062, 0.0, ranked=False),
    Known("cjk-symbol", "比特熊", "比特熊 Bear", 0.0033, 3.3e8),
    Known("emoji-symbol", "🚀🌕", "🚀 To the Moon 🌕", 8.1e-07, 3.2e8),
    Known("rtl-symbol", "دينار", "دينار رقمي", 0.27, 3.1e8),
    Known("upper-symbol", "USDC.e", "Bridged USDC.e", 0.9997, 3.05e8, 0.002),
    # A coin of the first page that nobody has updated for twelve days.
    Known("forgotten-coin", "fgt", "Forgotten", 0.77, 9.0e8, period=1440, lag=12 * 1440),
    Known("tiniest-coin", "tiny", "Tiniest", 1e-12, 2.9e8, 0.5),
    Known("dust-inu", "dust", "Dust Inu", 3.271e-09, 2.8e8, 1.2),
    Known("tinier-unranked", "tnr", "Tinier", 4.6e-11, 0.0, ranked=False),
    # Whole numbers where its neighbours have fractions: schema inference goes wrong here.
    Known("whole-coin", "whole", "Whole Coin", 12.0, 2.7e8, whole=True),
    Known("unit-coin", "unit", "Unit Coin", 1.0, 2.6e8, 0.0, whole=True),
    Known("huge-price", "huge", "Huge Price", 8.4e12, 2.5e8, 0.3),
    Known("zero-cap", "zcap", "Zero Cap", 0.044, 0.0, ranked=False),
    Known("capped-unranked", "cun", "Capped but Unranked", 0.38, 5.5e8, ranked=False),
    Known("no-volume", "nov", "No Volume", 0.061, 2.4e8, volume=0.0),
    Known("null-coin", "null", "Null Coin", 1.0, 0.0, ranked=False, values="null"),
    Known("absent-coin", "abs", "Absent Coin", 1.0, 0.0, ranked=False, values="absent"),
    Known("slow-coin", "slow", "Slow Coin", 2.2, 2.3e8, period=60),
)

_FIRST: Final[tuple[str, ...]] = tuple(
    re.findall(
        r"[a-z]+",
        """
        alpha amber arctic astro atlas aurora azure basalt beacon blaze bright cedar chrome
        cinder cobalt comet copper coral cosmic crystal dapper delta desert diamond dusk echo
        ember equinox falcon feral fire flux forest frost galactic garnet ghost glacier golden
        granite hidden hyper indigo iron ivory jade jolly jungle kinetic lava liquid lucky lunar
        magma maple marble meta midnight mint mystic nebula neon night noble nova oasis obsidian
        ocean omega onyx opal orbit pearl phantom pixel plasma polar prime pulse quantum quartz
        radiant rapid raven royal ruby rustic sacred sage scarlet shadow silent silver solar
        sonic spark star storm summit swift
        """,
    )
)
_SECOND: Final[tuple[str, ...]] = tuple(
    re.findall(
        r"[a-z]+",
        """
        ape badger bear bee bison bot bridge cat chain coin crab crane credit dao dex dog dollar
        dragon eagle elk finance fox frog fund game gecko gem goat gold hare hawk hippo ibis inu
        jay key koala kraken labs lion llama loop lynx mole monkey moose net node otter owl ox
        panda pepe pig pool protocol puma rabbit ram ray rhino rocket seal shark shield snail
        sphinx stag swan swap tiger toad token turtle vault viper wallet whale wolf yak yeti
        zebra
        """,
    )
)
_FLOURISHES = (
    '"{}"',
    "{}, the Second",
    "{}\u00a0",
    "{} (Wormhole)",
    "{} 🐸",
    "{} 币",
    "{}'s Coin",
    "{} & Friends <b>",
    "{} — v2.0",
    "  {}",
)
_PERIODS = (1, 1, 1, 2, 5, 10, 15, 30, 60)


def build(seed: int, count: int, *, churn: bool) -> list[Coin]:
    """The first `count` coins of the market of `seed`, each the same whatever the count.

    Args:
        churn: let generated coins be born and vanish between 2024 and 2028. Without it every
            coin has been listed since 2013.
    """
    written = (*WELL_KNOWN, *ODD)[:count]
    coins = [_from_known(seed, index, known) for index, known in enumerate(written)]
    coins += [_generated(seed, index, churn=churn) for index in range(len(coins), count)]
    return coins


def _from_known(seed: int, index: int, known: Known) -> Coin:
    rng = random.Random(f"{seed}/{known.id}")  # noqa: S311 - a market, not a secret
    cap = known.cap or 2e6
    supply = cap / known.price if known.cap else 0.0
    volume = cap * 0.04 if known.volume is None else known.volume
    return Coin(
        index=index,
        id=known.id,
        symbol=known.symbol,
        name=known.name,
        image=_image(index, known.id),
        base=known.price,
        supply=supply,
        turnover=volume,
        waves=_waves(rng, known.volatility),
        jitter=min(JITTER, JITTER * max(known.volatility, 0.05)),
        salt=rng.getrandbits(64),
        ranked=known.ranked,
        period=known.period,
        lag=known.lag,
        values=known.values,
        whole=known.whole,
    )


def _generated(seed: int, index: int, *, churn: bool) -> Coin:
    first = _FIRST[index % len(_FIRST)]
    second = _SECOND[index // 7 % len(_SECOND)]
    coin_id = f"{first}-{second}-{index:x}"
    rng = random.Random(f"{seed}/{coin_id}")  # noqa: S311 - a market, not a secret
    ranked = rng.random() > 0.36
    cap = 2.2e8 * (70 / index) ** 1.45 * math.exp(rng.gauss(0, 0.05))
    price = 10 ** (rng.uniform(-12, -6) if rng.random() < 0.04 else rng.uniform(-5, 2.5))
    born, gone = _lifetime(rng) if churn else (_day(2013, 4, 28), None)
    return Coin(
        index=index,
        id=coin_id,
        symbol=_symbol(rng, first, second, index),
        name=_name(rng, first, second, index),
        image=_image(index, coin_id),
        base=price,
        supply=cap / price if ranked else 0.0,
        turnover=10 ** rng.uniform(1, 5) if not ranked else cap * rng.uniform(0.001, 0.2),
        waves=_waves(rng, rng.uniform(0.6, 1.8)),
        jitter=JITTER,
        salt=rng.getrandbits(64),
        ranked=ranked,
        period=1 if index < 1000 else rng.choice(_PERIODS),
        values="null" if not ranked and rng.random() < 0.05 else "plain",
        born=born,
        gone=gone,
    )


def _symbol(rng: random.Random, first: str, second: str, index: int) -> str:
    draw = rng.random()
    if draw < 0.33:  # a third share their symbol with others
        return second[:4]
    if draw < 0.335:
        return rng.choice(("", "币", "🐸", "$$$"))
    return f"{first[:2]}{second[:2]}{index:x}"


def _name(rng: random.Random, first: str, second: str, index: int) -> str:
    plain = f"{first.title()} {second.title()} {index:x}"
    return rng.choice(_FLOURISHES).format(plain) if rng.random() < 0.04 else plain


def _lifetime(rng: random.Random) -> tuple[int, tuple[int, int] | None]:
    """Most coins are old and stay; some come, some go, and a few of those return."""
    never = _day(9999)
    born = rng.randrange(_day(2014), _day(2024))
    if rng.random() < 0.12:
        born = rng.randrange(_day(2024), _day(2028))
    if rng.random() > 0.05:
        return born, None
    away_from = rng.randrange(max(born, _day(2025)), _day(2029))
    returns = rng.random() < 0.2
    away_until = away_from + rng.randrange(1, 30) * MINUTES_A_DAY if returns else never
    return born, (away_from, away_until)


def _waves(rng: random.Random, volatility: float) -> tuple[float, ...]:
    factors: list[float] = []
    for _, share in WAVES:
        phase = rng.uniform(0, 2 * math.pi)
        factors += [volatility * share * math.cos(phase), volatility * share * math.sin(phase)]
    return tuple(factors)


def _image(index: int, coin_id: str) -> str:
    slug = "".join(c if c.isalnum() and c.isascii() else "-" for c in coin_id)
    return f"https://coin-images.coingecko.com/coins/images/{index + 1}/large/{slug}.png?1696501400"
