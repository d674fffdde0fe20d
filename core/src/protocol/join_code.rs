//! Join codes: what an operator hands to the people whose devices shall take part.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use super::{InviteId, MAX_NAME, hash};

/// Most addresses in a code.
pub const MAX_ADDRESSES: usize = 8;
const PREFIX: &str = "ft1-";
const CHECKSUM_LEN: usize = 4;
/// Longer than any code: what is longer is not even decoded.
const MAX_TEXT: usize = 4096;

/// Why a text is no join code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinCodeError {
    /// It does not start as one.
    #[error(
        "a join code starts with {PREFIX}: copy the whole line that `fleetune admin invite` printed"
    )]
    Prefix,
    /// A character is wrong or missing.
    #[error("the join code is damaged: copy it again, wholly")]
    Damaged,
    /// The checksum is right, and yet the contents make no sense.
    #[error("the join code names no server that can be reached: {0}")]
    Content(&'static str),
}

/// Where the server is, how it is recognised, and the secret that admits a device.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCode {
    /// Where the server listens, `host:port`, the most likely first.
    pub addresses: Vec<String>,
    /// SHA-256 of the certificate (DER) of the server's authority.
    pub authority: [u8; 32],
    /// The invitation.
    pub invite: InviteId,
    /// What proves that the device was invited.
    pub secret: [u8; 16],
    /// The federation that the device shall serve; any where absent.
    pub federation: Option<String>,
}

impl JoinCode {
    fn check(&self) -> Result<(), JoinCodeError> {
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            return Err(JoinCodeError::Content("it has no address, or too many"));
        }
        if self.addresses.iter().any(|address| !is_address(address)) {
            return Err(JoinCodeError::Content("an address is not of the form host:port"));
        }
        if self.federation.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_NAME) {
            return Err(JoinCodeError::Content("its federation's name is empty or too long"));
        }
        Ok(())
    }
}

/// `host:port` with a port other than zero.
fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    text.len() <= 260
        && parts.is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        bytes.extend_from_slice(&hash(&bytes)[..CHECKSUM_LEN]);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

impl fmt::Debug for JoinCode {
    /// Without the secret: what is printed for debugging ends in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinCode")
            .field("addresses", &self.addresses)
            .field("invite", &self.invite)
            .field("federation", &self.federation)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinCode {
    type Err = JoinCodeError;

    fn from_str(text: &str) -> Result<Self, JoinCodeError> {
        // Mail programs break lines; base32 knows no case.
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(MAX_TEXT).collect();
        let text = text.to_lowercase();
        let body = text.strip_prefix(PREFIX).ok_or(JoinCodeError::Prefix)?;
        let bytes = BASE32_NOPAD.decode(body.to_uppercase().as_bytes());
        let bytes = bytes.map_err(|_| JoinCodeError::Damaged)?;
        let (content, checksum) =
            bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(JoinCodeError::Damaged)?;
        if hash(content)[..CHECKSUM_LEN] != *checksum {
            return Err(JoinCodeError::Damaged);
        }
        let code: Self = match postcard::take_from_bytes(content) {
            Ok((code, [])) => code,
            _ => return Err(JoinCodeError::Content("another version made it")),
        };
        code.check()?;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> JoinCode {
        JoinCode {
            addresses: vec!["fl.example.org:4433".into(), "[::1]:4433".into()],
            authority: std::array::from_fn(|i| i as u8),
            invite: InviteId([9; 8]),
            secret: [0xa5; 16],
            federation: Some("clinic-notes".into()),
        }
    }

    #[test]
    fn a_code_survives_mail_programs() {
        let text = code().to_string();
        assert!(text.starts_with("ft1-") && text.len() < 200, "{text}");
        let mailed = format!(" {}\r\n {} ", &text[..60], &text[60..]).to_uppercase();
        assert_eq!(mailed.parse(), Ok(code()));
    }

    #[test]
    fn every_single_typo_is_found() {
        let text = code().to_string();
        for at in PREFIX.len()..text.len() {
            let other = if text.as_bytes()[at] == b'a' { 'b' } else { 'a' };
            let typo = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert!(typo.parse::<JoinCode>().is_err(), "{typo}");
        }
        assert_eq!(text[..text.len() - 2].parse::<JoinCode>(), Err(JoinCodeError::Damaged));
        assert_eq!("hello".parse::<JoinCode>(), Err(JoinCodeError::Prefix));
    }

    #[test]
    fn a_code_without_a_server_is_refused() {
        for addresses in [vec![], vec!["nohost".to_owned()], vec!["host:0".to_owned()]] {
            let text = JoinCode { addresses, ..code() }.to_string();
            assert!(matches!(text.parse::<JoinCode>(), Err(JoinCodeError::Content(_))));
        }
    }

    #[test]
    fn debugging_output_keeps_the_secret() {
        let text = format!("{:?}", JoinCode { secret: [0xee; 16], ..code() });
        assert!(!text.contains("238") && !text.contains("ee, "), "{text}");
    }
}
