-- Every minute stores a row per coin, so each index of minute_close is paid for a thousand times a
-- minute. idx_recent_minute_close begins with the label and answers what a B-tree on the label alone
-- would. What is left for idx_minute_close_time are aggregates over long stretches of time, which a
-- block range index serves at a thousandth of the size and next to no cost per row.
DROP INDEX idx_minute_close_time;
CREATE INDEX idx_minute_close_time ON minute_close USING brin (minute_ts) WITH (pages_per_range = 32);
COMMENT ON INDEX idx_minute_close_time IS
    'Aggregates over long stretches of minutes: a block range index, since rows arrive in the order of time. Newest label and short ranges are for idx_recent_minute_close.';
