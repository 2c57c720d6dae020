-- Every statement of the SQLite store: a name and what it is for, then the statement. Loaded by name at import.
-- Rules for editing: the migrations below are append-only; a released one is never changed. now_s() is the store's clock (seconds
-- since the epoch), given by connection.py. CROSS JOIN keeps the order of a join as it is written: from what is asked for to the rows.
-- Columns a list or a claim looks at lie in `jobs`, one short row each, so that renewing a thousand leases touches a dozen pages; the
-- documents lie apart. Rows of events and metrics are never deleted, so their rowid, which grows over the whole store, is also a
-- sequence within each job.

-- migration_1: the first layout
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE jobs (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    priority   INTEGER NOT NULL,
    created_us INTEGER NOT NULL,           -- microseconds since the epoch
    phase      TEXT NOT NULL,
    finished   INTEGER NOT NULL,           -- 1 once the phase is terminal
    schema     INTEGER NOT NULL,           -- of the document
    cancel_at  REAL,                       -- the user's wish, by the store's clock; its own column: no save can undo it
    token      INTEGER NOT NULL DEFAULT 0, -- the highest fencing token handed out
    holder     TEXT,                       -- NULL: given back, or never claimed
    expires    REAL NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX jobs_unfinished_name ON jobs (tenant, name) WHERE finished = 0;
CREATE INDEX jobs_to_claim ON jobs (priority DESC, created_us, id) WHERE finished = 0;
CREATE INDEX jobs_newest ON jobs (created_us DESC, id DESC);
CREATE INDEX jobs_held ON jobs (holder) WHERE holder IS NOT NULL;

CREATE TABLE documents (job INTEGER PRIMARY KEY, body TEXT NOT NULL);

CREATE TABLE events (seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX events_of_job ON events (job);

CREATE TABLE metrics (seq INTEGER PRIMARY KEY, job INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX metrics_of_job ON metrics (job);

-- Log bytes are only ever appended, whatever the stream, so that a save of a thousand streams' lines writes pages one after the
-- other. The index that finds them again is cut into segments of some ten thousand rows for the same reason: its entries for the
-- segment that is being written lie together. `extents` says in which segments a stream has bytes, and from which offset on.
CREATE TABLE streams (
    number  INTEGER PRIMARY KEY,
    job     INTEGER NOT NULL,
    name    TEXT NOT NULL,
    size    INTEGER NOT NULL DEFAULT 0,
    segment INTEGER NOT NULL DEFAULT -1    -- where it was last written
);
CREATE UNIQUE INDEX streams_of_job ON streams (job, name);
CREATE TABLE extents (
    stream  INTEGER NOT NULL,
    start   INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    PRIMARY KEY (stream, start)
) WITHOUT ROWID;
CREATE TABLE logs (
    number  INTEGER PRIMARY KEY,
    segment INTEGER NOT NULL,
    stream  INTEGER NOT NULL,
    start   INTEGER NOT NULL,
    bytes   BLOB NOT NULL
);
CREATE UNIQUE INDEX logs_of_segment ON logs (segment, stream, start);

-- migration_2: the ledger of tenants' money
CREATE TABLE entries (
    seq    INTEGER PRIMARY KEY,
    id     TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    job    TEXT,
    kind   TEXT NOT NULL,
    micros INTEGER NOT NULL,               -- millionths of a US dollar
    body   TEXT NOT NULL
);
CREATE INDEX entries_of_tenant ON entries (tenant, kind, micros);
CREATE INDEX entries_of_job ON entries (job);

-- set_meta: write one fact about the store, unless it is there
INSERT OR IGNORE INTO meta (key, value) VALUES (:key, :value);

-- get_meta: read one fact about the store
SELECT value FROM meta WHERE key = :key;

-- submit: put a new job at the end of its priority
INSERT INTO jobs (id, tenant, name, priority, created_us, phase, finished, schema)
VALUES (:id, :tenant, :name, :priority, :created_us, :phase, 0, :schema) RETURNING number;

-- add_document: the document of a new job
INSERT INTO documents (job, body) VALUES (:job, :body);

-- get: one job by its id
SELECT body, cancel_at FROM jobs JOIN documents ON job = number WHERE id = :id;

-- find: a page of jobs, newest first, below the cursor
SELECT body, cancel_at, created_us, id FROM jobs JOIN documents ON job = number
WHERE (:after_us IS NULL OR (created_us, id) < (:after_us, :after_id))
  AND (:tenant IS NULL OR tenant = :tenant)
  AND (:name IS NULL OR name = :name)
  AND (:phases IS NULL OR phase IN (SELECT value FROM json_each(:phases)))
ORDER BY created_us DESC, id DESC LIMIT :limit;

-- claim: take jobs nobody holds; the write lock makes the winner one
UPDATE jobs SET token = token + 1, holder = :holder, expires = now_s() + :lease_s
WHERE number IN (
    SELECT number FROM jobs
    WHERE finished = 0 AND expires <= now_s() AND schema <= :schema AND phase IN (SELECT value FROM json_each(:phases))
    ORDER BY priority DESC, created_us, id LIMIT :limit
)
RETURNING number;

-- claimed: what a claim took, in the order of the queue
SELECT body, cancel_at, token FROM json_each(:numbers) CROSS JOIN jobs ON jobs.number = value CROSS JOIN documents ON job = jobs.number
ORDER BY priority DESC, created_us, jobs.id;

-- renew: extend all leases that are still this holder's
UPDATE jobs SET expires = now_s() + :lease_s
WHERE number IN (
    SELECT number FROM json_each(:leases) AS wanted CROSS JOIN jobs ON jobs.id = wanted.key
    WHERE token = wanted.value AND holder = :holder
)
RETURNING id, cancel_at IS NOT NULL;

-- release: give leases back
UPDATE jobs SET holder = NULL, expires = 0
WHERE number IN (
    SELECT number FROM json_each(:leases) AS wanted CROSS JOIN jobs ON jobs.id = wanted.key
    WHERE token = wanted.value AND holder IS NOT NULL
)
RETURNING id;

-- evict: let a holder's leases run out
UPDATE jobs SET expires = 0 WHERE holder = :holder AND expires > now_s() RETURNING id;

-- holders: who has a lease that runs
SELECT DISTINCT holder FROM jobs WHERE holder IS NOT NULL AND expires > now_s() ORDER BY holder;

-- tokens: the current token of held jobs
SELECT jobs.id, number, token FROM json_each(:ids) CROSS JOIN jobs ON jobs.id = value WHERE holder IS NOT NULL;

-- set_job: the columns of a saved document
UPDATE jobs SET phase = :phase, finished = :finished, schema = :schema, priority = :priority WHERE number = :job;

-- set_document: the saved document
UPDATE documents SET body = :body WHERE job = :job;

-- add_event: append to a job's events
INSERT INTO events (job, body) VALUES (?, ?);

-- add_metric: append to a job's metrics
INSERT INTO metrics (job, body) VALUES (?, ?);

-- streams: how far streams are, wanted as [job, name] pairs
SELECT streams.job, name, streams.number, size, segment FROM json_each(:streams) AS wanted
CROSS JOIN streams ON streams.job = wanted.value ->> 0 AND name = wanted.value ->> 1;

-- add_stream: the first write of a stream
INSERT INTO streams (job, name) VALUES (?, ?) RETURNING number;

-- segment: where log bytes are written now
SELECT coalesce(max(number), 0) >> 15 FROM logs;

-- add_extent: from here on a stream has bytes in this segment
INSERT INTO extents (stream, start, segment) VALUES (?, ?, ?);

-- add_log: append bytes to a stream
INSERT INTO logs (segment, stream, start, bytes) VALUES (?, ?, ?, ?);

-- extend: how far a stream is now
UPDATE streams SET size = ?, segment = ? WHERE number = ?;

-- request_cancel: note the wish, keeping the first one's time
UPDATE jobs SET cancel_at = coalesce(cancel_at, now_s()) WHERE id = :id AND finished = 0 RETURNING number;

-- phase: where a job is
SELECT phase FROM jobs WHERE id = :id;

-- events: a job's events behind a sequence number
SELECT seq, body FROM events WHERE job = (SELECT number FROM jobs WHERE id = :id) AND seq > :after ORDER BY seq LIMIT :limit;

-- metrics: a job's metrics behind a sequence number
SELECT seq, body FROM metrics WHERE job = (SELECT number FROM jobs WHERE id = :id) AND seq > :after ORDER BY seq LIMIT :limit;

-- log_streams: a job's streams in order of first write
SELECT name, size FROM streams WHERE job = (SELECT number FROM jobs WHERE id = :id) ORDER BY number;

-- read_log: the chunks that overlap a range, beginning with the one that holds its first byte
WITH wanted AS (SELECT number FROM streams WHERE job = (SELECT number FROM jobs WHERE id = :id) AND name = :stream)
SELECT logs.start, logs.bytes FROM extents
CROSS JOIN logs ON logs.segment = extents.segment AND logs.stream = extents.stream
WHERE extents.stream = (SELECT number FROM wanted)
  AND extents.start < :end
  AND extents.start >= (SELECT max(start) FROM extents WHERE stream = (SELECT number FROM wanted) AND start <= :offset)
  AND logs.start < :end
  AND logs.start >= coalesce((
    SELECT max(start) FROM logs AS earlier
    WHERE earlier.segment = extents.segment AND earlier.stream = extents.stream AND earlier.start <= :offset
  ), 0)
ORDER BY extents.start, logs.start;

-- export: documents as they are, in order of submission
SELECT number, id, body, cancel_at FROM jobs JOIN documents ON job = number WHERE number > :after ORDER BY number LIMIT :limit;

-- add_entry: append to the ledger, unless it is there
INSERT OR IGNORE INTO entries (id, tenant, job, kind, micros, body) VALUES (?, ?, ?, ?, ?, ?);

-- balances: what tenants have left; charges are told and do not count
SELECT tenant, sum(micros) FROM entries WHERE kind <> 'charge' AND (:tenant IS NULL OR tenant = :tenant) GROUP BY tenant ORDER BY tenant;

-- entries: a tenant's entries behind a sequence number
SELECT seq, body FROM entries
WHERE (:tenant IS NULL OR tenant = :tenant) AND (:job IS NULL OR job = :job) AND seq > :after ORDER BY seq LIMIT :limit;
