//! `/metrics` for Prometheus: a page of text over plain HTTP, on a thread of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::coordinator::Coordinator;
use crate::interrupt::Interrupt;

/// Time for a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request that is read.
const MAX_REQUEST: u64 = 8 << 10;
/// How often the listener looks whether it is to stop.
const TICK: Duration = Duration::from_millis(200);

/// A page of counters.
#[derive(Debug)]
pub struct MetricsPage {
    listener: TcpListener,
    coordinator: Arc<Coordinator>,
}

impl MetricsPage {
    /// Listens on `address`.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(coordinator: Arc<Coordinator>, address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, coordinator })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers on a thread until `interrupt` is set. One request at a time is enough for a scraper.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn run(self, interrupt: Interrupt) -> io::Result<()> {
        let serve = move || {
            while !interrupt.is_set() {
                match self.listener.accept() {
                    Ok((stream, _)) => {
                        if let Err(error) = self.answer(stream) {
                            tracing::debug!("metrics: {error}");
                        }
                    }
                    Err(_) => thread::sleep(TICK),
                }
            }
        };
        thread::Builder::new().name("metrics".into()).spawn(serve).map(drop)
    }

    fn answer(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?.take(MAX_REQUEST)).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        // The headers are read, for a sender that is cut off sees an error.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let (status, body) = match request.split(' ').take(2).collect::<Vec<_>>()[..] {
            ["GET", "/metrics"] => ("200 OK", self.coordinator.metrics().render()),
            _ => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())
    }
}
