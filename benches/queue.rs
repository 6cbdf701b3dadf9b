//! What the queue costs beside the database that it stands on, and whether its depth matters. `cargo bench --bench queue -- --events N`
//! for another size than a million.
//!
//! On a real file in the file system of the target directory. What is compared takes turns in one run, so that whatever else the
//! machine does hits all of it alike; large tables are filled by SQL that makes the rows which the store would make.

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use chatfn::model::{AppId, RawJson, TriggerType, VersionNumber};
use chatfn::store::{ClaimedEvent, Disposition, NewEvent, QueueLimits, Store};
use futures_util::future::try_join_all;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const EVENTS: u64 = 1_000_000;
/// In which bare commits and the store take turns.
const ROUNDS: usize = 5;
/// Claimed at a time, as the dispatcher does.
const CLAIM_BATCH: u32 = 32;
/// Deleted at a time, as the service does.
const PURGE_BATCH: u32 = 1000;
/// Rows that are made in one transaction.
const FILL_BATCH: u64 = 50_000;
/// One is the app with the hot key.
const APPS: u64 = 1000;
const PAYLOAD: &str =
    r#"{"user":{"name":"jane"},"channel":{"id":1},"message":{"body":"How are you? I am fine, and so is the queue."}}"#;
const NO_LIMITS: QueueLimits = QueueLimits { of_app: u64::MAX, in_all: u64::MAX };

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let events = arguments.iter().position(|text| text == "--events").and_then(|at| arguments.get(at + 1));
    let events = events.map_or(Ok(EVENTS), |text| text.replace('_', "").parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        enqueue().await?;
        deliver().await?;
        deep(events).await
    })
}

/// A store of its own.
struct Bench {
    store: Store,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let file = directory.path().join("store.db");
        let store = Store::open(&file, NO_LIMITS).await?;
        let bench = Self { store, file, _directory: directory };
        let mut sql = connect(&bench.file).await?;
        let apps = format!(
            "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {APPS} - 1)
             INSERT INTO apps (id, last_version, created_at, description) SELECT 'app-' || n, 1, 0, '' FROM n"
        );
        sqlx::query(AssertSqlSafe(apps)).execute(&mut sql).await?;
        Ok(bench)
    }

    /// Makes `count` rows from the columns that `of` gives for the number `n`, which goes on from the last row's.
    async fn fill(&self, count: u64, of: &str) -> Result<Duration> {
        let begin = Instant::now();
        let mut sql = connect(&self.file).await?;
        let first: i64 = sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) + 1 FROM events").fetch_one(&mut sql).await?;
        let (mut from, end) = (first as u64, first as u64 + count);
        while from < end {
            let last = (from + FILL_BATCH).min(end) - 1;
            let insert = format!(
                "WITH RECURSIVE n (n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM n WHERE n < {last})
                 INSERT INTO events (seq, place, id, trigger_type, version, payload_json, attempt, enqueued_at, since,
                     app_id, ordering_key, state, due_at, finished_at, claim_id)
                 SELECT n, n, printf('01900000-0000-7000-8000-%012x', n), 'UserSentMessage', 1, '{PAYLOAD}', 0, {EPOCH} + n,
                     {EPOCH} + n, {of} FROM n"
            );
            sqlx::query(AssertSqlSafe(insert)).execute(&mut sql).await?;
            from = last + 1;
        }
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut sql).await?;
        sql.close().await?;
        Ok(begin.elapsed())
    }

    /// Without the write-ahead log.
    fn megabytes(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.file)?.len() >> 20)
    }
}

/// As durable as the store.
async fn connect(file: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true).foreign_keys(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    Ok(SqliteConnection::connect_with(&options).await?)
}

/// Milliseconds; all times here come after it, but before now.
const EPOCH: u64 = 1_700_000_000_000;

fn app(number: u64) -> AppId {
    format!("app-{number}").parse().expect("an id")
}

fn event(app: &AppId, key: Option<String>) -> NewEvent {
    let now = SystemTime::now();
    NewEvent {
        app: app.clone(),
        trigger_type: TriggerType::stored("UserSentMessage".to_owned()),
        version: VersionNumber(1),
        payload: RawJson::trusted(PAYLOAD),
        ordering_key: key,
        idempotency_key: None,
        due_at: now,
        enqueued_at: now,
        batch: None,
        hops: 0,
        trace: None,
        dead: None,
    }
}

/// (a) Sustained enqueue, as a ratio to bare commits of groups of the same size.
async fn enqueue() -> Result<()> {
    println!(
        "enqueue: events/s, medians of {ROUNDS}; bare: rows of the same content, no index, in groups of the same size"
    );
    println!("{:<34}{:>8}{:>12}{:>12}{:>8}", "", "group", "bare", "enqueue", "ratio");
    for (name, callers, each, keyed, idempotent) in [
        ("16 callers", 16, 100, false, false),
        ("128 callers", 128, 60, false, false),
        ("512 callers", 512, 40, false, false),
        ("512 callers, ordering keys", 512, 40, true, false),
        ("512 callers, both keys", 512, 40, true, true),
    ] {
        let bench = Bench::new().await?;
        let mut bare = Bare::new().await?;
        let (mut rates, mut bare_rates, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let (before, begin, app) = (bench.store.queue_batches(), Instant::now(), app(1));
            try_join_all((0..callers).map(|caller| {
                let (store, app) = (bench.store.clone(), app.clone());
                tokio::spawn(async move {
                    for n in 0..each {
                        let mut event = event(&app, keyed.then(|| format!("channel {caller}")));
                        event.idempotency_key = idempotent.then(|| format!("{round} {caller} {n}"));
                        store.enqueue(event).await.expect("enqueue");
                    }
                })
            }))
            .await?;
            let (took, events): (Duration, u64) = (begin.elapsed(), callers * each);
            let group = events.div_ceil(bench.store.queue_batches() - before);
            let bare_took = bare.commit(events, group).await?;
            if round > 0 {
                rates.push(events as f64 / took.as_secs_f64());
                bare_rates.push(events as f64 / bare_took.as_secs_f64());
                groups.push(group as f64);
            }
        }
        let (bare, enqueue) = (median(&mut bare_rates), median(&mut rates));
        let ratio = enqueue / bare;
        println!("{name:<34}{:>8.0}{bare:>12.0}{enqueue:>12.0}{ratio:>7.2}×", median(&mut groups));
        bench.store.close().await;
    }
    Ok(())
}

/// The database alone.
struct Bare {
    sql: SqliteConnection,
    _directory: tempfile::TempDir,
}

impl Bare {
    async fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let mut sql = connect(&directory.path().join("bare.db")).await?;
        let table =
            "CREATE TABLE bare (seq INTEGER PRIMARY KEY, id TEXT, app_id TEXT, trigger_type TEXT, version BIGINT,
            payload_json TEXT, ordering_key TEXT, idempotency_key TEXT, state BIGINT, attempt BIGINT, due_at BIGINT,
            enqueued_at BIGINT, since BIGINT, hops BIGINT, place BIGINT)";
        sqlx::query(table).execute(&mut sql).await?;
        Ok(Self { sql, _directory: directory })
    }

    async fn commit(&mut self, events: u64, group: u64) -> Result<Duration> {
        let begin = Instant::now();
        let mut left = events;
        while left > 0 {
            let mut tx = self.sql.begin_with("BEGIN IMMEDIATE").await?;
            for _ in 0..left.min(group) {
                let insert =
                    "INSERT INTO bare (id, app_id, trigger_type, version, payload_json, ordering_key, idempotency_key,
                    state, attempt, due_at, enqueued_at, since, hops, place)
                    VALUES ($1, $2, $3, $4, $5, NULL, NULL, 0, 0, $6, $6, $6, 0, 0)";
                let id = chatfn::model::EventId::new().to_string();
                let query = sqlx::query(insert).bind(id).bind("app-1").bind("UserSentMessage").bind(1i64).bind(PAYLOAD);
                query.bind(EPOCH as i64).execute(&mut *tx).await?;
            }
            tx.commit().await?;
            left = left.saturating_sub(group);
        }
        Ok(begin.elapsed())
    }
}

/// (b) Claims of 32 whose ends come together, as when functions take no time.
async fn deliver() -> Result<()> {
    let bench = Bench::new().await?;
    println!("\nclaim and finish: events/s, claims of {CLAIM_BATCH}");
    for (name, of) in [
        ("no keys", format!("'app-1', NULL, 0, {EPOCH}, NULL, NULL")),
        (
            "lines of ten",
            format!("'app-1', 'k' || (n / 10), CASE n % 10 WHEN 0 THEN 0 ELSE 5 END, {EPOCH}, NULL, NULL"),
        ),
    ] {
        let events = 10_000;
        bench.fill(events, &of).await?;
        let (begin, mut done) = (Instant::now(), 0);
        loop {
            let claimed = claim(&bench.store, &app(1), CLAIM_BATCH).await?;
            if claimed.is_empty() {
                break;
            }
            done += claimed.len();
            try_join_all(claimed.iter().map(|claimed| finish(&bench.store, claimed))).await?;
        }
        println!("{name:<34}{:>10.0}", done as f64 / begin.elapsed().as_secs_f64());
    }
    bench.store.close().await;
    Ok(())
}

async fn claim(store: &Store, app: &AppId, limit: u32) -> Result<Vec<ClaimedEvent>> {
    let now = SystemTime::now();
    Ok(store.claim(&[(app.clone(), limit)], now + Duration::from_secs(60), now).await?)
}

async fn finish(store: &Store, claimed: &ClaimedEvent) -> Result<()> {
    if !store.finish_claim(claimed, Disposition::Done, Vec::new(), None, SystemTime::now()).await? {
        return Err("a claim was not ours".into());
    }
    Ok(())
}

/// (e), (d), (c): the same file, filled with what is finished, purged, and filled again with what waits.
async fn deep(events: u64) -> Result<()> {
    let queued = (events / 10).max(1000);
    let mut bench = Bench::new().await?;
    let finished = format!("'app-' || (n % {APPS}), NULL, 2, {EPOCH}, {EPOCH} + n, NULL");
    let waiting = format!("'app-' || (n % {APPS}), NULL, 0, {EPOCH} + n, NULL, NULL");
    let took = bench.fill(events, &finished).await?;
    println!("\n{events} finished events take {} MB (made in {took:.1?})", bench.megabytes()?);
    restart(&mut bench, queued, &waiting).await?;
    purge(&bench, events).await?;

    // One line as long as it may be; all the others at once, as if every app had a backlog.
    let hot = "'app-0', 'hot', 5, 0, NULL, NULL";
    let head = format!("'app-0', 'hot', 0, {EPOCH}, NULL, NULL");
    let others = format!("'app-' || (1 + n % ({APPS} - 1)), NULL, 0, {EPOCH} + n, NULL, NULL");
    bench.fill(1, &head).await?;
    bench.fill(queued - 1, hot).await?;
    bench.fill(events - queued, &others).await?;
    println!("{events} events queued again: the file has {} MB", bench.megabytes()?);
    depth(&bench, queued).await?;
    bench.store.close().await;
    Ok(())
}

/// (d)
async fn restart(bench: &mut Bench, queued: u64, waiting: &str) -> Result<()> {
    bench.fill(queued, waiting).await?;
    bench.fill(100, &format!("'app-1', NULL, 1, {EPOCH}, NULL, 1")).await?;
    let mut total = Vec::new();
    let mut steps = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        bench.store.close().await;
        let begin = Instant::now();
        let mut lap = begin;
        let mut step = |index: usize| {
            steps[index].push(lap.elapsed().as_secs_f64());
            lap = Instant::now();
        };
        bench.store = Store::open(&bench.file, NO_LIMITS).await?;
        step(0);
        bench.store.take_over(Duration::ZERO, SystemTime::now()).await?;
        step(1);
        bench.store.due().await?;
        if claim(&bench.store, &app(1), CLAIM_BATCH).await?.is_empty() {
            return Err("nothing was there to claim".into());
        }
        step(2);
        total.push(begin.elapsed().as_secs_f64());
    }
    let [open, release, first] = steps.each_mut().map(|step| 1000.0 * median(step));
    println!(
        "restart with {queued} queued beside them: {:.0} ms (open {open:.0}, release claims {release:.1}, first claim {first:.1}), \
         median of {ROUNDS}",
        1000.0 * median(&mut total)
    );
    Ok(())
}

/// (e)
async fn purge(bench: &Bench, events: u64) -> Result<()> {
    let (begin, mut batches, mut purged) = (Instant::now(), Vec::new(), 0);
    let (age, before) = (Duration::from_secs(1), bench.megabytes()?);
    loop {
        let begin = Instant::now();
        let deleted = bench.store.purge_events(SystemTime::now(), age, age, PURGE_BATCH).await?;
        if deleted == 0 {
            break;
        }
        batches.push(begin.elapsed().as_secs_f64() * 1000.0);
        purged += deleted;
    }
    let took = begin.elapsed();
    let longest = batches.iter().copied().fold(0.0, f64::max);
    println!(
        "purge of {purged} in batches of {PURGE_BATCH}: {took:.1?}, a batch {:.1} ms, the longest {longest:.0} ms",
        median(&mut batches)
    );
    if purged < events {
        return Err("not all were purged".into());
    }
    let begin = Instant::now();
    bench.store.shrink().await?;
    let took = begin.elapsed();
    let mut sql = connect(&bench.file).await?;
    sqlx::query("DELETE FROM events").execute(&mut sql).await?; // Those of the restart.
    let free: i64 = sqlx::query_scalar("PRAGMA freelist_count").fetch_one(&mut sql).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut sql).await?;
    println!(
        "the file had {before} MB, and has {} after one shrink ({took:.1?}), of which {} are free for new rows",
        bench.megabytes()?,
        (free * 4096) >> 20
    );
    Ok(())
}

/// (c)
async fn depth(bench: &Bench, line: u64) -> Result<()> {
    println!("\nclaim of 1 and its finish: ms, medians of 100; both commit, and so wait for the disk");
    println!("{:<34}{:>10}{:>10}{:>10}", "", "claim", "finish", "due");
    let small = Bench::new().await?;
    small.fill(200, &format!("'app-1', NULL, 0, {EPOCH}, NULL, NULL")).await?;
    let another: fn(u64) -> AppId = |round| app(1 + round);
    let mut rows = [
        ("almost nothing queued", &small.store, (|_| app(1)) as fn(u64) -> AppId, Times::default()),
        ("deep: one app after the other", &bench.store, another, Times::default()),
        ("deep: the hot line's head", &bench.store, |_| app(0), Times::default()),
    ];
    for round in 0..100 {
        for (_, store, app, times) in &mut rows {
            times.due.push(timed(async { Ok(store.due().await?) }).await?.1);
            let (claimed, took) = timed(claim(store, &app(round), 1)).await?;
            times.claim.push(took);
            let claimed = claimed.first().ok_or("nothing was there to claim")?;
            times.finish.push(timed(finish(store, claimed)).await?.1);
        }
    }
    for (name, _, _, mut times) in rows {
        let [claim, finish, due] = [&mut times.claim, &mut times.finish, &mut times.due].map(|times| median(times));
        println!("{name:<34}{claim:>10.3}{finish:>10.3}{due:>10.3}");
    }
    println!("(deep: of {APPS} apps one has {line} events in one line; due looks at every app)");
    println!("the claim's plan, with {} MB behind it:", bench.megabytes()?);
    for step in bench.store.claim_plan().await? {
        println!("  {step}");
    }
    small.store.close().await;
    Ok(())
}

#[derive(Default)]
struct Times {
    claim: Vec<f64>,
    finish: Vec<f64>,
    due: Vec<f64>,
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let begin = Instant::now();
    let result = work.await?;
    Ok((result, begin.elapsed().as_secs_f64() * 1000.0))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
