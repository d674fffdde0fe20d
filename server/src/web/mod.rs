//! HTTP for people and scrapers: the operator's page and `/metrics`.
//!
//! Both are plain HTTP. The page answers nothing about the server without the operator's token, which
//! the browser sends with every request in a header, so that no other site can send it; it loads
//! nothing from elsewhere.

mod api;
mod metrics;
mod token;
mod view;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

use crate::interrupt::Interrupt;

pub use api::page;
pub use metrics::metrics;
pub use token::Token;

/// How often a listener looks whether it is to stop.
const TICK: Duration = Duration::from_millis(200);

/// A listening site.
#[derive(Debug)]
pub struct Site {
    listener: TcpListener,
    routes: Router,
}

impl Site {
    /// Listens on `address`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr, routes: Router) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)?, routes })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `interrupt` is set. Requests that are under way then are cut off: they are short,
    /// and a browser asks again.
    pub async fn run(self, interrupt: Interrupt) {
        let stopped = async {
            let mut tick = tokio::time::interval(TICK);
            while !interrupt.is_set() {
                tick.tick().await;
            }
        };
        tokio::select! {
            ended = axum::serve(self.listener, self.routes) => {
                if let Err(error) = ended {
                    tracing::error!("the page is gone: {error}");
                }
            }
            () = stopped => {}
        }
    }
}
