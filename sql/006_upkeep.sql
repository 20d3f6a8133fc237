-- Sizes and index upkeep.

CREATE VIEW table_stats AS
SELECT n.nspname AS schemaname,
       parent.relname AS tablename,
       pg_size_pretty(sum(pg_total_relation_size(leaf.relid))) AS size,
       sum(pg_stat_get_tuples_inserted(leaf.relid))::bigint AS inserts,
       sum(pg_stat_get_tuples_updated(leaf.relid))::bigint AS updates,
       sum(pg_stat_get_tuples_deleted(leaf.relid))::bigint AS deletes,
       sum(pg_stat_get_live_tuples(leaf.relid))::bigint AS live_tuples,
       sum(pg_stat_get_dead_tuples(leaf.relid))::bigint AS dead_tuples,
       sum(pg_total_relation_size(leaf.relid))::bigint AS total_bytes,
       sum(pg_indexes_size(leaf.relid))::bigint AS index_bytes,
       count(*) FILTER (WHERE leaf.relid <> parent.oid)::integer AS partitions
FROM pg_class parent
JOIN pg_namespace n ON n.oid = parent.relnamespace
CROSS JOIN LATERAL (
    SELECT t.relid FROM pg_partition_tree(parent.oid) AS t WHERE t.isleaf
    UNION ALL
    SELECT parent.oid WHERE parent.relkind = 'r'
) AS leaf
WHERE n.nspname = 'public' AND parent.relkind IN ('r', 'p') AND NOT parent.relispartition
GROUP BY n.nspname, parent.relname
ORDER BY sum(pg_total_relation_size(leaf.relid)) DESC;
COMMENT ON VIEW table_stats IS 'One row per logical table: its real size with indexes over all partitions, and its row counts since the statistics began.';
COMMENT ON COLUMN table_stats.schemaname IS 'Schema.';
COMMENT ON COLUMN table_stats.tablename IS 'Logical table; its partitions are counted in.';
COMMENT ON COLUMN table_stats.size IS 'Size with indexes and TOAST, for people.';
COMMENT ON COLUMN table_stats.inserts IS 'Rows inserted.';
COMMENT ON COLUMN table_stats.updates IS 'Rows updated.';
COMMENT ON COLUMN table_stats.deletes IS 'Rows deleted.';
COMMENT ON COLUMN table_stats.live_tuples IS 'Rows there are now, as the statistics estimate it.';
COMMENT ON COLUMN table_stats.dead_tuples IS 'Dead row versions waiting for vacuum.';
COMMENT ON COLUMN table_stats.total_bytes IS 'Size with indexes and TOAST, in bytes.';
COMMENT ON COLUMN table_stats.index_bytes IS 'Size of the indexes alone, in bytes.';
COMMENT ON COLUMN table_stats.partitions IS 'Number of partitions, 0 for an ordinary table.';

CREATE FUNCTION maintain_indexes(worth_bytes BIGINT DEFAULT 8388608, bloat_limit DOUBLE PRECISION DEFAULT 0.5)
RETURNS TABLE (index_name TEXT, action TEXT, index_bytes BIGINT, bloat DOUBLE PRECISION)
LANGUAGE sql STABLE
SET search_path = public, pg_temp
AS $$
    WITH keys AS (
        -- NULL where a column has no statistics yet.
        SELECT i.indexrelid, i.indrelid,
               CASE WHEN count(*) = count(s.avg_width) THEN sum(s.avg_width) END AS width
        FROM pg_index i
        JOIN pg_class r ON r.oid = i.indrelid AND r.relnamespace = 'public'::regnamespace
        CROSS JOIN LATERAL unnest(i.indkey::smallint[]) AS key(attnum)
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
        LEFT JOIN pg_stats s ON s.schemaname = 'public' AND s.tablename = r.relname
                            AND s.attname = a.attname AND NOT s.inherited
        WHERE i.indisvalid
        GROUP BY i.indexrelid, i.indrelid
    ), measured AS (
        SELECT c.relname, pg_relation_size(c.oid) AS bytes,
               -- What the rows would need in a fresh index: a line pointer, and a header with the
               -- keys in steps of 8 bytes, on pages filled as REINDEX fills them. Entries that equal
               -- keys share only make the real index smaller, so this errs towards leaving it alone.
               -- The larger of two counts of rows: the live one starts from 0 after a crash.
               greatest(r.reltuples, pg_stat_get_live_tuples(r.oid))
                 * (4 + ceil((8 + k.width) / 8.0) * 8) / 0.9 + 8192 AS needed
        FROM keys k
        JOIN pg_class c ON c.oid = k.indexrelid AND c.relkind = 'i'
        JOIN pg_class r ON r.oid = k.indrelid
    )
    SELECT m.relname::text,
           CASE WHEN m.bytes >= worth_bytes AND 1 - m.needed / m.bytes > bloat_limit THEN 'reindex' ELSE 'keep' END,
           m.bytes,
           CASE WHEN m.bytes > 0 AND m.needed IS NOT NULL THEN greatest(1 - m.needed / m.bytes, 0) END
    FROM measured m
    ORDER BY 4 DESC NULLS LAST, 1
$$;
COMMENT ON FUNCTION maintain_indexes(BIGINT, DOUBLE PRECISION) IS
    'Judges every index by its measured bloat (share of its bytes that its rows do not need): action is reindex above bloat_limit and worth_bytes, else keep; bloat is NULL, and the index kept, before the table''s first ANALYZE. It does not rebuild: REINDEX CONCURRENTLY, which blocks nobody, cannot run inside a function, so the maintenance job executes it.';
