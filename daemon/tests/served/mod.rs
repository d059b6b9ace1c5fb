//! An endpoint for tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use kvtier_daemon::http::Endpoint;
use kvtier_daemon::stats::Source;
use tokio::sync::oneshot;

/// An endpoint on a thread, until it is dropped.
pub struct Served {
    pub address: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(source: Arc<dyn Source>) -> Served {
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = endpoint.address();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime
                .block_on(endpoint.serve(source, async {
                    let _ = ended.await;
                }))
                .unwrap();
        });
        Served { address, end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}
