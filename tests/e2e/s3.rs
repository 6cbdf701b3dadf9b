//! An S3-compatible server: `s3s` in a thread of its own, on a port of this machine, with credentials.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub const BUCKET: &str = "chatfn";
pub const ACCESS_KEY: &str = "AKIDFORTHESERVICE";
pub const SECRET_KEY: &str = "the-secret-access-key-of-the-service";

pub struct S3Server {
    root: tempfile::TempDir,
    pub address: SocketAddr,
    /// Requests with the method GET, of objects.
    reads: Arc<AtomicUsize>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl S3Server {
    pub fn start() -> Self {
        let root = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir(root.path().join(BUCKET)).expect("a bucket");
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { root, address, reads: Arc::default(), running: None };
        server.restart();
        server
    }

    /// With the same port and objects as before.
    pub fn restart(&mut self) {
        let files = s3s_fs::FileSystem::new(self.root.path()).expect("the directory");
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let (service, stop, reads) = (builder.build(), CancellationToken::new(), Arc::clone(&self.reads));
        let (bound, address) = std::sync::mpsc::sync_channel(1);
        let (until, at) = (stop.clone(), self.address);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind(at).await.expect("binds");
                bound.send(listener.local_addr().expect("its address")).expect("somebody waits");
                tokio::select! {
                    () = until.cancelled() => {}
                    () = serve(listener, service, reads) => {}
                }
            });
        });
        self.address = address.recv().expect("it listens");
        self.running = Some((stop, thread));
    }

    /// Nobody listens at its port any more, and no connection is left.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            thread.join().expect("it ends");
        }
    }

    #[allow(dead_code, reason = "counted in the unit tests")]
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    /// The files that blobs lie in, below this prefix.
    pub fn blobs(&self, prefix: &str) -> Vec<PathBuf> {
        let directory = self.root.path().join(BUCKET).join(prefix).join("blobs");
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries.map(|entry| entry.path()).collect();
        found.sort();
        found
    }

    /// What a process needs in its environment.
    #[allow(dead_code, reason = "not all who use this server start processes")]
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: TcpListener, service: S3Service, reads: Arc<AtomicUsize>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let (service, reads) = (service.clone(), Arc::clone(&reads));
        let counted = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            if request.method() == hyper::Method::GET && request.uri().path().contains("/blobs/") {
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Service::call(&service, request)
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), counted));
    }
}
