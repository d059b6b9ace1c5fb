//! The statistics endpoint beside the service.

use super::*;

/// The HTTP endpoint, on a runtime of its own.
pub(super) struct Http {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) end: tokio::sync::oneshot::Sender<()>,
}

pub(super) fn serve_http(server: &Arc<Server>, endpoint: Endpoint) -> std::io::Result<Http> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("http")
        .enable_io()
        .enable_time()
        .build()?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let source: Arc<dyn Source> = Arc::clone(server) as Arc<dyn Source>;
    tracing::info!(address = %endpoint.address(), "statistics");
    let planted = server.planted.clone();
    let serving = runtime.spawn(async move {
        tokio::select! {
            // The sender going away ends it as well.
            served = endpoint.serve(source, async { drop(ended.await) }) => served,
            never = planted.struck(Point::Http) => match never {},
        }
    });
    let watching = Arc::clone(server);
    runtime.spawn(async move {
        // A panic, an error, or an end that nobody asked for: operators would look at a daemon that no longer shows itself.
        let ended = serving.await;
        if !watching.is_ending() {
            tracing::error!(?ended, "the statistics endpoint has ended");
            watching.tell(End::Panicked("http".to_owned()));
        }
    });
    Ok(Http { runtime, end })
}
