//! What the operator's page asks of the server.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use fleetune_core::protocol::DeviceId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::token::Token;
use super::view;
use crate::coordinator::Coordinator;
use crate::duration::Span;
use crate::operator::{InviteTerms, OperatorError, invite, order, revoke};
use crate::store::{OrderKind, Store};

/// Longest request that is read, bytes.
const MAX_REQUEST: usize = 16 << 10;
/// Nothing from elsewhere, no frame around the page, no script but its own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The operator's page. Its frame is for everybody who reaches the address; what it shows and orders
/// needs the token.
pub fn page(coordinator: Arc<Coordinator>, token: Token) -> Router {
    let guarded = Router::new()
        .route("/view", get(show))
        .route("/federations/{name}/{order}", post(give_order))
        .route("/invites", post(make_invite))
        .route("/devices/{id}/revoke", post(revoke_device))
        .route_layer(from_fn_with_state(token, check_token))
        .with_state(coordinator);
    let asset = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(CONTENT_TYPE, kind)], text) })
    };
    const STYLE: &str = concat!(include_str!("../report/style.css"), include_str!("page.css"));
    Router::new()
        .route("/", asset("text/html; charset=utf-8", include_str!("index.html")))
        .route("/page.js", asset("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/page.css", asset("text/css; charset=utf-8", STYLE))
        .merge(guarded)
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .layer(from_fn(guard_headers))
}

async fn guard_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn check_token(State(token): State<Token>, request: Request, next: Next) -> Response {
    let said = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match said.and_then(|said| said.strip_prefix("Bearer ")) {
        Some(said) if token.admits(said) => next.run(request).await,
        _ => refusal(StatusCode::UNAUTHORIZED, "this needs the token that `fleetune serve` shows"),
    }
}

fn refusal(status: StatusCode, problem: impl Into<String>) -> Response {
    (status, Json(json!({ "error": problem.into() }))).into_response()
}

impl IntoResponse for OperatorError {
    fn into_response(self) -> Response {
        let status = match self.is_usage() {
            true => StatusCode::BAD_REQUEST,
            false => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if !self.is_usage() {
            tracing::error!("the operator's page: {self}");
        }
        refusal(status, self.to_string())
    }
}

/// Works with the store on a thread that may wait for the disk.
async fn with_store<T: Send + 'static>(
    coordinator: Arc<Coordinator>,
    work: impl FnOnce(&Coordinator, &Store) -> Result<T, OperatorError> + Send + 'static,
) -> Result<T, Response> {
    let working = tokio::task::spawn_blocking(move || work(&coordinator, coordinator.store()));
    match working.await {
        Ok(done) => done.map_err(IntoResponse::into_response),
        // A panic was reported where it happened.
        Err(_) => Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server failed: see its log")),
    }
}

type Answer = Result<Json<Value>, Response>;

async fn show(State(coordinator): State<Arc<Coordinator>>) -> Result<Response, Response> {
    let view = with_store(coordinator, |coordinator, _| view::render(coordinator)).await?;
    Ok(([(CONTENT_TYPE, "text/html; charset=utf-8")], view).into_response())
}

#[derive(Deserialize)]
struct RollbackOrder {
    round: u32,
}

async fn give_order(
    State(coordinator): State<Arc<Coordinator>>,
    Path((federation, kind)): Path<(String, String)>,
    body: Option<Json<RollbackOrder>>,
) -> Answer {
    let kind = match (kind.as_str(), body) {
        ("pause", None) => OrderKind::Pause,
        ("resume", None) => OrderKind::Resume,
        ("rollback", Some(Json(RollbackOrder { round }))) => OrderKind::Rollback { round },
        _ => return Err(refusal(StatusCode::NOT_FOUND, "there is no such order")),
    };
    with_store(coordinator, move |_, store| order(store, &federation, kind)).await?;
    Ok(Json(json!({ "ordered": true })))
}

#[derive(Deserialize)]
struct InviteRequest {
    uses: u32,
    expires: Span,
    federation: Option<String>,
}

async fn make_invite(
    State(coordinator): State<Arc<Coordinator>>,
    Json(request): Json<InviteRequest>,
) -> Answer {
    let InviteRequest { uses, expires, federation } = request;
    if uses == 0 {
        return Err(refusal(StatusCode::BAD_REQUEST, "an invite is for one device at least"));
    }
    let federation = federation.filter(|name| !name.is_empty());
    let terms = InviteTerms { uses, expires, federation, addresses: Vec::new() };
    let code = with_store(coordinator, move |_, store| invite(store, terms)).await?;
    Ok(Json(json!({ "join_code": code.to_string() })))
}

async fn revoke_device(
    State(coordinator): State<Arc<Coordinator>>,
    Path(device): Path<String>,
) -> Answer {
    let Ok(device) = device.parse::<DeviceId>() else {
        return Err(refusal(StatusCode::BAD_REQUEST, "that is no device's name"));
    };
    with_store(coordinator, move |_, store| revoke(store, device)).await?;
    Ok(Json(json!({ "revoked": device.to_string() })))
}
