//! `/metrics` for Prometheus.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

use crate::coordinator::Coordinator;

/// The one page that a scraper reads.
pub fn metrics(coordinator: Arc<Coordinator>) -> Router {
    let render = move || async move {
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], coordinator.metrics().render())
    };
    Router::new().route("/metrics", get(render))
}
