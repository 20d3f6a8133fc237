-- The sensors and schedules that the code defines, as the watchdog last saw them.
--
-- Dagster records those that have ticked or that a person has switched. One that was never started
-- leaves nothing there, and loading the code to ask it takes seconds. So the watchdog, which has the
-- code, writes down what is to be watched for those that have not: `pulseguard status`.

CREATE TABLE watch_list (
    kind            TEXT NOT NULL CONSTRAINT chk_watched_kind_known CHECK (kind IN ('sensor', 'schedule')),
    name            TEXT NOT NULL CONSTRAINT chk_watched_name_present CHECK (name <> ''),
    runs_by_default BOOLEAN NOT NULL,
    every           INTERVAL,
    cron            TEXT,
    PRIMARY KEY (kind, name),
    CONSTRAINT chk_watched_has_times CHECK (
        CASE kind WHEN 'sensor' THEN every > INTERVAL '0' AND cron IS NULL
                  ELSE cron <> '' AND every IS NULL END IS TRUE)
);
COMMENT ON TABLE watch_list IS 'The sensors and schedules that the code defines: what must tick, and how often. Kept by the watchdog.';
COMMENT ON COLUMN watch_list.kind IS 'sensor or schedule.';
COMMENT ON COLUMN watch_list.name IS 'Its name in the code and in the web interface.';
COMMENT ON COLUMN watch_list.runs_by_default IS 'Whether it runs unless somebody switches it off.';
COMMENT ON COLUMN watch_list.every IS 'How often a sensor ticks at most; NULL for a schedule.';
COMMENT ON COLUMN watch_list.cron IS 'When a schedule ticks, in UTC; NULL for a sensor.';
COMMENT ON CONSTRAINT watch_list_pkey ON watch_list IS 'One row per sensor and per schedule.';
COMMENT ON CONSTRAINT chk_watched_kind_known ON watch_list IS 'Two kinds.';
COMMENT ON CONSTRAINT chk_watched_name_present ON watch_list IS 'It has a name.';
COMMENT ON CONSTRAINT chk_watched_has_times ON watch_list IS 'A sensor has an interval, a schedule a cron line.';
