-- What was deleted is judged by how far its bucket was cleaned, and no longer by created_at.
--
-- The audit counts a row that cleanup deletes against the evidence, unless the row may have been there
-- and deleted before: that one has no bit of its own. Until now created_at decided it, and an answer
-- delivered once more after its minute was cleaned, or days late one level up, was counted twice. But a
-- label that no cleanup has reached yet was never deleted, whenever its row was recorded and arrived.
-- So the audit remembers up to where a bucket was cleaned, and counts each label at most once.

ALTER TABLE retention_audit ADD COLUMN cleaned_until TIMESTAMPTZ;
-- No cleanup reached further than the shortest period allows.
UPDATE retention_audit a SET cleaned_until = least(bucket_end(a.rollup, a.bucket), a.cleaned_at - r.at_least)
FROM retention_policy r WHERE r.table_name = a.table_name;
ALTER TABLE retention_audit ALTER COLUMN cleaned_until SET NOT NULL;
COMMENT ON COLUMN retention_audit.cleaned_until IS 'Rows of the bucket with labels before this may have been deleted by a cleanup; none with a later label was.';
COMMENT ON COLUMN retention_audit.rows_deleted IS 'Rows deleted whose label no cleanup had reached before. Each set an evidence bit of its own.';
COMMENT ON COLUMN retention_audit.rows_late IS 'Rows deleted whose label a cleanup had reached before. Such a row may have been there and deleted, so it has no bit of its own and is not judged.';

CREATE FUNCTION cleaned_until(timeframe TEXT, label TIMESTAMPTZ) RETURNS TIMESTAMPTZ
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    SELECT coalesce(max(a.cleaned_until), '-infinity')
    FROM timeframes c JOIN timeframes p ON p.child = c.name
    JOIN retention_audit a ON a.table_name = c.table_name AND a.rollup = p.name
                          AND a.bucket = bucket_start(p.name, cleaned_until.label)
    WHERE c.name = cleaned_until.timeframe
$$;
COMMENT ON FUNCTION cleaned_until(TEXT, TIMESTAMPTZ) IS
    'Up to where cleanups have reached in the buckets that hold this label of a timeframe; -infinity if none has.';

DROP FUNCTION count_deleted(TEXT, TIMESTAMPTZ, BIGINT, BIGINT, TIMESTAMPTZ);
CREATE FUNCTION count_deleted(
    timeframe TEXT, first TIMESTAMPTZ, until TIMESTAMPTZ, rows_in_time BIGINT, rows_late BIGINT, now TIMESTAMPTZ
) RETURNS VOID
LANGUAGE sql
SET search_path = public, pg_temp
AS $$
    INSERT INTO retention_audit AS counted
        (table_name, rollup, bucket, rows_deleted, rows_late, cleaned_at, cleaned_until)
    SELECT c.table_name, p.name, bucket_start(p.name, count_deleted.first), count_deleted.rows_in_time,
           count_deleted.rows_late, count_deleted.now, count_deleted.until
    FROM timeframes c JOIN timeframes p ON p.child = c.name
    WHERE c.name = count_deleted.timeframe AND count_deleted.rows_in_time + count_deleted.rows_late > 0
    ORDER BY p.ordinal
    ON CONFLICT (table_name, rollup, bucket) DO UPDATE SET
        rows_deleted = counted.rows_deleted + excluded.rows_deleted,
        rows_late = counted.rows_late + excluded.rows_late,
        cleaned_at = greatest(counted.cleaned_at, excluded.cleaned_at),
        cleaned_until = greatest(counted.cleaned_until, excluded.cleaned_until)
$$;
COMMENT ON FUNCTION count_deleted(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, BIGINT, BIGINT, TIMESTAMPTZ) IS
    'Adds deleted rows with first <= label < until, which lie in one bucket of each rollup of the timeframe, to retention_audit, for each of these.';

DROP FUNCTION count_rows(TEXT, TIMESTAMPTZ, TIMESTAMPTZ);
CREATE FUNCTION count_rows(
    timeframe TEXT, first TIMESTAMPTZ, until TIMESTAMPTZ, cleaned TIMESTAMPTZ, OUT stored BIGINT, OUT late BIGINT
)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    t timeframes;
BEGIN
    SELECT * INTO STRICT t FROM timeframes WHERE name = timeframe;
    EXECUTE format('SELECT count(*), count(*) FILTER (WHERE %2$I < $3) FROM public.%1$I WHERE %2$I >= $1 AND %2$I < $2',
                   t.table_name, t.label_column)
        USING first, until, cleaned INTO stored, late;
END
$$;
COMMENT ON FUNCTION count_rows(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TIMESTAMPTZ) IS
    'Rows of a timeframe with first <= label < until, and how many of them have a label before cleaned.';

CREATE OR REPLACE FUNCTION clean_bucket(
    timeframe TEXT, first TIMESTAMPTZ, until TIMESTAMPTZ, now TIMESTAMPTZ,
    OUT deleted BIGINT, OUT unproven BIGINT
)
LANGUAGE plpgsql
SET search_path = public, pg_temp
SET timezone = 'UTC'
AS $$
DECLARE
    labels    TIMESTAMPTZ[] := stored_labels(timeframe, first, until);
    cleaned   TIMESTAMPTZ := cleaned_until(timeframe, first);
    before    RECORD;
    remaining RECORD;
BEGIN
    before := count_rows(timeframe, first, until, cleaned);
    unproven := 0;
    deleted := delete_proven(timeframe, labels);
    IF deleted = 0 THEN
        -- Some row was never rolled up, because a job was late or never ran.
        PERFORM roll_up_parents(timeframe, first, until);
        deleted := delete_proven(timeframe, labels);
    END IF;
    IF deleted = 0 THEN
        deleted := delete_dominated(timeframe, first, until);
        remaining := count_rows(timeframe, first, until, cleaned);
        unproven := remaining.stored;
        before.late := before.late - remaining.late;
    END IF;
    PERFORM count_deleted(timeframe, first, until, deleted - before.late, before.late, now);
END
$$;

DROP FUNCTION recorded_in_time(TEXT);
CREATE OR REPLACE FUNCTION retention_audit_failures(now TIMESTAMPTZ DEFAULT now())
RETURNS TABLE (table_name TEXT, rollup TEXT, bucket TIMESTAMPTZ, rows_deleted BIGINT, rows_stored BIGINT, evidence BIGINT)
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp
SET timezone = 'UTC'
SET enable_nestloop = off
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    pair RECORD;
    span RECORD;
BEGIN
    FOR pair IN
        SELECT c.table_name AS child_table, c.label_column AS child_label,
               p.name, p.table_name, p.label_column, r.keep
        FROM timeframes p
        JOIN timeframes c ON c.name = p.child
        JOIN retention_policy r ON r.table_name = p.table_name
        ORDER BY p.ordinal
    LOOP
        -- A parent that may be deleted itself is not there to be compared with.
        SELECT min(a.bucket) AS first, max(a.bucket) AS last INTO span FROM retention_audit a
        WHERE a.table_name = pair.child_table AND a.rollup = pair.name
          AND (pair.keep IS NULL OR a.bucket >= retention_audit_failures.now - pair.keep);
        CONTINUE WHEN span.first IS NULL;
        RETURN QUERY EXECUTE format(
            'WITH audited AS (
                SELECT a.* FROM retention_audit a
                WHERE a.table_name = %1$L AND a.rollup = %10$L AND a.bucket BETWEEN %7$L AND %8$L)
             SELECT a.table_name, a.rollup, a.bucket, a.rows_deleted, coalesce(s.rows, 0), coalesce(e.bits, 0)
             FROM audited a
             LEFT JOIN (SELECT parent.%4$I AS bucket, sum(bit_count(parent.seen::bit(64)))::bigint AS bits
                        FROM public.%3$I AS parent WHERE parent.%4$I BETWEEN %7$L AND %8$L GROUP BY 1) AS e
               ON e.bucket = a.bucket
             LEFT JOIN (SELECT parent.%4$I AS bucket, count(*) AS rows
                        FROM public.%1$I AS child
                        JOIN public.%3$I AS parent
                          ON parent.coin_id = child.coin_id AND parent.%4$I = %5$s AND parent.seen & %6$s <> 0
                        JOIN audited ON audited.bucket = parent.%4$I AND child.%2$I >= audited.cleaned_until
                        WHERE child.%2$I >= %7$L AND child.%2$I < %9$L GROUP BY 1) AS s
               ON s.bucket = a.bucket
             WHERE a.rows_deleted + coalesce(s.rows, 0) > coalesce(e.bits, 0)
             ORDER BY a.bucket',
            pair.child_table, pair.child_label, pair.table_name, pair.label_column,
            bucket_expression(pair.name, format('child.%I', pair.child_label)),
            evidence_expression(pair.name, format('child.%I', pair.child_label)),
            span.first, span.last, bucket_end(pair.name, span.last), pair.name);
    END LOOP;
END
$$;
COMMENT ON FUNCTION retention_audit_failures(TIMESTAMPTZ) IS
    'Buckets from which more was deleted than they carry: rows deleted, and those with a later label still stored with their evidence bit, exceed the bits of all coins. Each label of a coin is counted at most once, each accepted row set its bit, and evidence never shrinks; so a row here means that something undominated was deleted, or evidence lost. Buckets old enough to be deleted themselves are not judged; nor are weeks, which no wider evidence counts.';
