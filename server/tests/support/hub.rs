//! A stand-in for the hub: a small HTTP server that misbehaves as told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// First byte asked for.
    pub start: Option<usize>,
    /// The `Authorization` header.
    pub token: Option<String>,
    /// How many requests for the same path came before.
    pub nth: usize,
}

/// What it gets.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection ends after this many bytes of the body.
    pub cut: Option<usize>,
    /// Wait before the body.
    pub delay: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: vec![], body: vec![], cut: None, delay: Duration::ZERO }
    }

    pub fn json(value: &Value) -> Self {
        Self { body: value.to_string().into_bytes(), ..Self::status(200) }
    }

    /// A file, from the byte asked for.
    pub fn file(request: &Request, bytes: &[u8]) -> Self {
        let Some(start) = request.start else {
            return Self { body: bytes.to_vec(), ..Self::status(200) };
        };
        if start >= bytes.len() {
            return Self::status(416);
        }
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        let reply = Self { body: bytes[start..].to_vec(), ..Self::status(206) };
        reply.header("Content-Range", &range)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// The server; it ends with this value.
pub struct Hub {
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
    done: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Hub {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let done = Arc::new(AtomicBool::new(false));
        let (log, end, answer) = (Arc::clone(&seen), Arc::clone(&done), Arc::new(answer));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                // A client that hangs up early is part of the game.
                thread::spawn(move || serve(stream.ok()?, &log, &*answer).ok());
            }
        });
        Self { url, seen, done, thread: Some(thread) }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// First bytes asked for in the requests for `path`, in order.
    pub fn starts(&self, path: &str) -> Vec<Option<usize>> {
        self.requests().iter().filter(|r| r.path == path).map(|r| r.start).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, start: None, token: None, nth: 0 };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let first = value.trim().strip_prefix("bytes=").and_then(|v| v.split('-').next());
                request.start = first.and_then(|v| v.parse().ok());
            }
            "authorization" => request.token = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    {
        let mut log = log.lock().unwrap();
        request.nth = log.iter().filter(|seen| seen.path == request.path).count();
        log.push(request.clone());
    }
    let reply = answer(&request);
    let mut head = format!(
        "HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    thread::sleep(reply.delay);
    stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    stream.flush()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn git_blob(bytes: &[u8]) -> String {
    let hash = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the hub's API says of a repository with these files; the large ones are kept in LFS.
pub fn repository(commit: &str, files: &[(&str, &[u8])]) -> Value {
    let siblings = files.iter().map(|(path, bytes)| {
        let mut file = json!({
            "rfilename": path, "size": bytes.len(), "blobId": git_blob(bytes),
        });
        if bytes.len() > 1000 {
            // Of a file in LFS the blob is the pointer; its id says nothing of the contents.
            file["blobId"] = json!("0".repeat(40));
            file["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
        }
        file
    });
    json!({"id": "owner/repo", "sha": commit, "siblings": siblings.collect::<Vec<_>>()})
}

/// Bytes that look like nothing in particular.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}
