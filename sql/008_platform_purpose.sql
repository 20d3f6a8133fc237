-- What a database is for: real or simulated prices, never both.

CREATE TABLE platform_purpose (
    only_row   BOOLEAN PRIMARY KEY DEFAULT true CONSTRAINT chk_one_purpose CHECK (only_row),
    purpose    TEXT NOT NULL CONSTRAINT chk_purpose_known CHECK (purpose IN ('real', 'simulated')),
    claimed_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE platform_purpose IS 'Whether this database holds real or simulated prices. One row: whoever comes first decides.';
COMMENT ON COLUMN platform_purpose.only_row IS 'Always true.';
COMMENT ON COLUMN platform_purpose.purpose IS 'real, or simulated by `pulseguard demo`.';
COMMENT ON COLUMN platform_purpose.claimed_at IS 'When the first platform started on it.';
COMMENT ON CONSTRAINT platform_purpose_pkey ON platform_purpose IS 'With chk_one_purpose: a single row.';
COMMENT ON CONSTRAINT chk_one_purpose ON platform_purpose IS 'There is one purpose.';
COMMENT ON CONSTRAINT chk_purpose_known ON platform_purpose IS 'Real or simulated.';
