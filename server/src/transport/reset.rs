//! Connections across a restart of the server.
//!
//! The secret behind stateless resets is kept: a restarted server can tell devices at once that it
//! does not know their connection any more, and they make a new one instead of waiting for the
//! silence to become long enough.

use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rand::RngCore;
use ring::hmac;

/// Bytes of a connection's name.
const CID_LEN: usize = 8;

/// Names of connections that a server from before a restart could have given: any bytes.
#[derive(Debug, Clone, Copy)]
struct RandomNames;

impl ConnectionIdGenerator for RandomNames {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut name = [0; CID_LEN];
        rand::rng().fill_bytes(&mut name);
        ConnectionId::new(&name)
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The endpoint's settings with this secret.
pub fn endpoint_config(secret: &[u8]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)));
    config.cid_generator(|| Box::new(RandomNames));
    config
}
