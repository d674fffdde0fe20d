//! HTTP to the hub: who asks, how long to wait, what to try again.

use std::io::Read;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use super::HubError;
use crate::interrupt::Interrupt;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_ROWS_ENDPOINT: &str = "https://datasets-server.huggingface.co";

/// An answer in JSON is read up to this size.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// The longest that a server may ask us to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// How patient a [`Client`] is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until a connection stands. Short: a machine without a network should soon know.
    pub connect: Duration,
    /// Until the next bytes come.
    pub read: Duration,
    /// Wait before the second attempt; doubles with each further one.
    pub backoff: Duration,
    /// Attempts without any progress before giving up.
    pub attempts: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            read: Duration::from_secs(30),
            backoff: Duration::from_secs(1),
            attempts: 5,
        }
    }
}

/// A hub and how to speak to it.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    endpoint: String,
    rows_endpoint: String,
    token: Option<String>,
    patience: Patience,
    interrupt: Interrupt,
}

/// Why one attempt failed.
pub(super) enum Attempt {
    /// Another one may succeed, after the wait that the server asked for.
    Again { reason: String, wait: Option<Duration> },
    /// It is of no use to try again.
    Never(HubError),
}

impl Client {
    /// The hub that the environment names: `HF_ENDPOINT` (default huggingface.co), `HF_TOKEN`,
    /// `HF_HUB_OFFLINE`; `FLEETUNE_ROWS_ENDPOINT` for the server of data set rows.
    ///
    /// # Errors
    /// When the environment forbids to ask the hub.
    pub fn from_environment(interrupt: Interrupt) -> Result<Self, HubError> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        if variable("HF_HUB_OFFLINE").is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
        {
            return Err(HubError::Offline);
        }
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let rows =
            variable("FLEETUNE_ROWS_ENDPOINT").unwrap_or_else(|| DEFAULT_ROWS_ENDPOINT.to_owned());
        Ok(Self::new(&endpoint, &rows, variable("HF_TOKEN"), Patience::default(), interrupt))
    }

    /// A client for the hub at `endpoint` and the server of rows at `rows_endpoint`.
    pub fn new(
        endpoint: &str,
        rows_endpoint: &str,
        token: Option<String>,
        patience: Patience,
        interrupt: Interrupt,
    ) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.read))
            .timeout_per_read(Some(patience.read))
            // The token is for the hub, not for the storage it sends us on to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // Lengths and ranges are those of the file itself.
            .accept_encoding("identity")
            .user_agent(concat!("fleetune/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let trim = |url: &str| url.trim().trim_end_matches('/').to_owned();
        Self {
            agent,
            endpoint: trim(endpoint),
            rows_endpoint: trim(rows_endpoint),
            token: token.map(|token| token.trim().to_owned()),
            patience,
            interrupt,
        }
    }

    /// The hub's address, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The address of the server of rows, without a slash at its end.
    pub fn rows_endpoint(&self) -> &str {
        &self.rows_endpoint
    }

    /// An error where the user asked to stop.
    pub(super) fn check_interrupt(&self) -> Result<(), HubError> {
        if self.interrupt.is_set() { Err(HubError::Interrupted) } else { Ok(()) }
    }

    /// Sends one request, from byte `start` on. Good answers are 200 and 206.
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Response<Body>, Attempt> {
        let mut request = self.agent.get(url);
        // A redirect to another host loses the header; an absolute URL elsewhere never gets it.
        if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if start > 0 {
            request = request.header(header::RANGE, format!("bytes={start}-"));
        }
        let response = request.call().map_err(|error| transport(url, error))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            // The file is no longer than what we have: the caller starts afresh.
            StatusCode::RANGE_NOT_SATISFIABLE if start > 0 => Ok(response),
            status => Err(refused(url, status, &response)),
        }
    }

    fn is_ours(&self, url: &str) -> bool {
        [&self.endpoint, &self.rows_endpoint].into_iter().any(|endpoint| {
            url.strip_prefix(endpoint.as_str()).is_some_and(|rest| rest.starts_with('/'))
        })
    }

    /// Gets a value in JSON, trying again where that may help.
    ///
    /// # Errors
    /// When the hub cannot be reached, refuses, or answers something else.
    pub fn get_json<T: DeserializeOwned>(&self, url: &str) -> Result<T, HubError> {
        let mut retries = self.retries(url);
        loop {
            let outcome = self.get(url, 0).and_then(|mut response| {
                let mut bytes = Vec::new();
                let limited = response.body_mut().as_reader().take(MAX_JSON_BYTES + 1);
                { limited }
                    .read_to_end(&mut bytes)
                    .map_err(|error| Attempt::Again { reason: error.to_string(), wait: None })?;
                let answer = |reason| Attempt::Never(HubError::Answer { url: url.into(), reason });
                if bytes.len() as u64 > MAX_JSON_BYTES {
                    return Err(answer("the answer is unreasonably long".to_owned()));
                }
                serde_json::from_slice(&bytes)
                    .map_err(|error| answer(format!("the answer is not as expected: {error}")))
            });
            match outcome {
                Ok(value) => return Ok(value),
                Err(attempt) => retries.after(attempt, false)?,
            }
        }
    }

    /// Counts the attempts at `url`.
    pub(super) fn retries<'a>(&'a self, url: &'a str) -> Retries<'a> {
        Retries { client: self, url, failures: 0 }
    }
}

/// The attempts at one URL.
pub(super) struct Retries<'a> {
    client: &'a Client,
    url: &'a str,
    failures: u32,
}

impl Retries<'_> {
    /// Waits after a failed attempt, or gives up. `progressed` says that the attempt brought
    /// something new: then its failure is not held against the next ones.
    pub fn after(&mut self, attempt: Attempt, progressed: bool) -> Result<(), HubError> {
        let (reason, wait) = match attempt {
            Attempt::Never(error) => return Err(error),
            Attempt::Again { reason, wait } => (reason, wait),
        };
        self.failures = if progressed { 1 } else { self.failures + 1 };
        let patience = &self.client.patience;
        if self.failures >= patience.attempts {
            return Err(HubError::Broken { url: self.url.to_owned(), reason });
        }
        let wait = wait.unwrap_or(patience.backoff * 2u32.saturating_pow(self.failures - 1));
        tracing::info!("{}: {reason}; trying again in {:.1} s", self.url, wait.as_secs_f32());
        let until = Instant::now() + wait;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.client.check_interrupt()?;
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        self.client.check_interrupt()
    }
}

/// What a failed request means. A connection that broke may hold the next time. One that never came
/// about (no such host, nobody listens, no network) is not tried again: who has another way to the
/// file should take it at once.
fn transport(url: &str, error: ureq::Error) -> Attempt {
    use std::io::ErrorKind as Kind;
    use ureq::{Error, Timeout};
    let reason = error.to_string();
    match error {
        Error::HostNotFound
        | Error::ConnectionFailed
        | Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            Attempt::Never(HubError::Unreachable { host: host_of(url), reason })
        }
        Error::Io(error) => match error.kind() {
            Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::BrokenPipe
            | Kind::UnexpectedEof
            | Kind::TimedOut
            | Kind::WouldBlock
            | Kind::Interrupted => Attempt::Again { reason, wait: None },
            _ => Attempt::Never(HubError::Unreachable { host: host_of(url), reason }),
        },
        Error::Timeout(_) | Error::Protocol(_) | Error::BodyStalled => {
            Attempt::Again { reason, wait: None }
        }
        _ => Attempt::Never(HubError::Answer { url: url.into(), reason }),
    }
}

fn refused(url: &str, status: StatusCode, response: &Response<Body>) -> Attempt {
    let url = url.to_owned();
    match status.as_u16() {
        401 | 403 => Attempt::Never(HubError::Denied { url }),
        404 | 410 => Attempt::Never(HubError::NotFound { url }),
        408 | 425 | 429 | 500..=599 => {
            let after = response.headers().get(header::RETRY_AFTER);
            let seconds = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Attempt::Again {
                reason: format!("the server answers {status}"),
                wait: seconds.map(|s| Duration::from_secs(s).min(MAX_RETRY_AFTER)),
            }
        }
        status => Attempt::Never(HubError::Status { status, url }),
    }
}

/// `https://host:port` of a URL.
fn host_of(url: &str) -> String {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[after_scheme..].find('/').map_or(url.len(), |at| after_scheme + at);
    url[..end].to_owned()
}
