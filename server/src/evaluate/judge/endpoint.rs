//! A judge behind OpenAI's chat completions interface: the service itself, or one of the many local
//! servers that speak it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Judge, JudgeError, MAX_TOKENS};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// How to reach a judge.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Where: `https://api.openai.com/v1`, or the whole path of `chat/completions`.
    pub url: String,
    /// Which of the endpoint's models.
    pub model: String,
    /// The key, if it wants one. Never written anywhere.
    pub key: Option<String>,
    /// How often to try a request before giving up.
    pub attempts: u32,
    /// How long to wait for one answer.
    pub timeout: Duration,
    /// How long to wait before the second attempt; each further wait doubles, up to a minute.
    pub pause: Duration,
}

/// The judge.
pub struct Endpoint {
    options: EndpointOptions,
    url: String,
    agent: ureq::Agent,
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
    /// Not worth another try.
    Refused(String),
}

impl Endpoint {
    /// A judge at `options.url`. Nothing is asked yet.
    pub fn new(options: EndpointOptions) -> Self {
        let base = options.url.trim_end_matches('/');
        let url = match base.ends_with("/chat/completions") {
            true => base.to_owned(),
            false => format!("{base}/chat/completions"),
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(options.timeout))
            // What the endpoint says about an error is worth reading.
            .http_status_as_error(false)
            .build();
        Self { url, agent: config.into(), options }
    }

    fn attempt(&self, request: &Request) -> Attempt {
        let mut call = self.agent.post(&self.url);
        if let Some(key) = &self.options.key {
            call = call.header("Authorization", &format!("Bearer {key}"));
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
        let wait = wait.and_then(|value| value.parse().ok()).map(Duration::from_secs);
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        let body = match body {
            Ok(body) => body,
            Err(error) => return Attempt::Retry(error.to_string(), wait),
        };
        if !status.is_success() {
            let problem = format!("{status}: {}", excerpt(&body));
            let again =
                status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429);
            return if again { Attempt::Retry(problem, wait) } else { Attempt::Refused(problem) };
        }
        match serde_json::from_str::<Response>(&body) {
            Ok(response) => match response.choices.into_iter().next() {
                Some(choice) => Attempt::Answer(choice.message.content.unwrap_or_default()),
                None => Attempt::Retry("the answer has no choices".to_owned(), wait),
            },
            Err(error) => {
                Attempt::Retry(format!("no chat completion ({error}): {}", excerpt(&body)), wait)
            }
        }
    }
}

impl Judge for Endpoint {
    fn name(&self) -> String {
        format!("{} at {}", self.options.model, self.options.url)
    }

    fn ask(&mut self, system: &str, message: &str) -> Result<String, JudgeError> {
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(RequestMessage { role: "system", content: system });
        }
        messages.push(RequestMessage { role: "user", content: message });
        let request = Request {
            model: &self.options.model,
            messages,
            temperature: 0.0,
            max_tokens: MAX_TOKENS,
        };
        let mut pause = self.options.pause;
        let mut attempt = 1;
        loop {
            match self.attempt(&request) {
                Attempt::Answer(text) => return Ok(text),
                Attempt::Refused(problem) => {
                    return Err(JudgeError::Refused { url: self.url.clone(), problem });
                }
                Attempt::Retry(problem, _) if attempt >= self.options.attempts => {
                    let url = self.url.clone();
                    return Err(JudgeError::Unreachable { url, attempts: attempt, problem });
                }
                Attempt::Retry(problem, wait) => {
                    tracing::warn!("the judge failed ({problem}); trying again");
                    std::thread::sleep(wait.unwrap_or(pause).min(Duration::from_secs(60)));
                    pause *= 2;
                    attempt += 1;
                }
            }
        }
    }
}

/// The beginning of a body, in one line.
fn excerpt(body: &str) -> String {
    let line = body.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
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
                        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
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

    fn judge(url: String, attempts: u32) -> Endpoint {
        Endpoint::new(EndpointOptions {
            url,
            model: "m".to_owned(),
            key: Some("secret".to_owned()),
            attempts,
            timeout: Duration::from_secs(5),
            pause: Duration::from_millis(1),
        })
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
        let failures = [(500, String::new()), (0, String::new()), (429, "slow".to_owned())];
        let answers = failures.into_iter().chain([(200, "{}".to_owned()), (200, completion("ok"))]);
        let (url, _told) = server(answers.collect());
        assert_eq!(judge(url, 5).ask("", "?").unwrap(), "ok");
    }

    #[test]
    fn patience_ends_and_the_error_says_how_to_go_on() {
        let (url, _told) = server(vec![(503, "busy".to_owned()), (503, "busy".to_owned())]);
        let error = judge(url, 2).ask("", "?").unwrap_err().to_string();
        assert!(error.contains("2 times") && error.contains("busy"), "{error}");
        assert!(error.contains("run the same command again"), "{error}");
    }

    #[test]
    fn a_wrong_key_is_not_tried_again_nor_shown() {
        let (url, told) = server(vec![(401, "bad key".to_owned()), (200, completion("ok"))]);
        let error = judge(url, 5).ask("", "?").unwrap_err().to_string();
        assert!(error.contains("bad key") && !error.contains("secret"), "{error}");
        assert_eq!(told.iter().take(1).count(), 1);
    }
}
