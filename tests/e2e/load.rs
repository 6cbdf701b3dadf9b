//! Mixed load on many replicas, by clients that reach them as through a Kubernetes Service: a new connection goes to some replica that is
//! ready, and stays there until it ends. No call is made twice, but for what every gRPC client does by itself: a call that the server has
//! said it did not look at (GOAWAY, a refused stream), or that never left, is sent on the next connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chatfn::proto::invocation_service_client::InvocationServiceClient;
use chatfn::proto::{self, invoke_response::Outcome};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::interval;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{LOGIN, SENT, TestServer, wait_until, was_not_looked_at};
use crate::publish_request::Publish;

/// Of each client. Enough for calls to be under way at any moment, and little enough for a machine that is shared.
const PACE: Duration = Duration::from_millis(25);

/// The addresses that are ready, as clients see them. Clones share them.
#[derive(Clone, Default)]
pub struct Balancer {
    ready: Arc<Mutex<Vec<String>>>,
    next: Arc<AtomicUsize>,
}

impl Balancer {
    pub fn add(&self, server: &TestServer) {
        self.ready.lock().expect("a list").push(address(server));
    }

    pub fn remove(&self, server: &TestServer) {
        self.ready.lock().expect("a list").retain(|ready| *ready != address(server));
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let address = {
            let ready = self.ready.lock().expect("a list");
            ready[self.next.fetch_add(1, Ordering::Relaxed) % ready.len()].clone()
        };
        let stream = TcpStream::connect(&address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// It finds a connection when it is needed, and another one when that has ended.
    fn channel(&self) -> Channel {
        let balancer = self.clone();
        let connect = move |_| {
            let balancer = balancer.clone();
            async move { balancer.connect().await.map(TokioIo::new) }
        };
        Endpoint::from_static("http://127.0.0.1").connect_with_connector_lazy(tower::service_fn(connect))
    }
}

fn address(server: &TestServer) -> String {
    server.address.trim_start_matches("http://").to_owned()
}

/// An app for [`Load`].
pub async fn publish(app: &str, on: &TestServer) {
    let waits = "await new Promise((resolve) => setTimeout(resolve, 5));";
    let login = format!("export const handleEvent = async (event) => {{ {waits} return event.username; }};");
    let sent = format!("export const handleEvent = async (event) => {{ {waits} return event.message.n; }};");
    Publish::login(app, &login).function(SENT, &sent).on(on).await;
}

#[derive(Clone)]
struct Shared {
    balancer: Balancer,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    resent: Arc<AtomicU64>,
}

/// Runs until [`Load::finish`].
pub struct Load {
    shared: Shared,
    clients: JoinSet<Vec<String>>,
}

/// What a load has done.
#[derive(Debug)]
pub struct Done {
    pub calls: u64,
    /// Calls that a gRPC client sends again by itself.
    pub resent: u64,
    /// The ids of the events that were accepted.
    pub accepted: Vec<String>,
}

impl Load {
    /// Of each app: two who wait for verdicts, one who queues events, half of them in order, and one who asks by REST.
    pub fn start(balancer: &Balancer, apps: &[&str]) -> Self {
        let (stop, answered, resent) = Default::default();
        let shared = Shared { balancer: balancer.clone(), stop, answered, resent };
        let mut clients = JoinSet::new();
        for app in apps {
            let app = (*app).to_owned();
            clients.spawn(shared.clone().asks(app.clone()));
            clients.spawn(shared.clone().asks(app.clone()));
            clients.spawn(shared.clone().queues(app.clone()));
            clients.spawn(shared.clone().reads(app));
        }
        Self { shared, clients }
    }

    /// Until so many more calls are answered.
    pub async fn goes_on_for(&mut self, calls: u64) {
        let answered = || self.shared.answered.load(Ordering::Relaxed);
        let until = answered() + calls;
        let clients = &mut self.clients;
        wait_until("the load goes on", async || {
            if let Some(ended) = clients.try_join_next() {
                ended.expect("a client gave up");
            }
            answered() >= until
        })
        .await;
    }

    /// Ends it. Every call must have been answered well.
    pub async fn finish(self) -> Done {
        self.shared.stop.store(true, Ordering::Relaxed);
        let accepted = self.clients.join_all().await.concat();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Done { calls: count(&self.shared.answered), resent: count(&self.shared.resent), accepted }
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn asks(self, app: String) -> Vec<String> {
        let mut client = InvocationServiceClient::new(self.balancer.channel());
        let mut ticks = interval(PACE);
        for n in 0_u64.. {
            if !self.goes_on() {
                break;
            }
            ticks.tick().await;
            let user = format!("{app}-{n}");
            let event = serde_json::json!({ "username": user }).to_string();
            let answer = self.invoke(&mut client, call(&app, LOGIN, event)).await;
            match answer.outcome {
                Some(Outcome::Result(result)) => assert_eq!(result.json, format!("{user:?}")),
                other => panic!("not a result: {other:?}"),
            }
        }
        Vec::new()
    }

    async fn queues(self, app: String) -> Vec<String> {
        let mut client = InvocationServiceClient::new(self.balancer.channel());
        let mut ticks = interval(PACE);
        let mut accepted = Vec::new();
        while self.goes_on() {
            ticks.tick().await;
            let n = accepted.len();
            let event = format!(r#"{{"user":{{"name":"jane"}},"channel":{{"id":1}},"message":{{"n":{n}}}}}"#);
            let ordering_key = if n.is_multiple_of(2) { "line".to_owned() } else { String::new() };
            let request = proto::InvokeRequest { ordering_key, ..call(&app, SENT, event) };
            match self.invoke(&mut client, request).await.outcome {
                Some(Outcome::Accepted(event)) => accepted.push(event.event_id),
                other => panic!("not accepted: {other:?}"),
            }
        }
        accepted
    }

    /// By one connection for as long as the server keeps it.
    async fn reads(self, app: String) -> Vec<String> {
        let mut connection: Option<BufReader<TcpStream>> = None;
        let mut ticks = interval(PACE);
        while self.goes_on() {
            ticks.tick().await;
            let stream = match connection.take() {
                Some(stream) => stream,
                None => {
                    BufReader::new(self.balancer.connect().await.expect("a replica that is ready takes connections"))
                }
            };
            let (answer, kept) = read(stream, &app).await.unwrap_or_else(|err| panic!("a REST call failed: {err}"));
            assert!(answer.contains(LOGIN), "{answer}");
            connection = kept;
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        Vec::new()
    }

    async fn invoke(
        &self,
        client: &mut InvocationServiceClient<Channel>,
        request: proto::InvokeRequest,
    ) -> proto::InvokeResponse {
        loop {
            match client.invoke(request.clone()).await {
                Ok(answer) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    return answer.into_inner();
                }
                Err(status) if was_not_looked_at(&status) => {
                    self.resent.fetch_add(1, Ordering::Relaxed);
                }
                Err(status) => panic!("a call failed: {status:?}"),
            }
        }
    }
}

fn call(app: &str, trigger_type: &str, event: String) -> proto::InvokeRequest {
    proto::InvokeRequest {
        app_id: app.to_owned(),
        trigger_type: trigger_type.to_owned(),
        event_json: event.into(),
        ..Default::default()
    }
}

/// One request; with the answer's body the connection, unless the server closes it.
async fn read(mut stream: BufReader<TcpStream>, app: &str) -> std::io::Result<(String, Option<BufReader<TcpStream>>)> {
    let path = "/v1/runtimes/nodejs/functions";
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nx-chatfn-app: {app}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(std::io::Error::other("the connection ended without an answer"));
        }
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_ascii_lowercase());
    }
    assert_eq!(head[0], "http/1.1 200 ok", "{head:?}");
    let headers: BTreeMap<_, _> = head[1..].iter().filter_map(|line| line.split_once(": ")).collect();
    let length: usize = headers["content-length"].parse().expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let closes = headers.get("connection") == Some(&"close");
    Ok((String::from_utf8(body).expect("UTF-8"), (!closes).then_some(stream)))
}
