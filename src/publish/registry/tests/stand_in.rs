//! A server that answers as a test wants it, right or wrong, and remembers what it was asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    pub(super) method: String,
    /// A whole URL where the server is asked as a proxy.
    pub(super) target: String,
    pub(super) headers: BTreeMap<String, String>,
}

pub(super) enum Reply {
    Now(u16, Vec<(String, String)>, Vec<u8>),
    Never,
    /// This head of a body, again and again.
    Endless(Vec<u8>),
    /// The beginning of a body whose rest never comes.
    Halted(Vec<u8>),
    /// A tunnel to an address.
    Tunnel(String),
}

pub(super) struct StandIn {
    pub(super) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl StandIn {
    pub(super) async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let _ = serve(stream, &log, &*answer).await;
                });
            }
        });
        Self { port, asked }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &(impl Fn(&Asked) -> Reply + Sync),
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    let asked = Asked {
        method: first.next().unwrap_or_default(),
        target: first.next().unwrap_or_default(),
        headers: headers.collect(),
    };
    log.lock().unwrap().push(asked.clone());
    match answer(&asked) {
        Reply::Now(status, headers, body) => {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let head =
                format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            if asked.method != "HEAD" {
                stream.write_all(&body).await?;
            }
        }
        Reply::Never => std::future::pending().await,
        Reply::Endless(piece) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(&piece).await?;
            }
        }
        Reply::Halted(piece) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await?;
            stream.write_all(&piece).await?;
            std::future::pending().await
        }
        Reply::Tunnel(address) => {
            let mut target = TcpStream::connect(address).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            copy_bidirectional(&mut stream, &mut target).await?;
        }
    }
    stream.shutdown().await
}

pub(super) fn json(value: &serde_json::Value) -> Reply {
    Reply::Now(200, vec![("content-type".into(), "application/json".into())], value.to_string().into_bytes())
}

pub(super) fn status(code: u16, text: &str) -> Reply {
    let headers =
        [("www-authenticate", "Basic realm=\"x\", otp"), ("set-cookie", "c=1"), ("content-type", "application/json")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Reply::Now(code, headers, format!("{{\"error\":\"{text}\"}}").into_bytes())
}

pub(super) fn redirect(to: &str) -> Reply {
    Reply::Now(302, vec![("location".into(), to.into())], Vec::new())
}

pub(super) fn packument(name: &str, tarball: &str) -> Reply {
    json(&serde_json::json!({
        "name": name,
        "dist-tags": { "latest": "1.0.0" },
        "versions": { "1.0.0": { "name": name, "version": "1.0.0", "dist": { "tarball": tarball } } },
    }))
}

/// A package's archive: one file in a tar, made by hand.
pub(super) fn archive(name: &str) -> Vec<u8> {
    let content = serde_json::json!({ "name": name, "version": "1.0.0" }).to_string();
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "package/package.json");
    put(100, "0000644");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = [&header[..], content.as_bytes()].concat();
    tar.resize(512 * 2 + 1024, 0);
    gzip(&tar)
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
