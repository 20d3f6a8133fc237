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
    WITH measured AS (
        SELECT i.indexrelid, c.relname,
               pg_relation_size(i.indexrelid) AS bytes,
               -- What the live rows would need in a fresh index: a line pointer, a header and the
               -- key of each, on pages filled as REINDEX fills them. Shared entries of equal keys
               -- only make the real index smaller, so the estimate errs towards leaving it alone.
               pg_stat_get_live_tuples(i.indrelid)
                 * (12 + coalesce(sum(s.avg_width), 8)) / 0.9 + 8192 AS needed
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
        JOIN pg_class r ON r.oid = i.indrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
        CROSS JOIN LATERAL unnest(i.indkey::smallint[]) AS key(attnum)
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = key.attnum
        LEFT JOIN pg_stats s ON s.schemaname = 'public' AND s.tablename = r.relname AND s.attname = a.attname
        WHERE i.indisvalid
        GROUP BY i.indexrelid, i.indrelid, c.relname
    )
    SELECT m.relname::text,
           CASE WHEN m.bytes >= worth_bytes AND 1 - m.needed / m.bytes > bloat_limit THEN 'reindex' ELSE 'keep' END,
           m.bytes,
           greatest(1 - m.needed / nullif(m.bytes, 0), 0)
    FROM measured m
    ORDER BY 4 DESC NULLS LAST, 1
$$;
COMMENT ON FUNCTION maintain_indexes(BIGINT, DOUBLE PRECISION) IS
    'Judges every index by its measured bloat (share of its bytes that its rows do not need): action is reindex above bloat_limit and worth_bytes, else keep. It does not rebuild: REINDEX CONCURRENTLY, which blocks nobody, cannot run inside a function, so the maintenance job executes it.';
