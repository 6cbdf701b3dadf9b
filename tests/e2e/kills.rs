//! SIGKILL of the service, of workers, or of both, at random moments under load: nothing that was acknowledged is lost, and order holds.
//!
//! What happened is read from two places: a file to which functions append, so that runs count which nobody recorded, and the table of
//! events. The history is neither: it is written after the fact, and a kill may take its last rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatfn::proto::{self, invoke_response::Outcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::harness::{SENT, TestApp, TestServer, wait_until};
use crate::publish_request::Publish;

const ROUNDS: u32 = 24;
/// Acknowledgements before the next kill, at most.
const ACKNOWLEDGED_MAX: u32 = 60;
/// Takes a number, to make a run that failed again. Its kills come at the same points of the load, not at the same nanosecond.
const SEED: &str = "KILLS_SEED";

/// Says that it ran, last of all. Some throw at first, and some for ever.
const APPENDS: &str = "import { appendFileSync } from 'fs';
export const handleEvent = async (event, context) => {
    const [client, n] = event.message.body.split(' ');
    await new Promise((resolve) => setTimeout(resolve, Number(n) % 4));
    if (Number(n) % 20 === 13) throw new Error('poison');
    if (Number(n) % 5 === 3 && context.invocation.attempt === 1) throw new Error('not yet');
    appendFileSync(process.env.EFFECTS, event.message.body + '\\n');
};";

fn is_poison(n: u32) -> bool {
    n % 20 == 13
}

/// Sends its events one after the other.
#[derive(Debug, Clone, Copy)]
struct Client {
    id: usize,
    ordered: bool,
    /// Sends again what was not acknowledged, with the same key.
    idempotent: bool,
}

impl Client {
    fn all() -> Vec<Self> {
        let kinds = [(true, false), (true, false), (true, true), (false, true), (false, false), (false, false)];
        kinds.into_iter().enumerate().map(|(id, (ordered, idempotent))| Self { id, ordered, idempotent }).collect()
    }

    fn request(&self, app: &TestApp, n: u32) -> proto::InvokeRequest {
        let body = format!("{} {n}", self.id);
        let event = json!({ "user": { "name": "jane" }, "channel": { "id": 1 }, "message": { "body": body } });
        let mut request = app.call(SENT, &event.to_string());
        request.ordering_key = if self.ordered { format!("client {}", self.id) } else { String::new() };
        request.idempotency_key = if self.idempotent { body } else { String::new() };
        request
    }

    /// Until it is told to stop or has no answer; returns which number comes next.
    async fn run(self, app: TestApp, from: u32, stop: Arc<AtomicBool>, acks: mpsc::Sender<Ack>) -> (Self, u32) {
        let mut n = from;
        while !stop.load(Ordering::Relaxed) {
            let Ok(answer) = app.send(self.request(&app, n)).await else {
                return (self, if self.idempotent { n } else { n + 1 });
            };
            let Some(Outcome::Accepted(accepted)) = answer.outcome else { panic!("not accepted: {answer:?}") };
            assert!(!accepted.duplicate || self.idempotent);
            let ack = Ack { client: self.id, n, event_id: accepted.event_id };
            acks.send(ack).await.expect("somebody listens");
            n += 1;
        }
        (self, n)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ack {
    client: usize,
    n: u32,
    event_id: String,
}

/// Clients at work against one run of the service.
struct Load {
    clients: JoinSet<(Client, u32)>,
    stop: Arc<AtomicBool>,
    acks: mpsc::Receiver<Ack>,
}

impl Load {
    fn start(app: &TestApp, next: &[(Client, u32)]) -> Self {
        let (stop, (sender, acks)) = (Arc::new(AtomicBool::new(false)), mpsc::channel(1));
        let mut clients = JoinSet::new();
        for (client, from) in next {
            clients.spawn(client.run(app.clone(), *from, Arc::clone(&stop), sender.clone()));
        }
        Self { clients, stop, acks }
    }

    async fn acknowledged(&mut self, count: u32, seen: &mut Vec<Ack>) {
        for _ in 0..count {
            seen.push(self.acks.recv().await.expect("a client runs"));
        }
    }

    /// What the clients would send next.
    async fn end(mut self, seen: &mut Vec<Ack>) -> Vec<(Client, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ack) = self.acks.recv().await {
            seen.push(ack);
        }
        self.clients.join_all().await
    }
}

/// Whoever of the workers it hits.
fn kill_a_worker(server: &TestServer, random: &mut StdRng) -> u32 {
    let workers = server.worker_processes();
    if workers.is_empty() {
        return 0;
    }
    let victim = workers[random.random_range(0..workers.len())];
    // It may have ended by itself.
    u32::from(kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).is_ok())
}

/// Lets the clients and their connections go on for a while.
async fn some_moment(random: &mut StdRng) {
    for _ in 0..random.random_range(0..400) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn no_kill_at_any_moment_loses_an_acknowledged_event_or_its_place_in_line() {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("{SEED}={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // Unconfined, as functions have to write to a file that outlives all of them.
    let mut server = TestServer::with(&["insecure_no_sandbox=true"]).await;
    let effects = server.data().join("effects");
    let mut publish = Publish::sent("demo", APPENDS).variable("EFFECTS", &effects.display().to_string());
    let function = &mut publish.0.spec.as_mut().expect("a spec").functions[0];
    // As many attempts as there may be kills, and more.
    let [initial_backoff, max_backoff] = [1, 10].map(|ms| Duration::from_millis(ms).try_into().ok());
    function.retry = Some(proto::RetryPolicy { max_attempts: 30, initial_backoff, max_backoff, ..Default::default() });
    publish.on(&server).await;

    let mut next: Vec<_> = Client::all().into_iter().map(|client| (client, 0)).collect();
    let (mut acks, mut workers_killed, mut services_killed) = (Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let mut load = Load::start(&server.app("demo"), &next);
        load.acknowledged(random.random_range(1..=ACKNOWLEDGED_MAX), &mut acks).await;
        some_moment(&mut random).await;
        let (worker, service) = [(true, false), (false, true), (true, true)][random.random_range(0..3)];
        if worker {
            workers_killed += kill_a_worker(&server, &mut random);
        }
        if service {
            services_killed += 1;
            let left = server.crash();
            next = load.end(&mut acks).await;
            server = TestServer::restart(left).await;
        } else {
            next = load.end(&mut acks).await;
        }
    }
    // Those that send again until they know do so.
    let app = server.app("demo");
    for (client, n) in next.iter().filter(|(client, _)| client.idempotent) {
        let answer = app.send(client.request(&app, *n)).await.expect("an answer");
        let Some(Outcome::Accepted(accepted)) = answer.outcome else { panic!("not accepted: {answer:?}") };
        acks.push(Ack { client: client.id, n: *n, event_id: accepted.event_id });
    }
    wait_until("the queue is empty", async || {
        app.show().await.queue.is_some_and(|queue| queue.queued + queue.running == 0)
    })
    .await;
    let events = events(server.data()).await;
    let ran = std::fs::read_to_string(&effects).expect("effects");
    println!(
        "{} acknowledged, {} events, {} runs; {services_killed} services and {workers_killed} workers were killed",
        acks.len(),
        events.len(),
        ran.lines().count()
    );
    assert_nothing_is_lost(&acks, &events, &ran);
    assert_order(&ran);
    assert_once(&acks, &events);
    let dead = events.values().filter(|event| event.state == DEAD).count() as u64;
    let queue = app.show().await.queue.expect("figures");
    assert_eq!((queue.queued, queue.running, queue.dead), (0, 0, dead));
    // What it says of workers that were killed before they had begun.
    server.expect_log("a worker did not start");
    server.stop().await;
}

/// As the table has them.
const DONE: i64 = 2;
const DEAD: i64 = 4;

struct Stored {
    state: i64,
    /// Client and number.
    body: String,
}

/// By id.
async fn events(data: &Path) -> HashMap<String, Stored> {
    use sqlx::ConnectOptions;
    let file = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("data/chatfn.db")).read_only(true);
    let mut store = file.connect().await.expect("opens");
    let sql = "SELECT id, state, json_extract(payload_json, '$.message.body') FROM events";
    let rows: Vec<(String, i64, String)> = sqlx::query_as(sql).fetch_all(&mut store).await.expect("events");
    rows.into_iter().map(|(id, state, body)| (id, Stored { state, body })).collect()
}

fn assert_nothing_is_lost(acks: &[Ack], events: &HashMap<String, Stored>, ran: &str) {
    let ran: BTreeSet<&str> = ran.lines().collect();
    for ack in acks {
        let event = events.get(&ack.event_id).unwrap_or_else(|| panic!("it is gone: {ack:?}"));
        let body = format!("{} {}", ack.client, ack.n);
        assert_eq!(event.body, body, "another event has its id: {ack:?}");
        let (state, runs) = if is_poison(ack.n) { (DEAD, false) } else { (DONE, true) };
        assert_eq!((event.state, ran.contains(body.as_str())), (state, runs), "{ack:?}");
    }
    // And those that nobody heard of ended like the others.
    assert!(events.values().all(|event| [DONE, DEAD].contains(&event.state)));
}

/// Of each client with an ordering key, what first succeeded later was sent later. What was sent again after a kill too: its number is
/// still the next.
fn assert_order(ran: &str) {
    let mut firsts: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for line in ran.lines() {
        let (client, n) = line.split_once(' ').expect("two words");
        let (client, n) = (client.parse().expect("a number"), n.parse().expect("a number"));
        let of_client = firsts.entry(client).or_default();
        if !of_client.contains(&n) {
            of_client.push(n);
        }
    }
    for client in Client::all().into_iter().filter(|client| client.ordered) {
        let order = firsts.get(&client.id).cloned().unwrap_or_default();
        assert!(order.is_sorted(), "client {}: {order:?}", client.id);
    }
}

/// Whatever was sent again under its key is one event still, and its sender was told so.
fn assert_once(acks: &[Ack], events: &HashMap<String, Stored>) {
    for client in Client::all().into_iter().filter(|client| client.idempotent) {
        let prefix = format!("{} ", client.id);
        let of_client: Vec<_> = events.values().filter(|event| event.body.starts_with(&prefix)).collect();
        let bodies: BTreeSet<_> = of_client.iter().map(|event| &event.body).collect();
        assert_eq!(of_client.len(), bodies.len(), "client {}: a key came to two events", client.id);
        let mut ids: HashMap<u32, &str> = HashMap::new();
        for ack in acks.iter().filter(|ack| ack.client == client.id) {
            assert_eq!(*ids.entry(ack.n).or_insert(&ack.event_id), ack.event_id, "{ack:?}");
        }
    }
}
