"""The mutants: each breaks one rule, by one exact replacement of text.

Belongs here: what is broken, which promise of the README and which rule, and the tests that ought
to see it. Does not: the promises (`promises.py` reads them), running tests (`run.py`).

A function of `sql/` that a later migration defines anew is broken there, in its last definition.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One rule broken.

    Attributes:
        name: for the command line and the table.
        promise: the one of the README that is broken, by the words it begins with.
        rule: what no longer holds.
        file: from the top of the checkout.
        old: text that is in the file exactly once.
        new: what stands there instead.
        killers: arguments of pytest: the tests to try after those that the promise names, the
            quickest first.
    """

    name: str
    promise: str
    rule: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]


SCHEMA = "sql/001_initial_schema.sql"
CLOSES = "sql/003_close_rules.sql"
RETENTION = "sql/004_retention.sql"
ORDER = "sql/010_order_and_speed.sql"
HISTORY = "sql/011_history.sql"
CHECKS = "sql/012_checks.sql"
FILING = "sql/016_set_aside_last.sql"
MERGE = "sql/017_minute_planned_once.sql"
ROLES = "sql/018_roles.sql"
AUDIT = "sql/019_audit_by_label.sql"
CLOCK = "sql/020_clock_set_back.sql"

MERGE_TESTS = ("tests/database/test_merge_rule.py",)
ROLL_UP_TESTS = ("tests/database/test_roll_up.py",)
RETENTION_TESTS = ("tests/database/test_retention.py",)
PUT_TESTS = ("tests/database/test_put_staged.py", "tests/database/test_put_minutes.py")
HISTORY_TESTS = ("tests/database/test_history.py",)
SCHEMA_TESTS = ("tests/database/test_schema_objects.py",)
POLLING_TESTS = ("tests/collecting/test_polling.py",)
CLIENT_TESTS = ("tests/unit/coingecko/test_client.py",)
LEDGER_TESTS = ("tests/database/test_ledger_sql.py",)
ROLE_TESTS = ("tests/database/test_roles.py",)
STREAMS = ("tests/properties/test_any_stream.py",)

_ORDER = "format('(%2$s, %1$s.source <> ''history'', %1$s.created_at)', \"row\", close_ts)"

MUTANTS = (
    # -- the merge rule ----------------------------------------------------------------------------
    Mutant(
        "order without the minute",
        "The last observation is the close",
        "the later minute wins",
        ORDER,
        _ORDER,
        "format('(%1$s.source <> ''history'', %1$s.created_at)', \"row\", close_ts)",
        MERGE_TESTS,
    ),
    Mutant(
        "order without the source",
        "History closes the end",
        "within a minute, what was seen live beats a point of the past",
        ORDER,
        _ORDER,
        "format('(%2$s, %1$s.created_at)', \"row\", close_ts)",
        MERGE_TESTS,
    ),
    Mutant(
        "order without the recording",
        "The last observation is the close",
        "in the same minute the later recorded wins",
        ORDER,
        _ORDER,
        "format('(%2$s, %1$s.source <> ''history'')', \"row\", close_ts)",
        MERGE_TESTS,
    ),
    Mutant(
        "first writer wins a tie in a rollup",
        "The last observation is the close",
        "the incoming observation is taken if it is at least as late (>=)",
        MERGE,
        "AND %6$s >= %7$s",
        "AND %6$s > %7$s",
        MERGE_TESTS,
    ),
    Mutant(
        "first writer wins a tie in a minute",
        "The last observation is the close",
        "the incoming observation is taken if it is at least as late (>=)",
        FILING,
        "AND %2$s >= %3$s",
        "AND %2$s > %3$s",
        ("tests/properties/test_ties.py",),
    ),
    Mutant(
        "last writer wins a minute",
        "Any order",
        "in the same minute the later recorded wins, whichever is stored last",
        FILING,
        "AND %2$s >= %3$s",
        "",
        PUT_TESTS,
    ),
    Mutant(
        "last writer wins a rollup",
        "Any order",
        "the later observation wins, whichever is merged last",
        MERGE,
        "AND %6$s >= %7$s",
        "",
        MERGE_TESTS,
    ),
    Mutant(
        "unknown values carried over",
        "Never mixed",
        "columns of different observations are never mixed",
        MERGE,
        "volume_24h_usd = incoming.volume_24h_usd, coin_rank = incoming.coin_rank,",
        "volume_24h_usd = coalesce(incoming.volume_24h_usd, stored.volume_24h_usd), "
        "coin_rank = incoming.coin_rank,",
        MERGE_TESTS + STREAMS,
    ),
    Mutant(
        "evidence replaced",
        "Evidence",
        "evidence is the union of all children and never shrinks",
        MERGE,
        "source = incoming.source, close_ts = incoming.close_ts,\n"
        "            seen = stored.seen | incoming.seen",
        "source = incoming.source, close_ts = incoming.close_ts,\n            seen = incoming.seen",
        MERGE_TESTS,
    ),
    Mutant(
        "evidence of an older child lost",
        "Evidence",
        "evidence is ORed also when the close stays",
        MERGE,
        "WHEN MATCHED AND stored.seen | incoming.seen <> stored.seen",
        "WHEN MATCHED AND false",
        MERGE_TESTS,
    ),
    Mutant(
        "evidence of the child before",
        "Evidence",
        "each child has a bit of its own, in their order",
        ORDER,
        "date_part(%L, %s - %s)::integer)',",
        "greatest(date_part(%L, %s - %s)::integer - 1, 0))',",
        MERGE_TESTS,
    ),
    Mutant(
        "writes that change nothing",
        "Again is nothing",
        "repeating any step writes 0 rows",
        MERGE,
        "(stored.close_ts, stored.created_at, stored.price_usd, stored.market_cap_usd,",
        "(NULL::timestamptz, stored.created_at, stored.price_usd, stored.market_cap_usd,",
        ROLL_UP_TESTS,
    ),
    Mutant(
        "a minute written that is the same",
        "Again is nothing",
        "repeating any step writes 0 rows",
        FILING,
        "IS DISTINCT FROM\n               (kept.created_at, kept.price_usd,",
        "IS DISTINCT FROM\n               (NULL::timestamptz, kept.price_usd,",
        PUT_TESTS,
    ),
    Mutant(
        "no trigger on INSERT",
        "The hour is live",
        "the open hour is live",
        CLOSES,
        "AFTER INSERT ON minute_close REFERENCING NEW TABLE AS arrived\n    FOR EACH STATEMENT",
        "AFTER INSERT ON minute_close REFERENCING NEW TABLE AS arrived\n"
        "    FOR EACH STATEMENT WHEN (false)",
        MERGE_TESTS,
    ),
    Mutant(
        "no trigger on UPDATE",
        "Corrections flow up",
        "a correction reaches the open hour",
        CLOSES,
        "AFTER UPDATE ON minute_close REFERENCING NEW TABLE AS arrived\n    FOR EACH STATEMENT",
        "AFTER UPDATE ON minute_close REFERENCING NEW TABLE AS arrived\n"
        "    FOR EACH STATEMENT WHEN (false)",
        MERGE_TESTS,
    ),
    Mutant(
        "gaps carried forward",
        "Nothing is invented",
        "no observation, no row",
        MERGE,
        "'arrived', first, last), first, last);\n",
        "'arrived', first, last), first, last);\n"
        "    PERFORM add_monthly_partition('hourly_close', last + INTERVAL '1 hour');\n"
        "    INSERT INTO hourly_close (coin_id, hour_ts, price_usd, created_at)\n"
        "    SELECT coin_id, hour_ts + INTERVAL '1 hour', price_usd, created_at FROM hourly_close\n"
        "    WHERE hour_ts = date_trunc('hour', last, 'UTC') ON CONFLICT DO NOTHING;\n",
        MERGE_TESTS,
    ),
    # -- buckets -----------------------------------------------------------------------------------
    Mutant(
        "session time zone in a bucket",
        "UTC",
        "buckets are UTC whatever the session's time zone",
        CLOSES,
        "AS $$ SELECT date_trunc(t.unit, at, 'UTC') FROM timeframes t WHERE t.name = timeframe $$;",
        "AS $$ SELECT date_trunc(t.unit, at) FROM timeframes t WHERE t.name = timeframe $$;",
        ROLL_UP_TESTS + MERGE_TESTS,
    ),
    Mutant(
        "week from Sunday",
        "Labels",
        "a week begins on Monday 00:00",
        ORDER,
        "'date_bin(%L, %s, ''2000-01-03 00:00:00+00'')'",
        "'date_bin(%L, %s, ''2000-01-02 00:00:00+00'')'",
        ROLL_UP_TESTS,
    ),
    Mutant(
        "label within its bucket accepted",
        "Labels",
        "a label is the start of its bucket",
        SCHEMA,
        "CHECK (%2$s = %4$s)",
        "CHECK (%2$s >= %4$s)",
        SCHEMA_TESTS,
    ),
    Mutant(
        "close of another bucket accepted",
        "In its bucket",
        "no row whose observation lies outside its bucket",
        SCHEMA,
        "CHECK (%3$s = %2$s),",
        "CHECK (%3$s >= %2$s),",
        SCHEMA_TESTS,
    ),
    Mutant(
        "month from weeks",
        "The whole of its parts",
        "a month is built from days",
        SCHEMA,
        "'month',  'daily',  'day',    1,    31)",
        "'month',  'weekly', 'day',    1,    31)",
        ROLL_UP_TESTS,
    ),
    Mutant(
        "roll-up takes the next bucket's first child",
        "The whole of its parts",
        "a range is half-open: from <= label < to",
        CLOSES,
        "FROM public.%2$I WHERE %1$I >= $1 AND %1$I < $2',\n                   child.label_column",
        "FROM public.%2$I WHERE %1$I >= $1 AND %1$I <= $2',\n                   child.label_column",
        ROLL_UP_TESTS,
    ),
    # -- what is refused ---------------------------------------------------------------------------
    Mutant(
        "NaN accepted",
        "Real prices",
        "a price is a finite number",
        SCHEMA,
        "CHECK (price_usd > 0 AND price_usd < ''Infinity'')",
        "CHECK (price_usd > 0)",
        SCHEMA_TESTS,
    ),
    Mutant(
        "price 0 accepted",
        "Real prices",
        "a price is positive",
        SCHEMA,
        "CHECK (price_usd > 0 AND price_usd < ''Infinity'')",
        "CHECK (price_usd >= 0 AND price_usd < ''Infinity'')",
        SCHEMA_TESTS,
    ),
    Mutant(
        "price rounded",
        "Real prices",
        "a price is stored as it was told",
        SCHEMA,
        "price_usd      NUMERIC NOT NULL,",
        "price_usd      NUMERIC(20,8) NOT NULL,",
        SCHEMA_TESTS,
    ),
    Mutant(
        "future minute accepted by the fast way",
        "The present is not the past",
        "a minute of the future is faulty",
        "pulseguard_assets/warehouse/closes.py",
        "    if last <= now:\n",
        "    if last is not None:\n",
        ("tests/database/test_put_minutes.py",),
    ),
    Mutant(
        "future minute accepted by the careful way",
        "The present is not the past",
        "a minute of the future is faulty",
        FILING,
        "WHEN s.minute_ts > put_staged_minutes.now THEN",
        "WHEN false THEN",
        PUT_TESTS,
    ),
    Mutant(
        "a bad row fails its batch",
        "One bad coin",
        "one bad coin never costs its batch",
        "pulseguard_assets/warehouse/closes.py",
        "except (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded):",
        "except psycopg.NotSupportedError:",
        ("tests/database/test_put_minutes.py",),
    ),
    Mutant(
        "repeated faults not counted",
        "One bad coin",
        "rejected rows are accounted for one by one",
        FILING,
        "times = r.times + excluded.times,",
        "times = r.times,",
        ("tests/database/test_put_minutes.py",),
    ),
    # -- retention ---------------------------------------------------------------------------------
    Mutant(
        "retention by age only",
        "Nothing lost",
        "only dominated rows are deleted",
        ORDER,
        "oldest, newest, labels) || proof;",
        "oldest, newest, labels);",
        RETENTION_TESTS,
    ),
    Mutant(
        "proof without evidence",
        "Nothing lost",
        "dominated means that the parent has the child's evidence bit",
        ORDER,
        "AND %1$I.seen & %4$s <> 0 AND %5$s >= %6$s'",
        "AND %5$s >= %6$s'",
        RETENTION_TESTS,
    ),
    Mutant(
        "proof without the close",
        "Nothing lost",
        "dominated means that the parent's close is at least as new",
        ORDER,
        "AND %1$I.seen & %4$s <> 0 AND %5$s >= %6$s'",
        "AND %1$I.seen & %4$s <> 0'",
        RETENTION_TESTS,
    ),
    Mutant(
        "proof demands a newer close",
        "Kept for its period",
        "a close as new as the child's is enough",
        ORDER,
        "AND %1$I.seen & %4$s <> 0 AND %5$s >= %6$s'",
        "AND %1$I.seen & %4$s <> 0 AND %5$s > %6$s'",
        RETENTION_TESTS,
    ),
    Mutant(
        "days need one parent only",
        "Nothing lost",
        "daily rows need both their week and their month",
        ORDER,
        "' AND ' ORDER BY p.ordinal)\n        FROM timeframes p WHERE p.child = timeframe)",
        "' OR ' ORDER BY p.ordinal)\n        FROM timeframes p WHERE p.child = timeframe)",
        RETENTION_TESTS,
    ),
    Mutant(
        "cleanup does not roll up",
        "Nothing lost",
        "cleanup rolls up what it is about to delete",
        AUDIT,
        "        PERFORM roll_up_parents(timeframe, first, until);\n",
        "        PERFORM 1;\n",
        RETENTION_TESTS,
    ),
    Mutant(
        "the row at the cut-off deleted",
        "Kept for its period",
        "a row exactly as old as its period stays",
        ORDER,
        "generate_series($1, $2 - INTERVAL ''1 microsecond'', $3)",
        "generate_series($1, $2, $3)",
        RETENTION_TESTS,
    ),
    Mutant(
        "current buckets deleted",
        "Kept for its period",
        "rows are kept for their period",
        RETENTION,
        "lock_for_cleanup.now - r.keep AS cutoff",
        "lock_for_cleanup.now AS cutoff",
        RETENTION_TESTS,
    ),
    Mutant(
        "audit does not count",
        "Every deletion is audited",
        "what was deleted is counted, to be checked later",
        AUDIT,
        "PERFORM count_deleted(timeframe, first, until, deleted - before.late, before.late, now);",
        "PERFORM 1;",
        RETENTION_TESTS,
    ),
    Mutant(
        "audit accuses nobody",
        "Every deletion is audited",
        "more deleted than is carried is reported",
        AUDIT,
        "> coalesce(e.bits, 0)\n",
        "> coalesce(e.bits, 0) + 1\n",
        RETENTION_TESTS,
    ),
    Mutant(
        "what comes again counted again",
        "Every deletion is audited",
        "nobody is accused for bringing the same once more",
        AUDIT,
        "FILTER (WHERE %2$I < $3)",
        "FILTER (WHERE false)",
        RETENTION_TESTS,
    ),
    Mutant(
        "undominated partition dropped",
        "Nothing lost",
        "a partition with an undominated row is not dropped",
        RETENTION,
        "        IF left_over > 0 THEN\n",
        "        IF false THEN\n",
        RETENTION_TESTS,
    ),
    Mutant(
        "partition dropped while its month lasts",
        "Kept for its period",
        "only partitions that end before the period are dropped",
        RETENTION,
        "WHERE upper_bound <= cutoff LOOP",
        "WHERE lower_bound <= cutoff LOOP",
        RETENTION_TESTS,
    ),
    # -- history -----------------------------------------------------------------------------------
    Mutant(
        "history replaces a stored minute",
        "History replaces nothing",
        "a point of history never replaces a stored minute",
        FILING,
        "WHERE excluded.source <> ''history''\n           AND %2$s >= %3$s",
        "WHERE %2$s >= %3$s",
        ("tests/properties/test_ties.py", *PUT_TESTS, *HISTORY_TESTS),
    ),
    Mutant(
        "a point of an hour at its turn",
        "History closes the end",
        "an hourly or daily point was observed five minutes before the end",
        HISTORY,
        "THEN turn - INTERVAL '5 minutes'",
        "THEN turn",
        HISTORY_TESTS,
    ),
    Mutant(
        "a point a quarter past left out",
        "History closes the end",
        "a point stamped up to 15 minutes after the turn closes the bucket before",
        HISTORY,
        "stamp - turn <= INTERVAL '15 minutes'",
        "stamp - turn < INTERVAL '15 minutes'",
        HISTORY_TESTS,
    ),
    Mutant(
        "points beyond the window",
        "History closes the end",
        "only observations of [from, to) are stored",
        FILING,
        '(minute_ts >= "from" AND minute_ts < "to") IS NOT true',
        '(minute_ts >= "from" AND minute_ts <= "to") IS NOT true',
        HISTORY_TESTS,
    ),
    Mutant(
        "unsettled points taken for closes",
        "History closes the end",
        "a price still running is no close",
        "pulseguard_assets/coingecko/frames.py",
        "pl.lit(now - UNSETTLED,",
        "pl.lit(now,",
        ("tests/unit/coingecko/test_frames.py",),
    ),
    # -- what the database says about itself -------------------------------------------------------
    Mutant(
        "lacking evidence not told",
        "It tells on itself",
        "a parent that lacks its child's bit is found",
        CHECKS,
        "WHEN parent.seen & child.bit = 0 THEN",
        "WHEN false THEN",
        ("tests/database/test_checks_sql.py",),
    ),
    Mutant(
        "an old close not told",
        "It tells on itself",
        "a parent that is older than its child is found",
        CHECKS,
        "WHEN %8$s > %9$s\n",
        "WHEN false\n",
        ("tests/database/test_checks_sql.py",),
    ),
    # -- collecting --------------------------------------------------------------------------------
    Mutant(
        "minute of the answer",
        "The present is not the past",
        "every row of a tick carries the minute in which the tick began",
        "pulseguard_assets/collecting/polling.py",
        "minute_ts=pl.lit(self._report.minute),",
        "minute_ts=pl.lit(minute_of(answer.received_at)),",
        POLLING_TESTS,
    ),
    Mutant(
        "a past hour polled",
        "The present is not the past",
        "a price of now is never stored under a past minute",
        "pulseguard_assets/assets/minute_close.py",
        "            if hours.end <= now:\n",
        "            if hours.end <= now - timedelta(days=365):\n",
        ("tests/platform/test_assets.py",),
    ),
    Mutant(
        "recorded at the tick",
        "Every close says when",
        "created_at is the instant at which the response arrived",
        "pulseguard_assets/collecting/polling.py",
        "created_at=pl.lit(answer.received_at),",
        "created_at=pl.lit(self._report.minute),",
        POLLING_TESTS,
    ),
    Mutant(
        "a coin deleted by a sweep",
        "Coins stay",
        "a coin that leaves the list is never deleted",
        CLOCK,
        "    WITH judged AS (\n        SELECT s.*, CASE",
        "    DELETE FROM coin_priorities c WHERE NOT EXISTS (SELECT FROM minute_close m\n"
        "        WHERE m.coin_id = c.coin_id)\n"
        "        AND c.coin_id NOT IN (SELECT s.coin_id FROM pg_temp.staged_coins s);\n"
        "    WITH judged AS (\n        SELECT s.*, CASE",
        ("tests/database/test_coins.py", "tests/collecting/test_sweep.py"),
    ),
    Mutant(
        "credits counted twice",
        "The budget holds",
        "every attempt costs one credit",
        CLOCK,
        "total_calls = day.total_calls + 1,",
        "total_calls = day.total_calls + 2,",
        LEDGER_TESTS,
    ),
    Mutant(
        "the first of the month is free",
        "The budget holds",
        "calls of the month stay within its credits",
        CLOCK,
        "WHERE day.date >= this_month;",
        "WHERE day.date > this_month;",
        LEDGER_TESTS,
    ),
    Mutant(
        "retry on 4xx",
        "The budget holds",
        "a definite failure is not tried again",
        "pulseguard_assets/coingecko/client.py",
        "except (RateLimitReached, ProviderUnavailable) as error:\n                if number"
        " == self._limits.attempts or not self._pause(call, error, number):",
        "except ProviderError as error:\n                if number == self._limits.attempts:",
        CLIENT_TESTS,
    ),
    Mutant(
        "key in the address",
        "The key stays secret",
        "the key travels in the header and nowhere else",
        "pulseguard_assets/coingecko/client.py",
        'url=f"{self._base}{path}?{query}" if query else',
        'url=f"{self._base}{path}?{query}&x_cg_pro_api_key={self._secret}" if query else',
        CLIENT_TESTS,
    ),
    Mutant(
        "history spends what was spent",
        "The budget holds",
        "history takes no call from the polls to come",
        "pulseguard_assets/collecting/budget.py",
        "free = max(0, ceiling - spent - calls_to_come(polling, now))",
        "free = max(0, ceiling - spent)",
        ("tests/collecting/test_budget.py",),
    ),
    Mutant(
        "the reserve spent",
        "The budget holds",
        "calls of the month stay within its credits less the reserve",
        "pulseguard_assets/coingecko/planner.py",
        "return int(plan.credits_per_month * (1 - Fraction(reserve_percent) / 100))",
        "return int(plan.credits_per_month)",
        POLLING_TESTS,
    ),
    # -- who may do what ---------------------------------------------------------------------------
    Mutant(
        "a writer deletes",
        "Least rights",
        "a close is deleted only by what proves that nothing is lost",
        ROLES,
        "ELSE 'INSERT, UPDATE' END",
        "ELSE 'INSERT, UPDATE, DELETE' END",
        ROLE_TESTS,
    ),
    Mutant(
        "a writer writes to partitions",
        "Least rights",
        "no row passes the triggers by",
        ROLES,
        "WHEN c.relkind NOT IN ('r', 'p') OR c.relispartition THEN NULL",
        "WHEN c.relkind NOT IN ('r', 'p') THEN NULL",
        ROLE_TESTS,
    ),
    Mutant(
        "a writer forges the audit",
        "Least rights",
        "the audit of deletions is cleanup's own",
        ROLES,
        "'timeframes', 'retention_audit')",
        "'timeframes')",
        ROLE_TESTS,
    ),
    Mutant(
        "cleanup as the caller",
        "Least rights",
        "a mere writer can clean up",
        ROLES,
        "ALTER FUNCTION cleanup_old_data(TIMESTAMPTZ) SECURITY DEFINER",
        "ALTER FUNCTION cleanup_old_data(TIMESTAMPTZ) SECURITY INVOKER",
        ROLE_TESTS,
    ),
    Mutant(
        "partitions of any table",
        "Least rights",
        "what runs as the owner does no more than it is for",
        ROLES,
        "IF NOT EXISTS (SELECT FROM timeframes t WHERE",
        "IF false AND NOT EXISTS (SELECT FROM timeframes t WHERE",
        ROLE_TESTS,
    ),
    Mutant(
        "functions for everybody",
        "Least rights",
        "nobody but the three roles may do anything",
        ROLES,
        "EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', it.name);",
        "NULL;",
        ROLE_TESTS,
    ),
    Mutant(
        "a reader calls what writes",
        "Least rights",
        "a reader only reads",
        ROLES,
        "p.provolatile <> 'v' AND NOT p.prosecdef AS reads",
        "true AS reads",
        ROLE_TESTS,
    ),
    Mutant(
        "a migrator keeps what it makes",
        "Least rights",
        "what a later migration makes belongs to the owner",
        "pulseguard_assets/warehouse/migrations.py",
        "    if due:\n        _become_owner(connection)\n",
        "",
        ROLE_TESTS,
    ),
    Mutant(
        "a migration without grants",
        "Least rights",
        "what a later migration makes is for the roles as well",
        "pulseguard_assets/warehouse/migrations.py",
        'connection.execute("SELECT public.grant_rights()")',
        "pass",
        ROLE_TESTS,
    ),
)
