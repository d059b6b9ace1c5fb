//! The signals that end the daemon.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::server::Server;

/// SIGTERM and SIGINT, as long as the daemon has them.
pub(super) struct Signals {
    handle: signal_hook::iterator::Handle,
    thread: JoinHandle<()>,
}

impl Signals {
    pub(super) fn take(server: &Arc<Server>) -> std::io::Result<Signals> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
        let handle = signals.handle();
        let server = Arc::clone(server);
        let thread = std::thread::Builder::new().name("signals-0".into()).spawn(move || {
            let mut seen = 0;
            for signal in signals.forever() {
                seen += 1;
                if seen > 1 {
                    // Who asks twice does not want to wait.
                    std::process::exit(128 + signal);
                }
                tracing::info!(signal, "ending");
                server.drain();
            }
        })?;
        Ok(Signals { handle, thread })
    }

    pub(super) fn give_back(self) {
        self.handle.close();
        self.thread.join().expect("nothing in it panics");
    }
}
