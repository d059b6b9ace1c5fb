//! The statistics endpoint: HTTP for operators, on this machine alone unless the settings say otherwise. It only reads.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the live page |
//! | `/stats` | [`crate::stats::Snapshot`] as JSON |
//! | `/explain?request=ID` | [`crate::stats::Explanation`] as JSON |
//! | `/metrics` | Prometheus text |
//! | `/healthz`, `/readyz` | whether it lives; whether it serves, and why not |
//! | `/version` | of the daemon and of `/stats` |
//!
//! It asks for no password, so it answers nothing that a password would have to protect: no token id, salt, key or path. A page of another
//! site cannot read it through a visitor's browser: there are no CORS headers, and on loopback a foreign `Host` is refused.

mod metrics;
mod page;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use crate::stats::{Explanation, Snapshot, Source, VERSION};

/// Why the endpoint does not listen.
#[derive(Debug, thiserror::Error)]
#[error("listen for HTTP at {address}; http = \"off\" does without")]
pub struct HttpError {
    /// The address.
    pub address: SocketAddr,
    /// The system's word.
    #[source]
    pub source: io::Error,
}

/// A listening endpoint that does not answer yet.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// Listens. That the address may be reached by others is for the settings to allow ([`crate::config::Config::load`] does not let
    /// one through by accident). Errors: the system's, for instance a port that is taken.
    pub fn bind(address: SocketAddr) -> Result<Endpoint, HttpError> {
        let failed = |source| HttpError { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Endpoint { listener, address })
    }

    /// Where it listens; tells the port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `end` does; requests under way are finished. Runs inside a tokio runtime. Errors: the system's.
    pub async fn serve(
        self,
        source: Arc<dyn Source>,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        axum::serve(listener, router(source, self.address.ip().is_loopback())).with_graceful_shutdown(end).await
    }
}

/// All paths. `is_local`: refuse requests that were made for another host's name.
pub fn router(source: Arc<dyn Source>, is_local: bool) -> Router {
    let router = Router::new()
        .route("/", get(async || Html(page::PAGE.as_str())))
        .route("/stats", get(stats))
        .route("/explain", get(explain))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .with_state(source);
    let router = if is_local { router.layer(middleware::from_fn(own_host)) } else { router };
    router.layer(middleware::from_fn(guard))
}

type Asked = State<Arc<dyn Source>>;

async fn stats(State(source): Asked) -> Json<Snapshot> {
    Json(source.snapshot())
}

async fn metrics(State(source): Asked) -> Response {
    ([(CONTENT_TYPE, metrics::MEDIA_TYPE)], metrics::render(&source.snapshot())).into_response()
}

#[derive(Deserialize)]
struct ExplainQuery {
    request: Option<String>,
}

async fn explain(State(source): Asked, Query(query): Query<ExplainQuery>) -> Result<Json<Explanation>, Response> {
    let failed = |status: StatusCode, error: String| (status, Json(json!({ "error": error }))).into_response();
    let Some(request) = query.request else {
        return Err(failed(StatusCode::BAD_REQUEST, "name a request: /explain?request=ID".to_owned()));
    };
    let unknown = || format!("no request is known as `{request}`; the last ones of each client are");
    source.explain(&request).map(Json).ok_or_else(|| failed(StatusCode::NOT_FOUND, unknown()))
}

async fn ready(State(source): Asked) -> Response {
    match source.ready() {
        Ok(()) => Json(json!({ "ready": true, "reasons": [] })).into_response(),
        Err(reasons) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons }))).into_response()
        }
    }
}

async fn version() -> Response {
    Json(json!({ "name": "kvtier", "version": env!("CARGO_PKG_VERSION"), "stats_version": VERSION })).into_response()
}

/// What every answer carries: nothing is kept, framed, guessed at or fetched from elsewhere.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let policy = HeaderValue::from_str(&page::POLICY).expect("a policy is plain ASCII");
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// A name that someone else's server resolves to this machine makes a browser take that site's page for ours; ours is asked for by an
/// address or as `localhost`.
async fn own_host(request: Request, next: Next) -> Response {
    if is_own(request.headers()) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "ask for this page as localhost or by a loopback address\n").into_response()
}

fn is_own(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_own() {
        let of = |host: &str| is_own(&HeaderMap::from_iter([(HOST, HeaderValue::from_str(host).unwrap())]));
        for host in ["localhost", "LOCALHOST:7411", "127.0.0.1:7411", "127.3.0.1", "[::1]:7411", "[::1]"] {
            assert!(of(host), "{host}");
        }
        for host in
            ["example.org", "example.org:7411", "127.0.0.1.example.org", "10.0.0.1:7411", "", "localhost.example.org"]
        {
            assert!(!of(host), "{host}");
        }
        assert!(!is_own(&HeaderMap::new()));
    }
}
