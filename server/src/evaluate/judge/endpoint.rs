//! A judge behind OpenAI's chat completions interface: the service itself, or one of the many local
//! servers that speak it.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use fleetune_core::model::CancelToken;
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderValue, Uri};

use super::secrets::Secrets;
use super::{Judge, JudgeError, MAX_TOKENS};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 << 20;
/// Longest wait between two attempts, whatever the endpoint asks for.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Letters shown of what an endpoint says.
const EXCERPT: usize = 300;
/// Questions in a row about which an endpoint may say nothing. One that refuses them all is not asked
/// for what it takes.
const MOST_WITHHELD: usize = 5;
/// Time between looks at the wish to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How to reach a judge.
pub struct EndpointOptions {
    /// Where: `https://api.openai.com/v1`, or the whole path of `chat/completions`.
    pub url: String,
    /// Which of the endpoint's models.
    pub model: String,
    /// The key, if it wants one. Never written anywhere; white space around it is no part of it.
    pub key: Option<String>,
    /// How often to try a request before giving up.
    pub attempts: u32,
    /// How long to wait for one answer.
    pub timeout: Duration,
    /// How long to wait before the second attempt; each further wait doubles, up to a minute.
    pub pause: Duration,
    /// Where to look for the wish to stop.
    pub cancel: CancelToken,
}

/// The judge.
pub struct Endpoint {
    model: String,
    attempts: u32,
    pause: Duration,
    cancel: CancelToken,
    /// Questions in a row that it would not speak about.
    withheld: usize,
    line: Arc<Line>,
}

/// What a request needs; shared with the thread that waits for its answer.
struct Line {
    address: Address,
    /// What authorises requests.
    authorization: Option<HeaderValue>,
    /// What is to be shown nowhere.
    secrets: Secrets,
    agent: ureq::Agent,
}

/// Where requests go.
struct Address {
    /// The whole address.
    url: String,
    /// What is shown of it and names the judge: without the query, which may hold a key, and the
    /// same for all ways to write one address.
    shown: String,
    /// The query.
    query: Option<String>,
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<RequestMessage<'a>>,
    temperature: f64,
    max_tokens: usize,
}

#[derive(Serialize)]
struct RequestMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Deserialize)]
struct Response {
    choices: Vec<ResponseChoice>,
}

#[derive(Deserialize)]
struct ResponseChoice {
    message: ResponseMessage,
}

#[derive(Deserialize)]
struct ResponseMessage {
    content: Option<String>,
}

/// What came of one attempt.
enum Attempt {
    Answer(String),
    /// Worth another try, at the earliest after the given time.
    Retry(String, Option<Duration>),
    /// Worth another try, and after all of them no opinion on this question.
    Silent(String, Option<Duration>),
    /// No opinion on this question, as where a filter of contents steps in.
    Withheld(String),
    /// Not worth another try, for any question.
    Refused(String),
}

impl Address {
    fn read(text: &str) -> Result<Self, String> {
        let uri: Uri = text.trim().parse().map_err(|error| format!("{error}"))?;
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"));
        let scheme = scheme.ok_or("it begins with neither http:// nor https://")?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err("it holds a name or a key: the key belongs in FLEETUNE_JUDGE_KEY".into());
        }
        let path = uri.path().trim_end_matches('/');
        let path = path.strip_suffix("/chat/completions").unwrap_or(path);
        let shown = format!("{scheme}://{authority}{path}");
        let query = uri.query().filter(|query| !query.is_empty()).map(str::to_owned);
        let asked = query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        Ok(Self { url: format!("{shown}/chat/completions{asked}"), shown, query })
    }
}

/// Checks an endpoint's address; nothing is asked.
///
/// # Errors
/// When it cannot be used.
pub fn check_address(url: &str) -> Result<(), JudgeError> {
    Address::read(url).map(|_| ()).map_err(JudgeError::Address)
}

impl Line {
    /// One attempt. All that the endpoint says passes here, and loses our secrets, which some
    /// endpoints repeat.
    fn attempt(&self, request: &serde_json::Value) -> Attempt {
        match self.send(request) {
            Attempt::Answer(text) => Attempt::Answer(self.secrets.hide(&text)),
            Attempt::Retry(problem, wait) => Attempt::Retry(self.excerpt(&problem), wait),
            Attempt::Silent(problem, wait) => Attempt::Silent(self.excerpt(&problem), wait),
            Attempt::Withheld(problem) => Attempt::Withheld(self.excerpt(&problem)),
            Attempt::Refused(problem) => Attempt::Refused(self.excerpt(&problem)),
        }
    }

    fn send(&self, request: &serde_json::Value) -> Attempt {
        let mut call = self.agent.post(&self.address.url);
        if let Some(authorization) = &self.authorization {
            call = call.header("Authorization", authorization);
        }
        let mut response = match call.send_json(request) {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::HostNotFound)) => {
                return Attempt::Refused(error.to_string());
            }
            Err(error) => return Attempt::Retry(error.to_string(), None),
        };
        let status = response.status();
        let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let wait = wait.and_then(retry_after);
        if status.is_redirection() {
            let place = response.headers().get("location").and_then(|value| value.to_str().ok());
            let place = place.unwrap_or("nowhere");
            return Attempt::Refused(format!("{status}, it points to {place}: name that address"));
        }
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        let body = match body {
            Ok(body) => body,
            Err(error) => return Attempt::Retry(error.to_string(), wait),
        };
        if !status.is_success() {
            let problem = format!("{status}: {body}");
            return match status.as_u16() {
                408 | 409 | 425 | 429 | 500.. => Attempt::Retry(problem, wait),
                400 | 413 | 422 | 451 => Attempt::Withheld(problem),
                _ => Attempt::Refused(problem),
            };
        }
        match serde_json::from_str::<Response>(&body) {
            Ok(response) => match response.choices.into_iter().next() {
                Some(ResponseChoice { message: ResponseMessage { content: Some(text) } })
                    if !text.trim().is_empty() =>
                {
                    Attempt::Answer(text)
                }
                Some(_) => Attempt::Silent("the answer has no content".to_owned(), wait),
                None => Attempt::Retry("the answer has no choices".to_owned(), wait),
            },
            Err(error) => Attempt::Retry(format!("no chat completion ({error}): {body}"), wait),
        }
    }

    /// The beginning of what the endpoint said, in one line and without our secrets.
    fn excerpt(&self, text: &str) -> String {
        let text = self.secrets.hide(text);
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(EXCERPT).collect()
    }
}

/// How long an endpoint asks to be left alone: seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    let seconds = value.trim().parse().ok().map(Duration::from_secs);
    seconds.or_else(|| {
        let date = httpdate::parse_http_date(value.trim()).ok()?;
        Some(date.duration_since(SystemTime::now()).unwrap_or_default())
    })
}

impl Endpoint {
    /// A judge at `options.url`. Nothing is asked yet.
    ///
    /// # Errors
    /// When the address or the key cannot be used.
    pub fn new(options: EndpointOptions) -> Result<Self, JudgeError> {
        let EndpointOptions { url, model, key, attempts, timeout, pause, cancel } = options;
        let address = Address::read(&url).map_err(JudgeError::Address)?;
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            // What the endpoint says about an error is worth reading.
            .http_status_as_error(false)
            // A key and a question go where the user sent them, and nowhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        let key = key.as_deref().map(str::trim).filter(|key| !key.is_empty());
        // A header value might hold other letters, which no two endpoints read alike.
        if key.is_some_and(|key| !key.is_ascii()) {
            return Err(JudgeError::Key);
        }
        let authorization = key.map(|key| HeaderValue::try_from(format!("Bearer {key}")));
        let authorization = authorization.transpose().map_err(|_| JudgeError::Key)?;
        let secrets = Secrets::new(key, address.query.as_deref());
        let line = Arc::new(Line { address, authorization, secrets, agent: config.into() });
        Ok(Self { model, attempts, pause, cancel, withheld: 0, line })
    }

    /// One attempt, on a thread of its own: the wish to stop does not wait for an answer.
    fn attempt(&self, request: &Arc<serde_json::Value>) -> Result<Attempt, JudgeError> {
        let (tell, told) = mpsc::channel();
        let (line, request) = (Arc::clone(&self.line), Arc::clone(request));
        let thread = thread::Builder::new().name("judge".to_owned());
        let started = thread.spawn(move || {
            // Nobody listens any more after the wish to stop.
            let _ = tell.send(line.attempt(&request));
        });
        if let Err(error) = started {
            return Ok(Attempt::Retry(error.to_string(), None));
        }
        loop {
            match told.recv_timeout(LOOK) {
                Ok(attempt) => return Ok(attempt),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Attempt::Retry("the request broke off".to_owned(), None));
                }
                Err(RecvTimeoutError::Timeout) => self.look()?,
            }
        }
    }

    /// The error for a question about which the endpoint says nothing.
    fn withheld(&mut self, problem: String) -> JudgeError {
        self.withheld += 1;
        if self.withheld < MOST_WITHHELD {
            tracing::warn!("the judge has no opinion on a question ({problem})");
            return JudgeError::Withheld { problem };
        }
        JudgeError::Refused { url: self.line.address.shown.clone(), problem }
    }

    fn sleep(&self, time: Duration) -> Result<(), JudgeError> {
        let end = Instant::now() + time.min(MAX_PAUSE);
        while let Some(rest) = end.checked_duration_since(Instant::now()) {
            self.look()?;
            thread::sleep(rest.min(LOOK));
        }
        Ok(())
    }

    fn look(&self) -> Result<(), JudgeError> {
        if self.cancel.is_cancelled() { Err(JudgeError::Stopped) } else { Ok(()) }
    }
}

impl Judge for Endpoint {
    fn name(&self) -> String {
        format!("{} at {}", self.model, self.line.address.shown)
    }

    fn ask(&mut self, system: &str, message: &str) -> Result<String, JudgeError> {
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(RequestMessage { role: "system", content: system });
        }
        messages.push(RequestMessage { role: "user", content: message });
        let request = serde_json::to_value(Request {
            model: &self.model,
            messages,
            temperature: 0.0,
            max_tokens: MAX_TOKENS,
        });
        let url = || self.line.address.shown.clone();
        let request = request
            .map_err(|error| JudgeError::Refused { url: url(), problem: error.to_string() })?;
        let request = Arc::new(request);
        let mut pause = self.pause;
        for attempt in 1.. {
            let last = attempt >= self.attempts;
            match self.attempt(&request)? {
                Attempt::Answer(text) => {
                    self.withheld = 0;
                    return Ok(text);
                }
                Attempt::Withheld(problem) => return Err(self.withheld(problem)),
                Attempt::Silent(problem, _) if last => return Err(self.withheld(problem)),
                Attempt::Refused(problem) => {
                    return Err(JudgeError::Refused { url: url(), problem });
                }
                Attempt::Retry(problem, _) if last => {
                    return Err(JudgeError::Unreachable { url: url(), attempts: attempt, problem });
                }
                Attempt::Retry(problem, wait) | Attempt::Silent(problem, wait) => {
                    tracing::warn!("the judge failed ({problem}); trying again");
                    self.sleep(wait.unwrap_or(pause))?;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
        Err(JudgeError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;

    /// A server that gives the prepared answers, one a connection, and tells what it was asked.
    fn server(answers: Vec<(u16, String)>) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = tell.send(read_request(&mut stream));
                // A status of 0 hangs up instead of answering.
                if status > 0 {
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status} X\r\nConnection: close\r\nLocation: http://elsewhere/v1\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                }
            }
        });
        (url, told)
    }

    fn read_request(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with("\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            text.push(char::from(byte[0]));
        }
        let length = text.to_lowercase();
        let length = length.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
        stream.read_exact(&mut body).unwrap();
        text + &String::from_utf8(body).unwrap()
    }

    fn keyed(url: String, key: &str) -> Result<Endpoint, JudgeError> {
        Endpoint::new(EndpointOptions {
            url,
            model: "m".to_owned(),
            key: Some(key.to_owned()),
            attempts: 1,
            timeout: Duration::from_secs(5),
            pause: Duration::ZERO,
            cancel: CancelToken::default(),
        })
    }

    fn judge(url: String, attempts: u32) -> Endpoint {
        Endpoint::new(EndpointOptions {
            url,
            model: "m".to_owned(),
            key: Some("secret".to_owned()),
            attempts,
            timeout: Duration::from_secs(5),
            pause: Duration::from_millis(1),
            cancel: CancelToken::default(),
        })
        .unwrap()
    }

    fn completion(text: &str) -> String {
        serde_json::json!({"choices": [{"message": {"role": "assistant", "content": text}}]})
            .to_string()
    }

    #[test]
    fn an_opinion_is_asked_in_openais_form() {
        let (url, told) = server(vec![(200, completion("[[9]]"))]);
        assert_eq!(judge(url, 1).ask("be fair", "how good?").unwrap(), "[[9]]");
        let request = told.recv().unwrap();
        assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1"));
        assert!(request.to_lowercase().contains("authorization: bearer secret"));
        let (_, body) = request.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = serde_json::json!([
            {"role": "system", "content": "be fair"},
            {"role": "user", "content": "how good?"},
        ]);
        assert_eq!(body["messages"], expected);
    }

    #[test]
    fn a_failing_endpoint_is_asked_again() {
        let silent = r#"{"choices": [{"message": {"role": "assistant", "content": null}}]}"#;
        let failures = [(500, ""), (0, ""), (429, "slow"), (200, "{}"), (200, silent)];
        let failures = failures.map(|(status, body)| (status, body.to_owned()));
        let answers = failures.into_iter().chain([(200, completion("ok"))]);
        let (url, _told) = server(answers.collect());
        assert_eq!(judge(url, 6).ask("", "?").unwrap(), "ok");
    }

    #[test]
    fn a_question_that_is_refused_is_not_the_end_unless_all_are() {
        let refused = || (400, "content filter".to_owned());
        let silent = r#"{"choices": [{"message": {"content": null}}]}"#.to_owned();
        let answers =
            vec![refused(), (200, silent), (200, completion(" ")), (200, completion("ok"))];
        let answers = answers.into_iter().chain((0..MOST_WITHHELD).map(|_| refused()));
        let (url, _told) = server(answers.collect());
        let mut judge = judge(url, 1);
        for _ in 0..3 {
            assert!(matches!(judge.ask("", "?"), Err(JudgeError::Withheld { .. })));
        }
        assert_eq!(judge.ask("", "?").unwrap(), "ok");
        for _ in 1..MOST_WITHHELD {
            let error = judge.ask("", "?").unwrap_err();
            assert!(
                matches!(error, JudgeError::Withheld { .. })
                    && error.to_string().contains("filter")
            );
        }
        assert!(matches!(judge.ask("", "?"), Err(JudgeError::Refused { .. })));
    }

    #[test]
    fn another_address_is_told_and_not_gone_to() {
        let (url, told) = server(vec![(307, String::new()), (200, completion("ok"))]);
        let error = judge(url, 3).ask("", "?").unwrap_err();
        assert!(matches!(error, JudgeError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("http://elsewhere/v1"), "{error}");
        assert_eq!(told.try_iter().count(), 1);
    }

    #[test]
    fn patience_ends_and_the_error_says_what_came_last() {
        let (url, _told) = server(vec![(503, "busy".to_owned()), (503, "busy".to_owned())]);
        let error = judge(url, 2).ask("", "?").unwrap_err().to_string();
        assert!(error.contains("2 times") && error.contains("busy"), "{error}");
    }

    #[test]
    fn a_wrong_key_is_not_tried_again_nor_shown() {
        let said = "Incorrect API key provided: secret. And key=hushed".to_owned();
        let (url, told) = server(vec![(401, said), (200, completion("ok"))]);
        let mut judge = judge(url + "/?key=hushed", 5);
        let error = judge.ask("", "?").unwrap_err().to_string();
        assert!(error.contains("Incorrect API key"), "{error}");
        assert!(!error.contains("secret") && !error.contains("hushed"), "{error}");
        assert!(!judge.name().contains("hushed"), "{}", judge.name());
        let request = told.iter().next().unwrap();
        assert!(request.starts_with("POST /v1/chat/completions?key=hushed "), "{request}");
    }

    #[test]
    fn a_key_that_the_endpoint_repeats_is_hidden_in_answers_and_errors() {
        let text = |content: &str| (200, completion(content));
        let (url, _told) = server(vec![text("Your key secret is good: [[7]]")]);
        assert_eq!(judge(url, 1).ask("", "?").unwrap(), "Your key [hidden] is good: [[7]]");
        let long = "x".repeat(290);
        for (status, body) in [
            (200, r#"{"choices": "secret"}"#.to_owned()),
            (200, r#"{"choices": "\u0073ecret"}"#.to_owned()),
            (400, "secret".to_owned()),
            (400, r"\u0073ecret".to_owned()),
            (400, "%73ecret".to_owned()),
            (400, "sec\\ret".to_owned()),
            // Half of a key is no better.
            (400, format!("{long}secret")),
        ] {
            let (url, _told) = server(vec![(status, body.clone())]);
            let error = judge(url, 1).ask("", "?").unwrap_err().to_string();
            assert!(!error.contains("ecret") && !error.contains("sec"), "{body}: {error}");
        }
    }

    #[test]
    fn white_space_around_a_key_is_no_part_of_it() {
        let (url, told) = server(vec![(200, completion("ok"))]);
        let mut judge = keyed(url, "secret\r\n").unwrap();
        assert_eq!(judge.ask("", "?").unwrap(), "ok");
        let request = told.recv().unwrap().to_lowercase();
        assert!(request.contains("authorization: bearer secret\r\n"), "{request}");
        for key in ["two\nlines", "gr\u{fc}n", "bell\u{7}"] {
            let error = keyed("http://localhost".to_owned(), key).err().unwrap();
            assert!(matches!(error, JudgeError::Key), "{error}");
        }
    }

    #[test]
    fn a_judge_has_one_name_however_its_address_is_written() {
        let name = |url: &str| judge(url.to_owned(), 1).name();
        assert_eq!(name("http://host:1/v1"), "m at http://host:1/v1");
        assert_eq!(name("http://host:1/v1/"), name("http://host:1/v1"));
        assert_eq!(name("http://host:1/v1/chat/completions"), name("http://host:1/v1"));
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_before_anything_is_asked() {
        for (url, words) in [
            ("not-a-url", "neither http://"),
            ("ftp://host/v1", "neither http://"),
            ("http://", "cannot be used"),
            ("http://me:secret@host/v1", "FLEETUNE_JUDGE_KEY"),
        ] {
            let options = EndpointOptions {
                url: url.to_owned(),
                model: "m".to_owned(),
                key: None,
                attempts: 1,
                timeout: Duration::from_secs(1),
                pause: Duration::ZERO,
                cancel: CancelToken::default(),
            };
            let error = Endpoint::new(options).err().unwrap().to_string();
            assert!(error.contains(words) && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn the_wish_to_stop_waits_neither_for_an_answer_nor_for_a_pause() {
        // Answers nobody.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let mut silent = judge(url, 1);
        silent.cancel.cancel();
        assert!(matches!(silent.ask("", "?"), Err(JudgeError::Stopped)));
        let (url, _told) = server(vec![(503, "busy".to_owned())]);
        let mut busy = judge(url, 9);
        busy.pause = MAX_PAUSE;
        let cancel = busy.cancel.clone();
        let stopper = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            cancel.cancel();
        });
        assert!(matches!(busy.ask("", "?"), Err(JudgeError::Stopped)));
        stopper.join().unwrap();
    }

    #[test]
    fn an_endpoint_asks_for_time_in_seconds_or_by_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let wait = retry_after(&date).unwrap();
        assert!((90..=100).contains(&wait.as_secs()), "{wait:?}");
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }
}
