-- Incidents: what is wrong, once however often it repeats, and the messages that tell of it.
--
--   * One incident is open per cause. What is found again continues it; what comes back soon after it
--     was resolved is the same incident again, and mails nobody: it flaps.
--   * Only a look that was made resolves anything, and only when the cause stayed away for a while.
--   * Messages are queued in the transaction that decides on them, one for each channel, and wait
--     until the channel has accepted them.
--
-- All of it is decided by observe_incidents(). The words of a message are the caller's.

CREATE TABLE incidents (
    id               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cause            TEXT NOT NULL CONSTRAINT chk_cause_present CHECK (cause <> ''),
    area             TEXT NOT NULL,
    kind             TEXT NOT NULL,
    severity         TEXT NOT NULL CONSTRAINT chk_severity_known CHECK (severity IN ('warning', 'error', 'critical')),
    subject          TEXT NOT NULL,
    title            TEXT NOT NULL,
    message          TEXT NOT NULL,
    link             TEXT,
    help             TEXT,
    first_seen       TIMESTAMPTZ NOT NULL,
    last_seen        TIMESTAMPTZ NOT NULL,
    occurrences      BIGINT NOT NULL CONSTRAINT chk_occurred CHECK (occurrences >= 1),
    counted          BIGINT NOT NULL,
    rounds           BIGINT NOT NULL DEFAULT 1,
    absent_since     TIMESTAMPTZ,
    resolved_at      TIMESTAMPTZ,
    flaps            INTEGER NOT NULL DEFAULT 0,
    last_reminded_at TIMESTAMPTZ,
    CONSTRAINT chk_resolved_when_absent CHECK (resolved_at IS NULL OR coalesce(absent_since <= resolved_at, false))
);
CREATE UNIQUE INDEX idx_incidents_open ON incidents (cause) WHERE resolved_at IS NULL;
CREATE INDEX idx_incidents_resolved ON incidents (resolved_at);
COMMENT ON TABLE incidents IS 'What went wrong, one row per cause and spell. SELECT * FROM incidents WHERE resolved_at IS NULL shows what is wrong now.';
COMMENT ON COLUMN incidents.id IS 'Number of the incident.';
COMMENT ON COLUMN incidents.cause IS 'Stable key of what is wrong, such as sensor:coingecko_price_sensor:FAILING.';
COMMENT ON COLUMN incidents.area IS 'What a round must have looked at to find this cause, or to find it gone.';
COMMENT ON COLUMN incidents.kind IS 'Kind of trouble, such as FAILING.';
COMMENT ON COLUMN incidents.severity IS 'warning, error or critical.';
COMMENT ON COLUMN incidents.subject IS 'The asset, sensor, schedule or table concerned.';
COMMENT ON COLUMN incidents.title IS 'A few words.';
COMMENT ON COLUMN incidents.message IS 'A sentence that says what is wrong, as last found.';
COMMENT ON COLUMN incidents.link IS 'Path in the web interface.';
COMMENT ON COLUMN incidents.help IS 'Command or query to copy.';
COMMENT ON COLUMN incidents.first_seen IS 'When it was found first.';
COMMENT ON COLUMN incidents.last_seen IS 'When it was found last.';
COMMENT ON COLUMN incidents.occurrences IS 'How often it happened: 100 failing ticks are 100.';
COMMENT ON COLUMN incidents.counted IS 'The count in the newest finding. The next one adds what it has more; a smaller one began anew and is added whole.';
COMMENT ON COLUMN incidents.rounds IS 'In how many rounds it was found.';
COMMENT ON COLUMN incidents.absent_since IS 'Since when it is no longer found; NULL while it is.';
COMMENT ON COLUMN incidents.resolved_at IS 'When it was taken for gone; NULL while it is open.';
COMMENT ON COLUMN incidents.flaps IS 'How often it came back soon after it was resolved.';
COMMENT ON COLUMN incidents.last_reminded_at IS 'When reminders were queued last.';
COMMENT ON CONSTRAINT incidents_pkey ON incidents IS 'Incidents are numbered.';
COMMENT ON CONSTRAINT chk_cause_present ON incidents IS 'A cause has a name.';
COMMENT ON CONSTRAINT chk_severity_known ON incidents IS 'Three severities.';
COMMENT ON CONSTRAINT chk_occurred ON incidents IS 'What is found happened at least once.';
COMMENT ON CONSTRAINT chk_resolved_when_absent ON incidents IS 'Nothing is resolved that is still found.';
COMMENT ON INDEX idx_incidents_open IS 'One open incident per cause.';
COMMENT ON INDEX idx_incidents_resolved IS 'Incidents by age, for retention and for looking back.';

CREATE TABLE incident_messages (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    incident_id     BIGINT NOT NULL REFERENCES incidents (id) ON DELETE CASCADE,
    kind            TEXT NOT NULL CONSTRAINT chk_message_kind_known CHECK (kind IN ('opened', 'reminder', 'recovered')),
    channel         TEXT NOT NULL,
    title           TEXT,
    body            TEXT,
    created_at      TIMESTAMPTZ NOT NULL,
    sent_at         TIMESTAMPTZ,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TIMESTAMPTZ NOT NULL,
    last_error      TEXT,
    dropped_at      TIMESTAMPTZ,
    dropped_because TEXT,
    CONSTRAINT chk_sent_or_dropped CHECK (sent_at IS NULL OR dropped_at IS NULL),
    CONSTRAINT chk_dropped_with_reason CHECK ((dropped_at IS NULL) = (dropped_because IS NULL))
);
CREATE INDEX idx_incident_messages_incident ON incident_messages (incident_id, channel);
CREATE INDEX idx_incident_messages_waiting ON incident_messages (next_attempt_at)
    WHERE sent_at IS NULL AND dropped_at IS NULL;
COMMENT ON TABLE incident_messages IS 'The outbox: one row per message and channel. It waits until the channel has accepted it, or until there is nothing left to tell.';
COMMENT ON COLUMN incident_messages.id IS 'Number of the message.';
COMMENT ON COLUMN incident_messages.incident_id IS 'What it tells of.';
COMMENT ON COLUMN incident_messages.kind IS 'opened, reminder or recovered.';
COMMENT ON COLUMN incident_messages.channel IS 'Where it goes: scheme and place in PULSEGUARD_ALERT_URLS, never an address.';
COMMENT ON COLUMN incident_messages.title IS 'First line; NULL until it is worded, by whoever had it queued.';
COMMENT ON COLUMN incident_messages.body IS 'The text, worded together with the title.';
COMMENT ON COLUMN incident_messages.created_at IS 'When it was queued.';
COMMENT ON COLUMN incident_messages.sent_at IS 'When the channel accepted it.';
COMMENT ON COLUMN incident_messages.attempts IS 'How often it was refused.';
COMMENT ON COLUMN incident_messages.next_attempt_at IS 'Not tried before.';
COMMENT ON COLUMN incident_messages.last_error IS 'Why it was refused last, without any secret.';
COMMENT ON COLUMN incident_messages.dropped_at IS 'When it was given up.';
COMMENT ON COLUMN incident_messages.dropped_because IS 'Why it was given up.';
COMMENT ON CONSTRAINT incident_messages_pkey ON incident_messages IS 'Messages are numbered.';
COMMENT ON CONSTRAINT incident_messages_incident_id_fkey ON incident_messages IS 'A message goes with its incident.';
COMMENT ON CONSTRAINT chk_message_kind_known ON incident_messages IS 'Three kinds.';
COMMENT ON CONSTRAINT chk_sent_or_dropped ON incident_messages IS 'What was accepted is not given up.';
COMMENT ON CONSTRAINT chk_dropped_with_reason ON incident_messages IS 'Nothing is given up without a word.';
COMMENT ON INDEX idx_incident_messages_incident IS 'The messages of an incident, by channel.';
COMMENT ON INDEX idx_incident_messages_waiting IS 'What waits to be sent.';

-- An open incident has no resolved_at, and so no age.
INSERT INTO retention_policy (table_name, keep, at_least, age_column) VALUES
    ('incidents', '90 days', '1 day', 'resolved_at');

CREATE FUNCTION drop_unsent_messages(incident BIGINT, kinds TEXT[], because TEXT, now TIMESTAMPTZ) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    -- Waits for one that is being sent just now, and then leaves it as it was sent.
    UPDATE incident_messages AS m
    SET dropped_at = drop_unsent_messages.now, dropped_because = because
    WHERE m.incident_id = incident AND m.kind = ANY (kinds) AND m.sent_at IS NULL AND m.dropped_at IS NULL
$$;
COMMENT ON FUNCTION drop_unsent_messages(BIGINT, TEXT[], TEXT, TIMESTAMPTZ) IS
    'Gives up the messages of these kinds about an incident that no channel has accepted yet.';

CREATE FUNCTION channels_told(incident BIGINT) RETURNS TABLE (channel TEXT, last_kind TEXT)
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT DISTINCT ON (m.channel) m.channel, m.kind FROM incident_messages m
    WHERE m.incident_id = incident AND m.sent_at IS NOT NULL
    ORDER BY m.channel, m.sent_at DESC, m.id DESC
$$;
COMMENT ON FUNCTION channels_told(BIGINT) IS
    'The channels that have accepted a message about an incident, with the kind of the last one: what their reader believes.';

CREATE FUNCTION record_finding(finding JSONB, now TIMESTAMPTZ, reopen INTERVAL, OUT incident BIGINT, OUT change TEXT)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    known incidents;
    count BIGINT := coalesce((finding ->> 'occurrences')::bigint, 1);
BEGIN
    SELECT * INTO known FROM incidents i
    WHERE i.cause = finding ->> 'cause' AND (i.resolved_at IS NULL OR i.resolved_at >= record_finding.now - reopen)
    ORDER BY i.resolved_at DESC NULLS FIRST, i.id DESC LIMIT 1;
    IF known.id IS NULL THEN
        change := 'opened';
        INSERT INTO incidents (
            cause, area, kind, severity, subject, title, message, link, help,
            first_seen, last_seen, occurrences, counted)
        VALUES (
            finding ->> 'cause', finding ->> 'area', finding ->> 'kind', finding ->> 'severity',
            finding ->> 'subject', finding ->> 'title', finding ->> 'message', finding ->> 'link',
            finding ->> 'help', record_finding.now, record_finding.now, count, count)
        RETURNING id INTO incident;
        RETURN;
    END IF;
    incident := known.id;
    change := CASE WHEN known.resolved_at IS NULL THEN 'continued' ELSE 'reopened' END;
    UPDATE incidents i SET
        area = finding ->> 'area', kind = finding ->> 'kind', severity = finding ->> 'severity',
        subject = finding ->> 'subject', title = finding ->> 'title', message = finding ->> 'message',
        link = finding ->> 'link', help = finding ->> 'help',
        last_seen = greatest(i.last_seen, record_finding.now),
        occurrences = i.occurrences + CASE WHEN count >= i.counted THEN count - i.counted ELSE count END,
        counted = count,
        rounds = i.rounds + 1,
        absent_since = NULL, resolved_at = NULL,
        flaps = i.flaps + (i.resolved_at IS NOT NULL)::integer
    WHERE i.id = incident;
END
$$;
COMMENT ON FUNCTION record_finding(JSONB, TIMESTAMPTZ, INTERVAL) IS
    'Enters one finding: continues the open incident of its cause, reopens one that was resolved less than `reopen` ago, or opens a new one. Returns its number and which of the three it was: continued, reopened, opened.';

CREATE FUNCTION resolve_absent(causes TEXT[], areas TEXT[], now TIMESTAMPTZ, hold INTERVAL) RETURNS SETOF BIGINT
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
BEGIN
    -- Not those found by somebody who looked later than this round did.
    UPDATE incidents i SET absent_since = resolve_absent.now
    WHERE i.resolved_at IS NULL AND i.absent_since IS NULL AND i.area = ANY (areas)
      AND i.cause <> ALL (causes) AND i.last_seen < resolve_absent.now;
    RETURN QUERY
        UPDATE incidents i SET resolved_at = resolve_absent.now
        WHERE i.resolved_at IS NULL AND i.area = ANY (areas)
          AND i.cause <> ALL (causes) AND i.absent_since <= resolve_absent.now - hold
        RETURNING i.id;
END
$$;
COMMENT ON FUNCTION resolve_absent(TEXT[], TEXT[], TIMESTAMPTZ, INTERVAL) IS
    'Marks as absent the open incidents of these areas whose cause was not found, and resolves those that have been absent for `hold`. Returns the numbers of the resolved.';

CREATE FUNCTION observe_incidents(
    findings JSONB, areas TEXT[], channels TEXT[], now TIMESTAMPTZ, reminder INTERVAL,
    hold INTERVAL DEFAULT '3 minutes', reopen INTERVAL DEFAULT '30 minutes',
    OUT opened INTEGER, OUT continued INTEGER, OUT resolved INTEGER, OUT reopened INTEGER
)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    finding JSONB;
    entered RECORD;
    gone    BIGINT;
    causes  TEXT[] := '{}';
BEGIN
    -- Two watchdogs look at the same world: the second continues what the first has opened.
    PERFORM pg_advisory_xact_lock(hashtextextended('pulseguard.observe_incidents', 0));
    opened := 0; continued := 0; resolved := 0; reopened := 0;
    FOR finding IN
        -- Of two findings of one cause, the graver.
        SELECT DISTINCT ON (f.value ->> 'cause') f.value
        FROM jsonb_array_elements(findings) WITH ORDINALITY AS f
        ORDER BY f.value ->> 'cause',
                 array_position(ARRAY['critical', 'error', 'warning'], f.value ->> 'severity'), f.ordinality
    LOOP
        causes := causes || (finding ->> 'cause');
        entered := record_finding(finding, observe_incidents.now, reopen);
        IF entered.change = 'opened' THEN
            opened := opened + 1;
            INSERT INTO incident_messages (incident_id, kind, channel, created_at, next_attempt_at)
            SELECT entered.incident, 'opened', c, observe_incidents.now, observe_incidents.now
            FROM unnest(channels) AS c;
        ELSIF entered.change = 'reopened' THEN
            reopened := reopened + 1;
            PERFORM drop_unsent_messages(entered.incident, '{recovered}', 'it came back', observe_incidents.now);
            -- Nobody there has heard of it yet, for it had recovered before the channel did.
            UPDATE incident_messages m
            SET dropped_at = NULL, dropped_because = NULL, title = NULL, body = NULL, next_attempt_at = observe_incidents.now
            WHERE m.incident_id = entered.incident AND m.kind = 'opened' AND m.dropped_at IS NOT NULL
              AND m.channel = ANY (channels)
              AND m.channel NOT IN (SELECT t.channel FROM channels_told(entered.incident) AS t);
        ELSE
            continued := continued + 1;
            UPDATE incidents i SET last_reminded_at = observe_incidents.now
            WHERE i.id = entered.incident
              AND coalesce(i.last_reminded_at, i.first_seen) <= observe_incidents.now - reminder;
            IF FOUND THEN
                -- A channel that has not accepted the last message yet gets no second one.
                INSERT INTO incident_messages (incident_id, kind, channel, created_at, next_attempt_at)
                SELECT entered.incident, 'reminder', c, observe_incidents.now, observe_incidents.now
                FROM unnest(channels) AS c
                WHERE NOT EXISTS (
                    SELECT FROM incident_messages m
                    WHERE m.incident_id = entered.incident AND m.channel = c
                      AND m.sent_at IS NULL AND m.dropped_at IS NULL);
            END IF;
        END IF;
    END LOOP;
    FOR gone IN SELECT resolve_absent(causes, areas, observe_incidents.now, hold) LOOP
        resolved := resolved + 1;
        PERFORM drop_unsent_messages(gone, '{opened,reminder}', 'it was over first', observe_incidents.now);
        INSERT INTO incident_messages (incident_id, kind, channel, created_at, next_attempt_at)
        SELECT gone, 'recovered', t.channel, observe_incidents.now, observe_incidents.now
        FROM channels_told(gone) AS t
        WHERE t.last_kind <> 'recovered' AND t.channel = ANY (channels);
    END LOOP;
END
$$;
COMMENT ON FUNCTION observe_incidents(JSONB, TEXT[], TEXT[], TIMESTAMPTZ, INTERVAL, INTERVAL, INTERVAL) IS
    'Enters one round of looking. findings: an array of objects (area, cause, kind, severity, subject, title, message, link, help, occurrences). areas: what the round could look at; only their incidents are resolved, once absent for `hold`. channels: who is told, of an incident once when it opens, then every `reminder`, then once when it is over; not of one that comes back within `reopen`. Returns how many were opened, continued, resolved and reopened.';
